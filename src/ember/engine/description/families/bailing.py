"""Ling 2 and Ring 2 (arXiv 2510.22115). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.classic_decoder import must_be
from ember.engine.description.config import DecoderConfig
from ember.engine.description.deepseek_experts import DEEPSEEK_NAMES, after_dense, read_deepseek_experts
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

NAMES = replace(
    LLAMA_NAMES,
    embed_tokens="model.word_embeddings",
    qkv="attention.query_key_value",
    output="attention.dense",
    query_norm="attention.query_layernorm",
    key_norm="attention.key_layernorm",
    experts=replace(DEEPSEEK_NAMES, correction="mlp.gate.expert_bias"),
)


def read(fields: Fields) -> DecoderConfig:
    """GLM-4.5 (`families.glm_moe`) with query, key and value in one matrix, and other names."""
    config = read_rotary_decoder(
        fields, max_position_embeddings=32768, head_dim=128, rope=RopeForm(theta=600_000.0, share=0.5)
    )
    fields.one_of("score_function", "sigmoid", ("sigmoid",))
    must_be(fields, "moe_router_enable_expert_bias", True)
    experts = read_deepseek_experts(
        fields,
        after_dense(fields, config.num_layers, 1),
        count=("num_experts", 256),
        size=512,
        scale=("routed_scaling_factor", 2.5),
        shared=("num_shared_experts", 1),
        groups=(8, 4),
    )
    name = "moe_shared_expert_intermediate_size"
    if fields.values.get(name) is not None:
        number = experts.shared_size // experts.intermediate_size
        experts = replace(
            experts, shared_size=number * fields.integer(name), shared_field=f"num_shared_experts * {name}"
        )
    return replace(
        config,
        names=NAMES,
        qk_norm="head" if fields.flag("use_qk_norm", True) else None,
        qkv_bias=fields.flag("use_qkv_bias", False),
        output_bias=fields.flag("use_bias", False),
        num_extra_layers=fields.integer("num_nextn_predict_layers", 0, at_least=0),
        experts=experts,
    )


BAILING_V2 = Family(
    read,
    ROTARY_FIELDS
    | field_names(
        "score_function moe_router_enable_expert_bias use_qk_norm use_qkv_bias use_bias num_nextn_predict_layers "
        "first_k_dense_replace num_experts num_experts_per_tok moe_intermediate_size num_shared_experts norm_topk_prob "
        "routed_scaling_factor n_group topk_group moe_shared_expert_intermediate_size"
    ),
    harmless={
        **dict.fromkeys(
            field_names("auto_map rotary_dim router_dtype output_dropout mtp_loss_scaling_factor max_window_layers"), ()
        ),
        "use_rmsnorm": (True,),
        "use_sliding_window": (False,),
    },
)
