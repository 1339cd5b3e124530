"""Sampling defaults of the deployment: the model's generation_config.json, another directory's, and the override."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ember.settings import Settings

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


def generation_defaults(settings: Settings, model_dir: Path) -> dict[str, Any]:
    """Sampling defaults: of the model's generation_config.json or another directory's, then the override.

    Raises ValueError, one line.
    """
    defaults: dict[str, Any] = {}
    if settings.generation_config != "vllm":
        directory = model_dir if settings.generation_config == "auto" else Path(settings.generation_config)
        path = directory / "generation_config.json"
        if path.exists():
            try:
                content = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} is not valid JSON ({error}); fix it or set GENERATION_CONFIG=vllm") from None
            if not isinstance(content, dict):
                raise ValueError(f"{path} is not a JSON object; fix it or set GENERATION_CONFIG=vllm")
            defaults = {name: content[name] for name in GENERATION_DEFAULTS if content.get(name) is not None}
            _checked(defaults, f"{path}: ", "; fix it or set GENERATION_CONFIG=vllm")
        elif settings.generation_config != "auto":
            raise ValueError(f"GENERATION_CONFIG={settings.generation_config}: it holds no generation_config.json")
    _checked(settings.override_generation_config, "OVERRIDE_GENERATION_CONFIG: ", "")
    return {**defaults, **settings.override_generation_config}


def _checked(defaults: dict[str, Any], source: str, advice: str) -> None:
    from ember.front.api.sampling import check_defaults

    try:
        check_defaults(defaults)
    except ValueError as error:
        raise ValueError(f"{source}{error}{advice}") from None
