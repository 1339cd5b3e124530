"""Hunyuan's models, dense and with experts. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig, ExpertsConfig
from ember.engine.description.deepseek_experts import DEEPSEEK_NAMES, read_deepseek_experts, sparse_layers
from ember.engine.description.families import llama
from ember.engine.description.families.qwen import QWEN3_NAMES
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_experts import EXPERT_NAMES
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

HUNYUAN_NAMES = replace(LLAMA_NAMES, query_norm="self_attn.query_layernorm", key_norm="self_attn.key_layernorm")

MOE_NAMES = replace(
    EXPERT_NAMES,
    router="mlp.gate.wg",
    shared_gate="mlp.shared_mlp.gate_proj",
    shared_up="mlp.shared_mlp.up_proj",
    shared_down="mlp.shared_mlp.down_proj",
)
V3_NAMES = replace(
    QWEN3_NAMES,
    experts=replace(
        DEEPSEEK_NAMES,
        router="mlp.router.gate",
        correction="mlp.expert_bias",
        shared_gate="mlp.shared_mlp.gate_proj",
        shared_up="mlp.shared_mlp.up_proj",
        shared_down="mlp.shared_mlp.down_proj",
    ),
)


def read(fields: Fields) -> DecoderConfig:
    """A Llama with norms of each query and key head after their rotation, whose base `alpha` may stretch."""
    bias = fields.flag("attention_bias", False)
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=2048, norm_eps=1e-5, rope=RopeForm(reads_alpha=True)),
        names=HUNYUAN_NAMES,
        qk_norm="head",
        rope_before_norm=True,
        qkv_bias=bias,
        output_bias=bias,
    )


def read_moe(fields: Fields) -> DecoderConfig:
    """A Hunyuan decoder with experts, and an MLP that computes every token. Files may have numbers for each layer."""
    config = read(fields)
    size = _for_all_layers(fields, "moe_intermediate_size", config.intermediate_size)
    experts = ExpertsConfig(
        count=_for_all_layers(fields, "num_experts", 1),
        count_field="num_experts",
        intermediate_size=size,
        intermediate_field="intermediate_size",
        per_token=_for_all_layers(fields, "moe_topk", 1),
        wide_router=True,
        shared_size=config.intermediate_size * _for_all_layers(fields, "num_shared_expert", 1),
        shared_field="intermediate_size",
    )
    if experts.per_token > experts.count:
        raise fields.error("moe_topk", f"at most num_experts={experts.count}")
    return replace(config, names=replace(HUNYUAN_NAMES, experts=MOE_NAMES), experts=experts)


def read_v3(fields: Fields) -> DecoderConfig:
    """Hunyuan 3: experts in the line of DeepSeek V3 in most layers, norms of queries and keys before their rotation."""
    config = llama.read(
        fields,
        max_position_embeddings=131072,
        num_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        rope=RopeForm(theta=11_158_840.0),
    )
    layers = sparse_layers(fields, tuple(layer > 0 for layer in range(config.num_layers)))
    experts = read_deepseek_experts(
        fields,
        layers,
        count=("num_experts num_local_experts", 192),
        size=1536,
        scale=("router_scaling_factor", 2.826),
        shared=("num_shared_experts", 1),
    )
    return replace(config, names=V3_NAMES, qk_norm="head", experts=experts)


def _for_all_layers(fields: Fields, name: str, default: int) -> int:
    """A number, or a list of equal numbers, one for each layer."""
    value = fields.values.get(name)
    if isinstance(value, list) and value and all(each == value[0] for each in value):
        return Fields({name: value[0]}, fields.prefix).integer(name)
    return fields.integer(name, default)


# Of other models and tasks: images, classification, caches that layers share.
_UNUSED = field_names(
    "im_start_id im_end_id im_newline_id text_start_id text_end_id mask_init_id org_vocab_size class_num pool_type "
    "dense_list attention_head_dim cla_share_factor pad_id"
)
_ALWAYS = {"use_qk_norm": (True,), "use_rotary_pos_emb": (True,), "norm_type": ("rms",), "use_cla": (False,)}
_NEVER = {"add_classification_head": (False,), "mlp_bias": (False,)}
_ONE: dict[str, tuple[Any, ...]] = {"num_experts": (1,), "num_shared_expert": (1,)}  # the MLP
HUNYUAN_DENSE = Family(
    read, ROTARY_FIELDS | {"attention_bias"}, harmless={**dict.fromkeys(_UNUSED, ()), **_ALWAYS, **_NEVER, **_ONE}
)
HUNYUAN_MOE = Family(
    read_moe,
    HUNYUAN_DENSE.fields | field_names("num_experts moe_topk moe_intermediate_size num_shared_expert"),
    harmless={
        **dict.fromkeys(_UNUSED, ()),
        **_ALWAYS,
        **_NEVER,
        "num_local_experts": (),
        "num_experts_per_tok": (),
        "use_mixed_mlp_moe": (True,),
        "moe_layer_num_skipped": (0,),
        "moe_drop_tokens": (False,),
        "norm_topk_prob": (True,),
        "moe_random_routing_dropped_token": (False,),
        "group_limited_greedy": (False,),
        "routed_scaling_factor": (1.0,),
    },
)
HUNYUAN_V3 = Family(
    read_v3,
    llama.LLAMA.fields
    | field_names(
        "mlp_layer_types num_experts num_local_experts num_experts_per_tok moe_intermediate_size num_shared_experts "
        "router_scaling_factor n_group topk_group norm_topk_prob"
    ),
    harmless={"enable_moe_fp32_combine": (True, False)},
)
