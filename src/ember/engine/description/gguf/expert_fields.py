"""The fields about experts of GGUF files' architectures. This module does not import torch."""

from __future__ import annotations

from ember.engine.description.gguf.architecture import Values
from ember.engine.description.gguf.facts import Facts


def qwen_moe(facts: Facts) -> Values:
    hidden, used = facts.integer("feed_forward_length", 0), facts.integer("expert_used_count")
    return {
        "moe_intermediate_size": facts.integer("expert_feed_forward_length", hidden // max(used, 1)),
        "shared_expert_intermediate_size": facts.integer("expert_shared_feed_forward_length", hidden),
        "norm_topk_prob": facts.architecture != "qwen2moe",
        "qkv_bias": facts.has("attn_q.bias") or facts.has("attn_qkv.bias"),
    }


def ernie_moe(facts: Facts) -> Values:
    shared = facts.integer("expert_shared_count", 0)
    size = facts.integer("expert_feed_forward_length")
    if not shared and facts.optional("expert_shared_feed_forward_length"):
        shared = facts.integer("expert_shared_feed_forward_length") // max(size, 1)
    return {
        "moe_num_experts": facts.integer("expert_count"),
        "moe_k": facts.integer("expert_used_count"),
        "moe_intermediate_size": size,
        "moe_num_shared_experts": shared,
        "moe_layer_start_index": facts.integer("leading_dense_block_count", 0),
        "moe_layer_interval": facts.integer("interleave_moe_layer_step", 1),
    }


def deepseek_experts(facts: Facts) -> Values:
    """The fields of routers in the line of DeepSeek V3, and of an MLP that computes every token, whose size is that of
    its tensor."""
    count = facts.integer("expert_count")
    return {
        "n_routed_experts": count,
        "num_experts": count,
        "moe_intermediate_size": facts.integer("expert_feed_forward_length"),
        **dict.fromkeys(("n_shared_experts", "num_shared_experts"), facts.integer("expert_shared_count", 1)),
        "first_k_dense_replace": facts.integer("leading_dense_block_count", 0),
        "routed_scaling_factor": facts.number("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": facts.flag("expert_weights_norm", False),
        "n_group": facts.integer("expert_group_count", 1) or 1,
        "topk_group": facts.integer("expert_group_used_count", 1) or 1,
    }


def glm_moe(facts: Facts) -> Values:
    return deepseek_experts(facts) | {
        "use_qk_norm": facts.has("attn_q_norm.weight"),
        "num_nextn_predict_layers": facts.integer("nextn_predict_layers", 0),
    }


def bailing(facts: Facts) -> Values:
    has_norm, has_bias = facts.has("attn_q_norm.weight"), facts.has("attn_qkv.bias")
    return deepseek_experts(facts) | {"use_qk_norm": has_norm, "use_qkv_bias": has_bias}


def dots1(facts: Facts) -> Values:
    """Files do not say that some layers have a window, and llama.cpp has none."""
    return deepseek_experts(facts) | {"sliding_window": None, "layer_types": None}


def hunyuan_moe(facts: Facts) -> Values:
    size = facts.integer("expert_feed_forward_length")
    return {
        "num_experts": facts.integer("expert_count"),
        "moe_topk": facts.integer("expert_used_count"),
        "moe_intermediate_size": size,
        "num_shared_expert": facts.integer("expert_shared_count", 1),
        "intermediate_size": facts.integer("expert_shared_feed_forward_length", size),
    }


def llama4(facts: Facts) -> Values:
    """The sizes of chunks, and which layers have rotary positions, are the same in all files, which do not say them."""
    return {
        "intermediate_size": facts.integer("expert_feed_forward_length"),
        "intermediate_size_mlp": facts.integer("feed_forward_length"),
        "interleave_moe_layer_step": facts.integer("interleave_moe_layer_step"),
        "use_qk_norm": facts.integer("expert_count") != 128,
        "attention_chunk_size": 8192,
        "no_rope_layer_interval": 4,
        "layer_types": None,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    }


def minimax(facts: Facts) -> Values:
    return {"intermediate_size": facts.integer("expert_feed_forward_length", facts.integer("feed_forward_length", 0))}
