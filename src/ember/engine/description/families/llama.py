"""Llama 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and families that differ from them in a few fields.

This module does not import torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import with_layer_types
from ember.engine.description.read_rope import RopeForm
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


def read_cwm(fields: Fields) -> DecoderConfig:
    """CWM: a Llama with a sliding window in three of four layers."""
    config = replace(
        read(
            fields,
            max_position_embeddings=131072,
            num_kv_heads=8,
            head_dim=128,
            norm_eps=1e-5,
            rope=RopeForm(theta=1e6, absent=CWM_ROPE),
        ),
        sliding_window=fields.optional_integer("sliding_window", 8192),
    )
    return with_layer_types(config, fields, [layer % 4 != 0 for layer in range(config.num_layers)])


def read_internlm(fields: Fields) -> DecoderConfig:
    """InternLM 1: a Llama with biases of attention's matrices."""
    bias = fields.flag("bias", True)
    return replace(read(fields), qkv_bias=bias, output_bias=bias)


def read_orion(fields: Fields) -> DecoderConfig:
    """Orion: a Llama with LayerNorm."""
    return replace(read(fields, max_position_embeddings=4096), norm="layer", norm_bias=True)


CWM_ROPE = {  # of a config.json without rope_parameters
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LLAMA = Family(
    read,
    ROTARY_FIELDS | {"attention_bias", "mlp_bias"},
    harmless={"activation": ("swiglu",)},  # of Falcon 3
)
ARCEE = Family(read_arcee, LLAMA.fields)
CWM = Family(read_cwm, LLAMA.fields | {"sliding_window", "layer_types"})
INTERNLM1 = Family(read_internlm, LLAMA.fields | {"bias"})
ORION = Family(read_orion, LLAMA.fields)
SEED_OSS = Family(read_seed_oss, LLAMA.fields | {"attention_out_bias"})
