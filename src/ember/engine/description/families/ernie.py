"""ERNIE 4.5's dense models. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder


def read(fields: Fields) -> DecoderConfig:
    """A Llama with interleaved rotary positions, and biases everywhere or nowhere."""
    bias = fields.flag("use_bias", False)
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=131072,
        num_kv_heads=2,
        head_dim=128,
        norm_eps=1e-5,
        rope=RopeForm(theta=500_000.0, interleaved=True),
        tie_word_embeddings=True,
    )
    return replace(config, qkv_bias=bias, output_bias=bias, mlp_bias=bias)


ERNIE4_5 = Family(read, ROTARY_FIELDS | {"use_bias"})
