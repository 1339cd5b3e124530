"""OLMoE (arXiv 2409.02060) and FlexOlmo (arXiv 2507.07024). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families.olmo import read_olmo2
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_experts import EXPERT_NAMES, read_experts
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

NAMES = replace(LLAMA_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm", experts=EXPERT_NAMES)


def read(fields: Fields) -> DecoderConfig:
    """64 experts, of which a token has 8; norms of all queries and of all keys."""
    bias = fields.flag("attention_bias", False)
    count, per_token = ("num_experts num_local_experts", 64), ("num_experts_per_tok", 8)
    experts = read_experts(fields, count, per_token, ("intermediate_size", 2048))
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=4096, norm_eps=1e-5),
        names=NAMES,
        qk_norm="all",
        qkv_clip=fields.optional_number("clip_qkv", None, above=0.0),
        clips_after_norm=fields.values.get("clip_qkv") is not None,
        qkv_bias=bias,
        output_bias=bias,
        experts=replace(experts, normalised=fields.flag("norm_topk_prob", False)),
    )


def read_flex(fields: Fields) -> DecoderConfig:
    """OLMo 2 with experts in every layer."""
    config = read_olmo2(fields, RopeForm(theta=500_000.0), max_position_embeddings=4096, norm_eps=1e-6)
    count, per_token = ("num_experts num_local_experts", 7), ("num_experts_per_tok", 5)
    experts = read_experts(fields, count, per_token, ("intermediate_size", 11008))
    return replace(
        config,
        names=replace(config.names, experts=EXPERT_NAMES),
        experts=replace(experts, normalised=fields.flag("norm_topk_prob", False)),
    )


OLMOE = Family(
    read,
    ROTARY_FIELDS
    | field_names("attention_bias clip_qkv num_experts num_local_experts num_experts_per_tok norm_topk_prob"),
)
FLEX_OLMO = Family(read_flex, OLMOE.fields - {"clip_qkv"})
