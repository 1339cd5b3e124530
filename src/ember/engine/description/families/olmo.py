"""OLMo 1 and 2 (arXiv 2402.00838, 2501.00656). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

OLMO2_NAMES = replace(
    LLAMA_NAMES,
    attention_norm="post_attention_layernorm",
    mlp_norm="post_feedforward_layernorm",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
)


def read_olmo2(fields: Fields) -> DecoderConfig:
    """A Llama with norms of the outputs of attention and MLP in place of their inputs, and norms of all queries and of
    all keys."""
    bias = fields.flag("attention_bias", False)
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=2048, norm_eps=1e-5),
        names=OLMO2_NAMES,
        wiring="output_norm",
        qk_norm="all",
        qkv_bias=bias,
        output_bias=bias,
    )


OLMO2 = Family(read_olmo2, ROTARY_FIELDS | {"attention_bias"})
