"""Sliding windows and mixers per layer, from `layer_types` of a config.json. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ember.engine.description.config import DecoderConfig, Mixer
from ember.engine.description.fields import Fields, shown
from ember.engine.errors import ModelError

HAS_WINDOW = {"full_attention": False, "attention": False, "sliding_attention": True}  # by the layer's type
HAS_CHUNK = {"full_attention": False, "chunked_attention": True}  # the same for models with chunks


def every_nth(interval: int, marked: bool, num_layers: int) -> tuple[bool, ...]:
    """A flag of each layer: `marked` for every layer whose number, counted from 1, is a multiple of `interval`."""
    return tuple(((layer + 1) % interval == 0) == marked for layer in range(num_layers))


def with_layer_types(config: DecoderConfig, fields: Fields, absent: Sequence[bool] | None = None) -> DecoderConfig:
    """The configuration with the window of each layer, from `layer_types`. Raises ModelError.

    `absent`: whether each layer has the window in a file without `layer_types`; None: as the configuration says.
    """
    if fields.values.get("layer_types") is None:
        return config if absent is None else replace(config, windowed_layers=tuple(absent))
    windowed = _by_type(fields, config.num_layers, HAS_CHUNK if config.window_is_chunk else HAS_WINDOW)
    if any(windowed) and config.sliding_window is None:
        if config.window_is_chunk:
            raise ModelError("layer_types has chunked_attention, but attention_chunk_size is null")
        raise ModelError("layer_types has sliding_attention, but sliding_window is null, or use_sliding_window false")
    return replace(config, windowed_layers=windowed)


def read_mixers(
    fields: Fields, num_layers: int, kinds: Mapping[str, Mixer], absent: Sequence[Mixer], name: str = "layer_types"
) -> tuple[Mixer, ...]:
    """The mixer of each layer, from the field `name`. Raises ModelError. `kinds`: the mixer of each type; `absent`:
    those of a file without the field."""
    if fields.values.get(name) is None:
        return tuple(absent)
    return _by_type(fields, num_layers, kinds, name)


Value = TypeVar("Value")


def _by_type(
    fields: Fields, num_layers: int, known: Mapping[str, Value], name: str = "layer_types"
) -> tuple[Value, ...]:
    """What `known` says of each layer's type. Raises ModelError."""
    kinds = fields.names(name)
    if len(kinds) != num_layers:
        raise ModelError(f"{name} has {len(kinds)} entries for num_hidden_layers={num_layers}")
    for kind in dict.fromkeys(kinds):
        if kind not in known:
            raise ModelError(f"{name}: {shown(kind)} is not supported here; supported are {', '.join(known)}")
    return tuple(known[kind] for kind in kinds)
