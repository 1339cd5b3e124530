"""Sliding windows per layer, from `layer_types` of a config.json. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import Fields, shown
from ember.engine.errors import ModelError

HAS_WINDOW = {"full_attention": False, "attention": False, "sliding_attention": True}  # by the layer's type


def with_layer_types(config: DecoderConfig, fields: Fields) -> DecoderConfig:
    """The configuration with the window of each layer, if `layer_types` is present. Raises ModelError."""
    if fields.values.get("layer_types") is None:
        return config
    kinds = fields.names("layer_types")
    if len(kinds) != config.num_layers:
        raise ModelError(f"layer_types has {len(kinds)} entries for num_hidden_layers={config.num_layers}")
    for kind in dict.fromkeys(kinds):
        if kind not in HAS_WINDOW:
            known = ", ".join(HAS_WINDOW)
            raise ModelError(f"layer_types: {shown(kind)} is not supported here; supported are {known}")
    windowed = tuple(HAS_WINDOW[kind] for kind in kinds)
    if any(windowed) and config.sliding_window is None:
        raise ModelError("layer_types has sliding_attention, but sliding_window is null, or use_sliding_window false")
    return replace(config, windowed_layers=windowed)
