"""gpt-oss (arXiv 2508.10925). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.read_experts import read_experts
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import ExpertNames

GPT_OSS_EXPERTS = ExpertNames(
    router="mlp.router",
    gate_up="mlp.experts.gate_up_proj",
    down="mlp.experts.down_proj",
    alternates=True,
    transposed=True,
)
NAMES = replace(LLAMA_NAMES, sinks="self_attn.sinks", experts=GPT_OSS_EXPERTS)
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def read(fields: Fields) -> DecoderConfig:
    """Experts with biases and a clamped SwiGLU, attention sinks, and a window in every other layer."""
    bias = fields.flag("attention_bias", True)
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=131072,
        num_kv_heads=8,
        head_dim=64,
        norm_eps=1e-5,
        rope=RopeForm(theta=150_000.0, absent=_ROPE),
    )
    experts = read_experts(
        fields, ("num_local_experts num_experts", 128), ("num_experts_per_tok", 4), ("intermediate_size", 2880)
    )
    config = replace(
        config,
        names=NAMES,
        attention_sinks=True,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        swiglu_limit=fields.number("swiglu_limit", 7.0, above=0.0),
        swiglu_alpha=fields.number("swiglu_alpha", 1.702),
        sliding_window=fields.optional_integer("sliding_window", 128),
        experts=replace(experts, router_bias=True),
    )
    return with_layer_types(config, fields, every_nth(2, False, config.num_layers))


GPT_OSS = Family(
    read,
    ROTARY_FIELDS
    | field_names("num_local_experts num_experts num_experts_per_tok sliding_window layer_types attention_bias")
    | field_names("swiglu_limit swiglu_alpha"),
    harmless={"experts_per_token": (), "initial_context_length": ()},
)
