"""The fields of GGUF files' architectures whose layers mix tokens by latent attention, or by states. No torch is
imported.

Which layers have attention follows from the tensors, or from the numbers of key-value heads, 0 in the other layers.
"""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.gguf.architecture import Values
from ember.engine.description.gguf.expert_fields import deepseek_experts, qwen_moe
from ember.engine.description.gguf.facts import Facts

_SOFTMAX = 1  # of expert_gating_func


def deepseek_model(facts: Facts) -> str:
    """The class of a file of deepseek2, which has several."""
    if not facts.integer("expert_count", 0):
        return "YoutuForCausalLM"
    if facts.integer("expert_gating_func", 0) > _SOFTMAX or facts.has("exp_probs_b.bias"):
        return "DeepseekV3ForCausalLM"
    return "Mistral4ForCausalLM" if facts.flag("expert_weights_norm", False) else "DeepseekV2ForCausalLM"


def deepseek2(facts: Facts) -> Values:
    values = _latent(facts)
    if not facts.integer("expert_count", 0):
        return values
    values |= deepseek_experts(facts)
    if values["n_group"] > 1:
        values["topk_method"] = (
            "noaux_tc" if deepseek_model(facts) == "DeepseekV3ForCausalLM" else "group_limited_greedy"
        )
    return values


def minicpm3(facts: Facts) -> Values:
    """The factors are the same in all files, which do not say them."""
    return _latent(facts) | {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256}


def _latent(facts: Facts) -> Values:
    """The sizes of latent attention: of single heads in newer files too, which have those of the latent as the usual
    ones."""
    heads, rotary = max(facts.integer("attention.head_count"), 1), facts.integer("rope.dimension_count")
    key = facts.integer("attention.key_length_mla", facts.integer("attention.key_length"))
    value = facts.integer("attention.value_length", facts.integer("embedding_length") // heads)
    return {
        "kv_lora_rank": facts.integer("attention.kv_lora_rank"),
        "q_lora_rank": facts.integer("attention.q_lora_rank", 0) or None,
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": key - rotary,
        "v_head_dim": facts.integer("attention.value_length_mla", value),
        "attention_bias": False,
    }


def _types(facts: Facts, attention: str, other: str) -> list[str]:
    """The types of layers, of which those without key-value heads are the `other`."""
    heads = facts.of_each_layer("attention.head_count_kv", facts.integer("attention.head_count"))
    return [attention if count else other for count in heads]


def lfm2(facts: Facts) -> Values:
    return {
        "norm_eps": facts.number("attention.layer_norm_rms_epsilon"),
        "layer_types": _types(facts, "full_attention", "conv"),
        "conv_L_cache": facts.integer("shortconv.l_cache"),
        "conv_bias": facts.has("shortconv.conv.bias"),
        "block_auto_adjust_ff_dim": False,
    }


def lfm2_moe(facts: Facts) -> Values:
    return lfm2(facts) | {
        "num_experts": facts.integer("expert_count"),
        "moe_intermediate_size": facts.integer("expert_feed_forward_length"),
        "num_dense_layers": facts.integer("leading_dense_block_count", 0),
        "routed_scaling_factor": facts.number("expert_weights_scale", 1.0) or 1.0,
    }


def adapt_lfm2(facts: Facts, config: DecoderConfig) -> DecoderConfig:
    """The final norm has the name of a norm of embeddings, which these models do not have."""
    name = "output_norm" if facts.has("output_norm.weight") else "token_embd_norm"
    return replace(config, names=replace(config.names, final_norm=name))


def _ssd(facts: Facts) -> Values:
    """Mamba 2, with the names of Granite 4."""
    inner, heads = facts.integer("ssm.inner_size"), facts.integer("ssm.time_step_rank")
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": inner // max(heads, 1),
        "mamba_n_groups": facts.integer("ssm.group_count", 1),
        "mamba_d_state": facts.integer("ssm.state_size"),
        "mamba_d_conv": facts.integer("ssm.conv_kernel"),
        "mamba_expand": max(inner // max(facts.integer("embedding_length"), 1), 1),
        "mamba_conv_bias": facts.has("ssm_conv1d.bias"),
        "mamba_proj_bias": facts.has("ssm_in.bias"),
    }


def granite_hybrid(facts: Facts) -> Values:
    """Granite 4 and Bamba, which has the factors of a plain Llama."""
    return _ssd(facts) | {
        "layer_types": _types(facts, "attention", "mamba"),
        "position_embedding_type": "rope" if facts.flag("rope.scaling.finetuned", False) else "nope",
        "num_local_experts": facts.integer("expert_count", 0),
        "shared_intermediate_size": facts.integer(
            "expert_shared_feed_forward_length", facts.integer("feed_forward_length", 0)
        ),
    }


def falcon_h1(facts: Facts) -> Values:
    """The factors of a config.json are in the matrices."""
    return _ssd(facts) | {
        "mamba_d_ssm": facts.integer("ssm.inner_size"),
        "mamba_rms_norm": facts.has("ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "projectors_bias": facts.has("ssm_out.bias"),
    }


def nemotron_h(facts: Facts) -> Values:
    """Every layer has one part."""
    ssd, sizes = _ssd(facts), facts.of_each_layer("feed_forward_length")
    mlp = "moe" if facts.integer("expert_count", 0) else "mlp"
    kinds = _types(facts, "attention", "mamba")
    values: Values = {
        "layers_block_type": [mlp if size else kind for kind, size in zip(kinds, sizes, strict=True)],
        "layer_norm_epsilon": facts.number("attention.layer_norm_rms_epsilon"),
        "mamba_num_heads": ssd["mamba_n_heads"],
        "mamba_head_dim": ssd["mamba_d_head"],
        "n_groups": ssd["mamba_n_groups"],
        "ssm_state_size": ssd["mamba_d_state"],
        "conv_kernel": ssd["mamba_d_conv"],
        "use_conv_bias": ssd["mamba_conv_bias"],
        "use_bias": ssd["mamba_proj_bias"],
        "mlp_bias": facts.has("ffn_up.bias"),
        "time_step_min": 0.0,
    }
    if mlp == "mlp":
        return values
    latent = facts.integer("moe_latent_size", 0) or None
    shared = {"moe_shared_expert_intermediate_size": facts.integer("expert_shared_feed_forward_length")}
    return values | deepseek_experts(facts) | shared | {"moe_latent_size": latent}


def mamba2(facts: Facts) -> Values:
    ssd = _ssd(facts)
    return {
        "layer_norm_epsilon": facts.number("attention.layer_norm_rms_epsilon"),
        "num_heads": ssd["mamba_n_heads"],
        "head_dim": ssd["mamba_d_head"],
        "n_groups": ssd["mamba_n_groups"],
        "state_size": ssd["mamba_d_state"],
        "conv_kernel": ssd["mamba_d_conv"],
        "expand": ssd["mamba_expand"],
        "use_conv_bias": ssd["mamba_conv_bias"],
        "use_bias": ssd["mamba_proj_bias"],
    }


def qwen3_5(facts: Facts) -> Values:
    heads = facts.integer("ssm.time_step_rank")
    linear = [facts.in_layer(layer, "ssm_a") for layer in range(facts.num_layers)]
    return {
        "layer_types": ["linear_attention" if each else "full_attention" for each in linear],
        "linear_num_key_heads": facts.integer("ssm.group_count"),
        "linear_num_value_heads": heads,
        "linear_key_head_dim": facts.integer("ssm.state_size"),
        "linear_value_head_dim": facts.integer("ssm.inner_size") // max(heads, 1),
        "linear_conv_kernel_dim": facts.integer("ssm.conv_kernel"),
    }


def qwen3_5_moe(facts: Facts) -> Values:
    return qwen_moe(facts) | qwen3_5(facts) | {"num_experts": facts.integer("expert_count")}


def adapt_qwen3_5(facts: Facts, config: DecoderConfig) -> DecoderConfig:
    """The value heads are in another order than in checkpoints."""
    assert config.delta is not None
    return replace(config, delta=replace(config.delta, tiled=config.delta.value_heads != config.delta.key_heads))
