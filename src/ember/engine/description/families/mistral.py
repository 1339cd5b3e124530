"""Mistral (arXiv 2310.06825), Ministral and Ministral 3. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import with_layer_types
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder

MINISTRAL3_ROPE = {  # of a config.json without rope_parameters
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def read(fields: Fields) -> DecoderConfig:
    """A Llama with the same sliding window in every layer, or in none. With `layer_types`, as in Ministral, only the
    layers named there have the window."""
    config = read_rotary_decoder(fields, max_position_embeddings=4096 * 32, num_kv_heads=8)
    window = fields.optional_integer("sliding_window", 4096)
    return with_layer_types(replace(config, sliding_window=window), fields)


def read_ministral3(fields: Fields) -> DecoderConfig:
    """A Llama whose queries are scaled by their positions beyond the original context."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=262144,
        num_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        rope=RopeForm(absent=MINISTRAL3_ROPE, reads_query_beta=True),
    )
    return replace(config, sliding_window=fields.optional_integer("sliding_window", None))


MINISTRAL3 = Family(read_ministral3, ROTARY_FIELDS | {"sliding_window"})
MISTRAL = Family(read, ROTARY_FIELDS | {"sliding_window", "layer_types"})
