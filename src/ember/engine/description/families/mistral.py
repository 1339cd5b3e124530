"""Mistral (arXiv 2310.06825) and Ministral. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import with_layer_types
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder


def read(fields: Fields) -> DecoderConfig:
    """A Llama with the same sliding window in every layer, or in none. With `layer_types`, as in Ministral, only the
    layers named there have the window."""
    config = read_rotary_decoder(fields, max_position_embeddings=4096 * 32, num_kv_heads=8)
    window = fields.optional_integer("sliding_window", 4096)
    return with_layer_types(replace(config, sliding_window=window), fields)


MISTRAL = Family(read, ROTARY_FIELDS | {"sliding_window", "layer_types"})
