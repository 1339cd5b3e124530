"""Llama 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and families that differ from them in a few fields.

This module does not import torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder


def read(
    fields: Fields,
    *,
    max_position_embeddings: int = 2048,
    qkv_bias: bool = False,
    mlp_bias: bool = False,
    **defaults: Any,
) -> DecoderConfig:
    """RMSNorm before each part, rotary positions, a gated MLP with SiLU, grouped queries.

    `qkv_bias` and `mlp_bias` are the defaults of attention_bias and mlp_bias, `defaults` those of
    `read_rotary_decoder`.
    """
    bias = fields.flag("attention_bias", qkv_bias)
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=max_position_embeddings, **defaults),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", mlp_bias),
    )


def read_arcee(fields: Fields) -> DecoderConfig:
    """Arcee: a Llama whose MLP has squared ReLU and no gate."""
    config = read(fields, max_position_embeddings=4096, norm_eps=1e-5, activation="relu2")
    return replace(config, gated_mlp=False)


def read_seed_oss(fields: Fields) -> DecoderConfig:
    """Seed-OSS: a Llama whose biases are set on their own for the inputs and the output of attention."""
    config = read(fields, max_position_embeddings=524288, num_kv_heads=8, head_dim=128, qkv_bias=True)
    return replace(config, output_bias=fields.flag("attention_out_bias", False))


LLAMA = Family(read, ROTARY_FIELDS | {"attention_bias", "mlp_bias"})
ARCEE = Family(read_arcee, LLAMA.fields)
SEED_OSS = Family(read_seed_oss, LLAMA.fields | {"attention_out_bias"})
