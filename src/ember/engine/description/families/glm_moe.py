"""GLM-4.5 and later with experts (arXiv 2508.06471), and families that differ from them in a few fields.

This module does not import torch.
"""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.deepseek_experts import DEEPSEEK_NAMES, after_dense, read_deepseek_experts
from ember.engine.description.families.qwen import QWEN3_NAMES
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import with_layer_types
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder

NAMES = replace(QWEN3_NAMES, experts=DEEPSEEK_NAMES)


def read(
    fields: Fields, *, max_position_embeddings: int = 131072, qkv_bias: bool = False, extra_layers: int = 1
) -> DecoderConfig:
    """Sigmoid scores, groups of experts, an MLP that computes every token, some layers without experts, and a layer
    after the last that predicts further tokens."""
    config = read_rotary_decoder(
        fields, max_position_embeddings=max_position_embeddings, num_kv_heads=8, norm_eps=1e-5, rope=RopeForm(share=0.5)
    )
    return replace(
        config,
        names=NAMES,
        qk_norm="head" if fields.flag("use_qk_norm", False) else None,
        qkv_bias=fields.flag("attention_bias", qkv_bias),
        num_extra_layers=fields.integer(
            "num_nextn_predict_layers", fields.integer("num_mtp_layers", extra_layers, at_least=0), at_least=0
        ),
        experts=read_deepseek_experts(fields, after_dense(fields, config.num_layers, 1)),
    )


def read_vision(fields: Fields) -> DecoderConfig:
    """The language model of GLM-4.5V."""
    return read(fields, max_position_embeddings=65536, qkv_bias=True, extra_layers=0)


def read_solar_open(fields: Fields) -> DecoderConfig:
    """Solar Open: experts in every layer."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=131072,
        num_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        rope=RopeForm(theta=1e6),
        intermediate=("moe_intermediate_size", 1280),
    )
    return replace(
        config,
        names=NAMES,
        qkv_bias=fields.flag("attention_bias", False),
        experts=read_deepseek_experts(fields, (True,) * config.num_layers, size=1280),
    )


def read_dots1(fields: Fields) -> DecoderConfig:
    """dots.llm1: norms of queries and keys, and a sliding window in the layers after the first ones."""
    config = read_rotary_decoder(fields, max_position_embeddings=2048, num_kv_heads=32)
    bias = fields.flag("attention_bias", False)
    config = replace(
        config,
        names=NAMES,
        qk_norm="head",
        qkv_bias=bias,
        output_bias=bias,
        sliding_window=fields.optional_integer("sliding_window", 4096),
        first_window_layer=fields.integer("max_window_layers", 62, at_least=0),
        experts=read_deepseek_experts(
            fields,
            after_dense(fields, config.num_layers, 0),
            per_token=6,
            normalised=False,
            shared=("n_shared_experts", 2),
        ),
    )
    return with_layer_types(config, fields)


_ROUTER_FIELDS = field_names(
    "n_routed_experts num_local_experts num_experts_per_tok moe_intermediate_size n_group topk_group norm_topk_prob "
    "routed_scaling_factor n_shared_experts attention_bias"
)
GLM4_MOE = Family(
    read,
    ROTARY_FIELDS
    | _ROUTER_FIELDS
    | field_names("first_k_dense_replace use_qk_norm num_nextn_predict_layers num_mtp_layers"),
)
GLM4V_MOE = Family(read_vision, GLM4_MOE.fields)
SOLAR_OPEN = Family(read_solar_open, ROTARY_FIELDS - {"intermediate_size"} | _ROUTER_FIELDS)
DOTS1 = Family(
    read_dots1,
    ROTARY_FIELDS | _ROUTER_FIELDS | field_names("first_k_dense_replace sliding_window max_window_layers layer_types"),
)
