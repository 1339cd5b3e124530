"""GLM-4.5 and later with experts (arXiv 2508.06471). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_experts import EXPERT_NAMES, read_experts
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder
from ember.engine.errors import ModelError

NAMES = replace(
    LLAMA_NAMES,
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    experts=replace(
        EXPERT_NAMES,
        correction="mlp.gate.e_score_correction_bias",
        shared_gate="mlp.shared_experts.gate_proj",
        shared_up="mlp.shared_experts.up_proj",
        shared_down="mlp.shared_experts.down_proj",
    ),
)


def read(
    fields: Fields, *, max_position_embeddings: int = 131072, qkv_bias: bool = False, extra_layers: int = 1
) -> DecoderConfig:
    """Sigmoid scores, groups of experts, an MLP that computes every token, some layers without experts, and a layer
    after the last that predicts further tokens."""
    config = read_rotary_decoder(
        fields, max_position_embeddings=max_position_embeddings, num_kv_heads=8, norm_eps=1e-5, rope=RopeForm(share=0.5)
    )
    experts = read_experts(
        fields, ("n_routed_experts num_local_experts", 128), ("num_experts_per_tok", 8), ("moe_intermediate_size", 1408)
    )
    groups, chosen = fields.integer("n_group", 1), fields.integer("topk_group", 1)
    if experts.count % groups or chosen > groups:
        raise ModelError(
            f"n_group={groups} must divide n_routed_experts={experts.count}, and topk_group={chosen} be at most n_group"
        )
    dense = fields.integer("first_k_dense_replace", 1, at_least=0)
    if dense >= config.num_layers:
        raise ModelError(
            f"first_k_dense_replace={dense} leaves no layer of num_hidden_layers={config.num_layers} with experts"
        )
    return replace(
        config,
        names=NAMES,
        qk_norm="head" if fields.flag("use_qk_norm", False) else None,
        qkv_bias=fields.flag("attention_bias", qkv_bias),
        num_extra_layers=fields.integer(
            "num_nextn_predict_layers", fields.integer("num_mtp_layers", extra_layers, at_least=0), at_least=0
        ),
        experts=replace(
            experts,
            layers=tuple(layer >= dense for layer in range(config.num_layers)),
            scores="sigmoid",
            normalised=fields.flag("norm_topk_prob", True),
            scale=fields.number("routed_scaling_factor", 1.0),
            wide_router=True,
            correction=True,
            groups=groups,
            groups_per_token=chosen,
            shared_size=fields.integer("n_shared_experts", 1) * experts.intermediate_size,
            shared_field="n_shared_experts * moe_intermediate_size",
        ),
    )


def read_vision(fields: Fields) -> DecoderConfig:
    """The language model of GLM-4.5V, whose rotary positions are partial as in GLM-4.5."""
    return read(fields, max_position_embeddings=65536, qkv_bias=True, extra_layers=0)


GLM4_MOE = Family(
    read,
    ROTARY_FIELDS
    | field_names(
        "n_routed_experts num_local_experts num_experts_per_tok moe_intermediate_size n_group topk_group "
        "first_k_dense_replace use_qk_norm attention_bias num_nextn_predict_layers num_mtp_layers norm_topk_prob "
        "routed_scaling_factor n_shared_experts"
    ),
)
GLM4V_MOE = Family(read_vision, GLM4_MOE.fields)
