"""Where the values of settings come from: command line > `VLLM_EXTRA_ARGS` > environment > YAML file
(`VLLM_CONFIG_FILE`) > defaults.

What is empty or blank counts as unset. A value that cannot be used raises `SettingsError`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from ember.settings.extra_args import NAME as EXTRA_ARGS
from ember.settings.extra_args import read_extra_args
from ember.settings.fields import Settings, variable_names
from ember.settings.known import KNOWN_UNUSED, UNUSED_FLAGS, is_met_anyway
from ember.settings.values import is_blank
from ember.untrusted_json import broken_text


class SettingsError(ValueError):
    """A setting that cannot be used; the message is one line for the person who set it."""


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the environment and the YAML file. `overrides` (from the command line) are field names with values.

    Raises SettingsError.
    """
    values = {**_yaml_values(), **_extra_values()}
    given = {field: value for field, value in (overrides or {}).items() if value is not None}
    values.update({field: value for field, value in given.items() if not is_blank(field, value)})
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    for field in Settings.model_fields:
        if (place := broken_text(getattr(settings, field))) is not None:
            name = ".".join([_given_name(field), *place])
            raise SettingsError(f"{name} is not UTF-8 text, or holds a lone surrogate: write it as UTF-8")
    if settings.api_key_file is not None:
        settings.api_key += _keys_of(settings.api_key_file)
    return settings


def load_arguments(arguments: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Read the settings, with arguments under the names of vLLM's engine arguments over the environment: they are the
    names of variables, as in VLLM_EXTRA_ARGS. Returns them, and a line for each argument that has no effect. Raises
    TypeError for an unknown name, and SettingsError."""
    by_name = _fields_by_name()
    given = {name: value for name, value in arguments.items() if value is not None}
    unknown = [name for name in given if name.upper() not in by_name and name.upper() not in KNOWN_UNUSED]
    if unknown:
        raise TypeError(f"{unknown[0]!r} is no argument of the engine; `ember settings` prints those that there are")
    lines = [
        f"{name} has no effect: {KNOWN_UNUSED[name.upper()]}"
        for name, value in given.items()
        if name.upper() not in by_name and not is_met_anyway(name.upper(), value)
    ]
    return load_settings(
        {by_name[name.upper()]: value for name, value in given.items() if name.upper() in by_name}
    ), lines


def _keys_of(path: str) -> list[SecretStr]:
    """The keys in a file. Raises SettingsError; its content is never shown."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines()]
    except OSError as error:
        advice = "it must name a readable file with one key a line, or be unset"
        raise SettingsError(f"API_KEY_FILE={path}: {error.strerror or error}; {advice}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"API_KEY_FILE={path} is not UTF-8 text") from None
    keys = [SecretStr(line) for line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"API_KEY_FILE={path} holds no key, which would leave the server open")
    return keys


def variables(prefix: str) -> dict[str, str]:
    """The environment's variables whose names begin with the prefix. They are no settings of Ember: the platform's
    own, for example."""
    return {name: value for name, value in os.environ.items() if name.startswith(prefix)}


def warn_unused(environ: Mapping[str, str] = os.environ) -> list[str]:
    """One line for each variable that other workers read and this one does not act on, and one for each entry of the
    YAML file that is no setting. A value that asks for what Ember does anyway has none. Raises SettingsError."""
    names = sorted(name for name, value in environ.items() if name in KNOWN_UNUSED and value.strip())
    lines = [
        f"{name} is set but has no effect: {KNOWN_UNUSED[name]}"
        for name in names
        if not is_met_anyway(name, environ[name])
    ]
    by_name = _fields_by_name()
    path, entries = _yaml_entries(environ)
    for key, name, field, value in entries:
        if field is None and not is_met_anyway(name, value):
            lines.append(f"{key} in {path} has no effect: {KNOWN_UNUSED.get(name, 'unknown setting')}")
    for flag, name, value in _extra_args(environ):
        if name not in by_name and not is_met_anyway(name, value):
            hint = KNOWN_UNUSED.get(name) or UNUSED_FLAGS.get(name, "unknown setting")
            lines.append(f"{flag} in {EXTRA_ARGS} has no effect: {hint}")
    return lines


def _extra_values() -> dict[str, Any]:
    """Values of VLLM_EXTRA_ARGS as field names. Of a flag that stands there twice the last one holds."""
    by_name = _fields_by_name()
    given = [(name, value) for _, name, value in _extra_args(os.environ) if not is_blank(name, value)]
    return {by_name[name]: value for name, value in given if name in by_name}


def _extra_args(environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The flags of VLLM_EXTRA_ARGS. Raises SettingsError."""
    line = environ.get(EXTRA_ARGS, "").strip()
    try:
        return read_extra_args(line)
    except ValueError as error:
        advice = "it must be flags of `vllm serve`, such as `--max-model-len 4096`, or be unset"
        raise SettingsError(f"{EXTRA_ARGS}: {str(error).lower()}; {advice}") from None  # it may hold a key


def _fields_by_name() -> dict[str, str]:
    """From the names of variables, aliases among them, to fields."""
    return {name: field for field in Settings.model_fields for name in (*variable_names(field), field.upper())}


def _yaml_values() -> dict[str, Any]:
    """Values of the YAML file as field names; what the environment also sets is left out, for it is stronger."""
    _, entries = _yaml_entries(os.environ)
    return {
        field: value
        for _, _, field, value in entries
        if field is not None and not any(os.environ.get(alias, "").strip() for alias in variable_names(field))
    }


def _yaml_entries(environ: Mapping[str, str]) -> tuple[str, list[tuple[Any, str, str | None, Any]]]:
    """The path of the YAML file and its entries that have a value: the key, the variable's name that it stands for, the
    field of that name, where there is one, and the value. Raises SettingsError."""
    path = environ.get("VLLM_CONFIG_FILE", "").strip() or environ.get("EMBER_CONFIG_FILE", "").strip()
    if not path:
        return "", []
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text()) or {}
    except OSError as error:
        advice = "it must name a readable YAML file of settings, or be unset"
        raise SettingsError(f"VLLM_CONFIG_FILE={path}: {error.strerror or error}; {advice}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"VLLM_CONFIG_FILE={path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"VLLM_CONFIG_FILE={path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"VLLM_CONFIG_FILE={path} must hold a mapping of setting names to values")
    by_name = _fields_by_name()
    named = [(key, str(key).replace("-", "_").upper(), value) for key, value in content.items()]
    entries = [
        (key, name, by_name.get(name), value)
        for key, name, value in named
        if not (value is None or is_blank(name, value))
    ]
    return path, entries


def _given_name(field: str) -> str:
    """The variable that sets a field, or the one that it is documented under."""
    names = variable_names(field)
    return next((alias for alias in names if os.environ.get(alias)), names[0])


def _one_line(error: ValidationError) -> str:
    """`MAX_MODEL_LEN=abc: Input should be a valid integer`, for each wrong value, joined by semicolons."""
    by_name = {name: field for field in Settings.model_fields for name in (*variable_names(field), field)}
    lines = []
    for item in error.errors():
        field = by_name.get(str(item["loc"][0]), str(item["loc"][0]))
        name = _given_name(field) if field in Settings.model_fields else field
        secret = field in ("hf_token", "api_key", "admin_api_key")
        given = "(hidden)" if secret else str(item.get("input"))[:100]
        lines.append(f"{name}={given}: {_reason(item)}")
    return "; ".join(lines)


def _reason(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ").partition(", unable to parse")[0]
    return message[0].lower() + message[1:]
