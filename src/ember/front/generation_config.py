"""The deployment's sampling defaults: from the model's or another generation_config.json, and from the override."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ember import untrusted_json
from ember.regular_file import MAX_JSON_BYTES
from ember.settings import Settings
from ember.untrusted_json import UntrustedJsonError

_ADVICE = "; fix it or set GENERATION_CONFIG=vllm"

# What a generation_config.json may set as a default of the request (openai-compatible servers agree on this list).
GENERATION_DEFAULTS = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "max_new_tokens",
    "skip_special_tokens",
)


# The same in the metadata of a GGUF file.
_OF_GGUF = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def generation_defaults(settings: Settings, model_dir: Path) -> dict[str, Any]:
    """The sampling defaults of the model's generation_config.json or another directory's, updated by the override.
    `model_dir`: or a GGUF file.

    Raises ValueError with one line.
    """
    defaults: dict[str, Any] = {}
    if settings.generation_config != "vllm":
        is_own = settings.generation_config == "auto"
        directory = model_dir if is_own else Path(settings.generation_config)
        source, content = _of_gguf(directory) if is_own and directory.is_file() else _of_json(directory)
        if content is None and not is_own:
            raise ValueError(f"GENERATION_CONFIG={settings.generation_config}: it holds no generation_config.json")
        content = content or {}
        own = {name: content[name] for name in GENERATION_DEFAULTS if content.get(name) is not None}
        defaults = _checked(own, f"{source}: ", _ADVICE)
    return {**defaults, **_checked(settings.override_generation_config, "OVERRIDE_GENERATION_CONFIG: ", "")}


def _of_json(directory: Path) -> tuple[Path, dict[str, Any] | None]:
    path = directory / "generation_config.json"
    try:
        return path, untrusted_json.read_object(path, MAX_JSON_BYTES)
    except UntrustedJsonError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}){_ADVICE}") from None


def _of_gguf(file: Path) -> tuple[Path, dict[str, Any]]:
    from ember.gguf.header import read_header, shortest

    values = read_header(file).metadata.values
    found = {name: values.get(f"general.sampling.{key}") for key, name in _OF_GGUF.items()}
    return file, {name: shortest(value) if isinstance(value, float) else value for name, value in found.items()}


def _checked(defaults: dict[str, Any], source: str, advice: str) -> dict[str, Any]:
    from ember.front.api.sampling_ranges import checked_defaults

    try:
        return checked_defaults(defaults)
    except ValueError as error:
        raise ValueError(f"{source}{error}{advice}") from None
