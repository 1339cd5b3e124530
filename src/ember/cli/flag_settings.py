"""What the commands have in common: their settings, with flags over the environment, and how they fail."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from ember.settings import Settings


def load(flags: argparse.Namespace, default_model: str | None = None) -> Settings:
    """Read the settings, with flags over the environment; set up logging and warn of variables without effect."""
    import logging

    from ember.logs import set_up

    settings, unused = read(flags, default_model)
    set_up(settings)
    for line in unused:
        logging.getLogger(__name__).warning(line)
    return settings


def read(flags: argparse.Namespace, default_model: str | None = None) -> tuple[Settings, list[str]]:
    """Read the settings, with flags over the environment. Returns them, and a line for each variable without effect."""
    from ember.settings import Settings, load_settings, warn_unused

    given = {name: value for name, value in vars(flags).items() if name in Settings.model_fields}
    overrides = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = load_settings(overrides)
    if settings.model_name is None and default_model is not None:
        settings = load_settings({**overrides, "model_name": default_model})
    unused = warn_unused()
    if getattr(flags, "rp_debugger", False):
        unused.append("--rp_debugger has no effect: the SDK's debugger cannot describe streamed jobs")
    if (getattr(flags, "rp_api_concurrency", None) or 1) > 1:
        unused.append("--rp_api_concurrency has no effect: one process answers everything at once")
    return settings, unused


def require_model(settings: Settings) -> None:
    from ember.settings import SettingsError

    if settings.model_name is None:
        raise SettingsError("MODEL_NAME is not set: name the model to serve, or `demo` for the one in the package")


def take_positional_model(flags: argparse.Namespace) -> bool:
    """Treat MODEL as --model-name. Returns False, after an error message, if both are given and differ."""
    if flags.positional_model is not None:
        if vars(flags).get("model_name", flags.positional_model) != flags.positional_model:
            fail(f"two models are named: {flags.positional_model} and --model-name {flags.model_name}")
            return False
        flags.model_name = flags.positional_model
    return True


def environment_of(flags: argparse.Namespace) -> dict[str, str]:
    """The settings among the flags, as variables for a server: a command line would show keys to others."""
    from ember.settings import Settings, variable_names

    found = {}
    for name in Settings.model_fields:
        if (value := vars(flags).get(name)) is not None:
            found[variable_names(name)[0]] = ",".join(value) if isinstance(value, list) else str(value)
    return found


def key_of(settings: Settings) -> str | None:
    """The key for a server: ours, or that of OpenAI's clients."""
    return settings.api_key[0].get_secret_value() if settings.api_key else os.environ.get("OPENAI_API_KEY")


def fail(message: str, status: int = 1) -> int:
    from ember.logs import printable

    print(f"ember: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status
