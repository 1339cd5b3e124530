"""Mixtral (arXiv 2401.04088), Phi-3.5-MoE (arXiv 2404.14219) and MiniMax-M2. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig, ExpertsConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_experts import MIXTRAL_NAMES, read_experts
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

NAMES = replace(LLAMA_NAMES, experts=MIXTRAL_NAMES)
MINIMAX_NAMES = replace(
    NAMES,
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    experts=replace(MIXTRAL_NAMES, correction="block_sparse_moe.e_score_correction_bias"),
)


def read_mixtral(fields: Fields) -> DecoderConfig:
    """A Mistral with 8 experts, of which a token has 2."""
    rope = RopeForm(theta=1_000_000.0)
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=131072, num_kv_heads=8, norm_eps=1e-5, rope=rope),
        names=NAMES,
        sliding_window=fields.optional_integer("sliding_window", None),
        experts=_experts(fields, count=8, per_token=2, size=14336),
    )


def read_phimoe(fields: Fields) -> DecoderConfig:
    """A Mixtral with LayerNorms and biases, whose experts are chosen by sparsemixer."""
    bias, eps = fields.flag("attention_bias", False), fields.number("router_jitter_noise", 0.01, at_least=0.0)
    return replace(
        read_mixtral(fields),
        norm="layer",
        norm_bias=True,
        qkv_bias=bias,
        output_bias=bias,
        head_bias=fields.flag("lm_head_bias", False),
        experts=replace(_experts(fields, count=16, per_token=2, size=6400), scores="sparsemixer", jitter_eps=eps),
    )


def read_minimax_m2(fields: Fields) -> DecoderConfig:
    """256 experts with sigmoid scores and a bias for the choice; norms of all queries and of all keys."""
    share = fields.integer("rotary_dim", 128) / fields.integer("head_dim", 128)
    rope = RopeForm(theta=5_000_000.0, share=share)
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=196608, num_kv_heads=8, head_dim=128, rope=rope),
        names=MINIMAX_NAMES,
        qk_norm="all",
        experts=replace(_experts(fields, count=256, per_token=8, size=1536), scores="sigmoid", correction=True),
    )


def _experts(fields: Fields, *, count: int, per_token: int, size: int) -> ExpertsConfig:
    names = "num_local_experts num_experts"
    return read_experts(fields, (names, count), ("num_experts_per_tok", per_token), ("intermediate_size", size))


_FIELDS = ROTARY_FIELDS | field_names("num_local_experts num_experts num_experts_per_tok")
MIXTRAL = Family(read_mixtral, _FIELDS | {"sliding_window"})
PHIMOE = Family(read_phimoe, MIXTRAL.fields | field_names("attention_bias lm_head_bias router_jitter_noise"))
_OF_OTHER_MINIMAX = field_names(
    "attn_type_list layernorm_full_attention_beta layernorm_linear_attention_beta layernorm_mlp_beta "
    "mlp_intermediate_size mtp_transformer_layers num_mtp_modules use_mtp shared_moe_mode max_model_len"
)
_ALWAYS: dict[str, tuple[Any, ...]] = {"qk_norm_type": ("per_layer",), "scoring_func": ("sigmoid",)}
_ALWAYS |= {"use_qk_norm": (True,), "use_routing_bias": (True,), "shared_intermediate_size": (0,)}
MINIMAX_M2 = Family(
    read_minimax_m2, _FIELDS | {"rotary_dim"}, harmless={**dict.fromkeys(_OF_OTHER_MINIMAX, ()), **_ALWAYS}
)
