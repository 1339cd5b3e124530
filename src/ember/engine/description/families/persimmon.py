"""Persimmon. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

NAMES = replace(
    LLAMA_NAMES,
    final_norm="model.final_layernorm",
    qkv="self_attn.query_key_value",
    qkv_order="heads",
    output="self_attn.dense",
    query_norm="self_attn.q_layernorm",
    key_norm="self_attn.k_layernorm",
    gate=None,
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
)


def read(fields: Fields) -> DecoderConfig:
    """LayerNorm, also of query and key heads; partial rotary positions; a plain MLP with squared ReLU; biases."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=16384,
        norm_eps=1e-5,
        norm_eps_field="layer_norm_eps",
        activation="relu2",
        rope=RopeForm(share=0.5),
    )
    return replace(
        config,
        names=NAMES,
        num_kv_heads=config.num_heads,
        norm="layer",
        norm_bias=True,
        gated_mlp=False,
        qk_norm="layer_bias" if fields.flag("qk_layernorm", True) else None,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


PERSIMMON = Family(read, ROTARY_FIELDS - {"rms_norm_eps"} | {"layer_norm_eps", "qk_layernorm"})
