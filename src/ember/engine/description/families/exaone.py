"""EXAONE 4.0 (arXiv 2507.11407). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families.olmo import OLMO2_NAMES
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder


def read(fields: Fields) -> DecoderConfig:
    """Norms of the outputs of attention and MLP, and of each query and key head. Where some layers have a sliding
    window, the others have no rotary positions."""
    config = read_rotary_decoder(fields, max_position_embeddings=2048, num_kv_heads=32, norm_eps=1e-5)
    window = fields.optional_integer("sliding_window", 4096)
    windowed = (False,) * config.num_layers
    letters = isinstance(fields.values.get("sliding_window_pattern"), str)  # say what layer_types beside them says
    if window is not None and not (letters and fields.values.get("layer_types") is not None):
        windowed = every_nth(fields.integer("sliding_window_pattern", 4), False, config.num_layers)
    config = replace(config, names=OLMO2_NAMES, wiring="output_norm", qk_norm="head", sliding_window=window)
    config = with_layer_types(config, fields, windowed)
    return config if window is None else replace(config, rope_layers=config.windowed_layers)


EXAONE4 = Family(read, ROTARY_FIELDS | field_names("sliding_window sliding_window_pattern layer_types"))
