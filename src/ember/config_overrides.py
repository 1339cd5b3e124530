"""HF_OVERRIDES: fields that replace those of a config.json, for both processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Both spellings of the same field: if one is overridden, the other of the file no longer holds.
_SAME = {"rope_parameters": ("rope_scaling", "rope_theta"), "rope_scaling": ("rope_parameters",)}


def overridden(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json with the overrides, as vLLM merges them: an object for a nested configuration (such
    as text_config) is merged with it, anything else replaces the field."""
    merged = dict(values)
    for name, value in overrides.items():
        own = merged.get(name)
        is_nested = name.endswith("_config") and name != "quantization_config"
        if is_nested and isinstance(own, dict) and isinstance(value, dict):
            value = overridden(own, value)
        for other in _SAME.get(name, ()):
            if other not in overrides:
                merged.pop(other, None)
        merged[name] = value
    return merged
