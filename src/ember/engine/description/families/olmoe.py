"""OLMoE (arXiv 2409.02060). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_experts import EXPERT_NAMES, read_experts
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

NAMES = replace(LLAMA_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm", experts=EXPERT_NAMES)


def read(fields: Fields) -> DecoderConfig:
    """64 experts, of which a token has 8; norms of all queries and of all keys."""
    bias = fields.flag("attention_bias", False)
    if fields.values.get("clip_qkv") is not None:
        raise fields.error("clip_qkv", "null: clipping after the norms is not supported")
    count, per_token = ("num_experts num_local_experts", 64), ("num_experts_per_tok", 8)
    experts = read_experts(fields, count, per_token, ("intermediate_size", 2048))
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=4096, norm_eps=1e-5),
        names=NAMES,
        qk_norm="all",
        qkv_bias=bias,
        output_bias=bias,
        experts=replace(experts, normalised=fields.flag("norm_topk_prob", False)),
    )


OLMOE = Family(
    read,
    ROTARY_FIELDS
    | field_names("attention_bias clip_qkv num_experts num_local_experts num_experts_per_tok norm_topk_prob"),
)
