"""SmolLM3. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families import llama
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.read_rope import RopeForm
from ember.engine.errors import ModelError


def read(fields: Fields) -> DecoderConfig:
    """A Llama in which some layers have no rotary positions: every fourth, or those with 0 in `no_rope_layers`.

    With `use_sliding_window` the layers without rotary positions have the window, unless `layer_types` says otherwise.
    """
    config = llama.read(
        fields, max_position_embeddings=32768, num_kv_heads=4, rope=RopeForm(theta=2e6), tie_word_embeddings=True
    )
    interval, given = fields.integer("no_rope_layer_interval", 4), fields.flags("no_rope_layers")
    rotated = every_nth(interval, False, config.num_layers) if given is None else tuple(given)
    if len(rotated) < config.num_layers:
        raise ModelError(f"no_rope_layers has {len(rotated)} entries for num_hidden_layers={config.num_layers}")
    rotated = rotated[: config.num_layers]
    window = fields.optional_integer("sliding_window", None)
    window = window if fields.flag("use_sliding_window", False) else None
    windowed = [window is not None and not has_rope for has_rope in rotated]
    config = replace(config, rope_layers=() if all(rotated) else rotated, sliding_window=window)
    return with_layer_types(config, fields, windowed)


SMOLLM3 = Family(
    read,
    llama.LLAMA.fields
    | field_names("no_rope_layers no_rope_layer_interval use_sliding_window sliding_window layer_types"),
    harmless={"max_window_layers": ()},
)
