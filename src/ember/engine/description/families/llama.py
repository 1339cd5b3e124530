"""Llama 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder


def read(fields: Fields) -> DecoderConfig:
    """RMSNorm before each part, rotary positions, a gated MLP with SiLU, grouped queries."""
    bias = fields.flag("attention_bias", False)
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=2048),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


LLAMA = Family(read, ROTARY_FIELDS | {"attention_bias", "mlp_bias"})
