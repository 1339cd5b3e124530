"""Tiny random checkpoints of every family, made on the spot with transformers in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.read_config import read_config

VOCAB_SIZE = 199
EOS_TOKEN_ID = 2

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_ALTERNATING = ["full_attention", "sliding_attention", "full_attention"]
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_NTK_ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}
_QUERY_BETA = {**_YARN, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.3, "mscale": 1.0}
_LOCAL_ROPE = {
    "full_attention": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
    "mlp_bias": True,
}
_GEMMA2 = {
    "head_dim": 16,
    "query_pre_attn_scalar": 30,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 6.0,
    "sliding_window": 9,
    "attention_bias": True,
    "tie_word_embeddings": True,
}
_GEMMA3 = {
    "head_dim": 32,
    "query_pre_attn_scalar": 20,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
    "tie_word_embeddings": True,
}
_DEEPSEEK = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "routed_scaling_factor": 1.5}
_LATENT_SIZES = {
    "kv_lora_rank": 40,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 24,
    "num_key_value_heads": 4,
}
_LATENT = {**_LATENT_SIZES, **_DEEPSEEK, "n_routed_experts": 6}
_MSCALE = {**_YARN, "mscale": 0.8, "mscale_all_dim": 0.6}
_GEMMA4_TYPES = ["sliding_attention", "sliding_attention", "full_attention"]
# 31B: keys that are the values of layers with full attention, and no inputs of single layers.
_GEMMA4: dict[str, Any] = {
    "head_dim": 16,
    "global_head_dim": 32,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 7,
    "layer_types": _GEMMA4_TYPES,
    "final_logit_softcapping": 6.0,
    "tie_word_embeddings": True,
}
_GEMMA4_UNIFIED = {name: value for name, value in _GEMMA4.items() if name != "hidden_size_per_layer_input"} | {
    "num_hidden_layers": 4,
    "layer_types": _GEMMA4_TYPES[1:] * 2,
    "num_kv_shared_layers": 2,
}
# E2B: inputs of single layers, and wide MLPs in the last layers, which read the keys and values of earlier ones.
_GEMMA4_SMALL = {
    **_GEMMA4,
    "vocab_size": VOCAB_SIZE,
    "num_key_value_heads": 1,
    "num_global_key_value_heads": None,
    "attention_k_eq_v": False,
    "hidden_size_per_layer_input": 24,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "num_hidden_layers": 6,
    "layer_types": _GEMMA4_TYPES * 2,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "attention_bias": True,
}
# 26B-A4B: experts beside the MLP; keys of layers with full attention that are smaller than those with the window.
_GEMMA4_MOE = {
    **_GEMMA4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 3,
    "moe_intermediate_size": 48,
}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_DELTA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 8,
}
_CONVOLUTIONS = ["conv", "full_attention", "conv", "conv"]
_SSD = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 12}
_FALCON_H1: dict[str, Any] = {
    "head_dim": 24,
    "embedding_multiplier": 3.1,
    "lm_head_multiplier": 0.3,
    "key_multiplier": 0.4,
    "attention_in_multiplier": 0.7,
    "attention_out_multiplier": 0.9,
    "mlp_multipliers": [0.8, 0.6],
    "ssm_in_multiplier": 1.25,
    "ssm_multipliers": [0.35, 0.25, 0.3, 0.5, 0.45],
    "ssm_out_multiplier": 0.24,
}
_SHARED_EXPERT = {**_EXPERTS, "shared_expert_intermediate_size": 40}
_OPT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 2,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": 1,
    "dropout": 0.0,
}

_GPT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 60,
    "n_layer": 3,
    "n_head": 5,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": EOS_TOKEN_ID,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}
_BLOOM: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": EOS_TOKEN_ID,
}
_MPT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 64,
    "n_layers": 3,
    "n_heads": 4,
    "max_seq_len": 256,
    "eos_token_id": EOS_TOKEN_ID,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * pair for pair in range(6)],
    "long_factor": [2.0 + 0.7 * pair for pair in range(6)],
}
# Fields of every variant of a family, in place of the common ones.
_BASES = {"OPT": _OPT, "Bloom": _BLOOM, "Falcon": {**_BLOOM, "max_position_embeddings": 256}, "Mpt": _MPT}
_BASES |= dict.fromkeys(("GPT2", "GPTBigCode", "GPTJ", "CodeGen"), _GPT)

# family or variant -> (name of the model's and configuration's classes, what differs from the common part)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_mha": ("Llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True, "head_dim": 24}),
    "llama_linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3, "eos_token_id": [2, 5]}),
    "llama_yarn": ("Llama", {"rope_parameters": _YARN}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral_window": ("Mistral", {"sliding_window": 11}),
    "ministral": ("Ministral", {"sliding_window": 7, "layer_types": _ALTERNATING, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3_bias": ("Qwen3", {"head_dim": 16, "attention_bias": True, "num_key_value_heads": 1}),
    "apertus": ("Apertus", {"head_dim": 16, "rope_parameters": _LLAMA3, "attention_bias": True}),
    "cwm": ("Cwm", {"head_dim": 16, "sliding_window": 9, "layer_types": _ALTERNATING}),
    "nanochat": ("NanoChat", {"num_key_value_heads": 1, "attention_bias": True}),
    "persimmon": ("Persimmon", {}),
    "hyperclovax": ("HyperCLOVAX", {**_MULTIPLIERS, "head_dim": 24, "attention_bias": True}),
    "vaultgemma": ("VaultGemma", _GEMMA2),
    "arcee": ("Arcee", {"head_dim": 24, "mlp_bias": True}),
    "seed_oss": (
        "SeedOss",
        {
            "head_dim": 16,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "attention_out_bias": True,
            "mlp_bias": True,
        },
    ),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, "attention_bias": True, "tie_word_embeddings": True}),
    "smollm3_window": (
        "SmolLM3",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 9, "num_attention_heads": 8},
    ),
    "olmo2": ("Olmo2", {"head_dim": 16, "num_key_value_heads": 1}),
    "exaone4": ("Exaone4", {"head_dim": 16, "sliding_window": 9, "sliding_window_pattern": 2}),
    "exaone4_full": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "hunyuan_dense": ("HunYuanDenseV1", {"head_dim": 16, "attention_bias": True, "rope_parameters": _NTK_ALPHA}),
    "starcoder2": ("Starcoder2", {"sliding_window": 11, "tie_word_embeddings": True}),
    "jais2": ("Jais2", {"head_dim": 24}),
    "stablelm": ("StableLm", {"use_qkv_bias": True, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "stablelm_parallel": ("StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "cohere": ("Cohere", {"logit_scale": 0.25, "tie_word_embeddings": True}),
    "cohere_norm": ("Cohere", {"use_qk_norm": True, "attention_bias": True, "num_key_value_heads": 1}),
    "cohere2": ("Cohere2", {"sliding_window": 9, "sliding_window_pattern": 2, "tie_word_embeddings": True}),
    "cohere2_moe": (
        "Cohere2Moe",
        {
            "head_dim": 16,
            "sliding_window": 9,
            "num_experts": 5,
            "first_k_dense_replace": 1,
            "sliding_window_pattern": 2,
            "prefix_dense_intermediate_size": 80,
            "num_shared_experts": 2,
            "shared_expert_combination_strategy": "sum",
            "rms_norm_eps": None,
            "tie_word_embeddings": True,
        },
    ),
    "cohere2_moe_sigmoid": (
        "Cohere2Moe",
        {"head_dim": 16, "expert_selection_fn": "sigmoid", "norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    "ernie": ("Ernie4_5", {"head_dim": 16, "use_bias": True, "tie_word_embeddings": True}),
    "glm": ("Glm", {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "granite": ("Granite", _MULTIPLIERS),
    "helium": ("Helium", {"head_dim": 16, "num_key_value_heads": 1, "attention_bias": True}),
    "glm4": ("Glm4", {"head_dim": 16, "attention_bias": True}),
    "nemotron": ("Nemotron", {"head_dim": 24, "attention_bias": True, "mlp_bias": True}),
    "ministral3": ("Ministral3", {"head_dim": 16, "rope_parameters": _QUERY_BETA, "sliding_window": 13}),
    "olmo": ("Olmo", {"clip_qkv": 0.7}),
    "olmo3": (
        "Olmo3",
        {"sliding_window": 9, "layer_types": _ALTERNATING, "rope_parameters": _LOCAL_ROPE, "head_dim": 16},
    ),
    "internlm3": ("InternLM3", {"head_dim": 24, "attention_bias": True, "mlp_bias": True}),
    "gemma": ("Gemma", {"head_dim": 24, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", _GEMMA2),
    "gemma3": ("Gemma3", _GEMMA3),
    "gemma4": ("Gemma4", _GEMMA4),
    "gemma4_small": ("Gemma4", _GEMMA4_SMALL),
    "gemma4_moe": ("Gemma4", _GEMMA4_MOE),
    "gemma4_unified": ("Gemma4Unified", _GEMMA4_UNIFIED),
    "phi3": ("Phi3", {"sliding_window": 9}),
    "phi3_long": (
        "Phi3",
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 1,
            "rope_parameters": {**_LONGROPE, "attention_factor": 1.3},
        },
    ),
    "phi": ("Phi", {}),
    "phi_norm": ("Phi", {"qk_layernorm": True, "num_key_value_heads": 4}),
    "gpt2": ("GPT2", {"n_inner": 100}),
    "gpt2_unscaled": ("GPT2", {"scale_attn_weights": False, "initializer_range": 0.1}),
    "gpt2_by_layer": ("GPT2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt_bigcode": ("GPTBigCode", {}),
    "gpt_bigcode_heads": ("GPTBigCode", {"multi_query": False}),
    "gptj": ("GPTJ", {"rotary_dim": 8}),
    "codegen": ("CodeGen", {"rotary_dim": 6, "n_embd": 64, "n_head": 8}),
    "gpt_neo": (
        "GPTNeo",
        {
            "num_layers": 3,
            "attention_types": [[["global", "local"], 1], [["local"], 1]],
            "window_size": 9,
            "initializer_range": 0.1,
        },
    ),
    "gpt_neox": ("GPTNeoX", {"num_attention_heads": 4}),
    "gpt_neox_serial": ("GPTNeoX", {"use_parallel_residual": False, "attention_bias": False}),
    "falcon": ("Falcon", {"hidden_size": 60, "num_attention_heads": 5}),
    "falcon_new": (
        "Falcon",
        {"num_attention_heads": 4, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    ),
    "falcon_one_norm": (
        "Falcon",
        {
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "ffn_hidden_size": 96,
        },
    ),
    "falcon_alibi": ("Falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "bloom": ("Bloom", {"hidden_size": 60, "num_attention_heads": 5}),
    "bloom_normed": ("Bloom", {"apply_residual_connection_post_layernorm": True}),
    "mpt": ("Mpt", {"attn_config": {"clip_qkv": 0.8}}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            **_EXPERTS,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 9,
        },
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **_EXPERTS,
            "shared_expert_intermediate_size": 80,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 9,
        },
    ),
    "qwen3_5": ("Qwen3_5", {**_DELTA, "tie_word_embeddings": True, "linear_conv_kernel_dim": 3}),
    "lfm2": ("Lfm2", {"num_hidden_layers": 4, "layer_types": _CONVOLUTIONS, "conv_bias": True, "norm_eps": 1e-4}),
    "lfm2_moe": (
        "Lfm2Moe",
        {**_EXPERTS, "num_hidden_layers": 4, "layer_types": _CONVOLUTIONS, "num_dense_layers": 1, "conv_L_cache": 4},
    ),
    "lfm3": (
        "Lfm3",
        {
            "num_hidden_layers": 5,
            "head_dim": 16,
            "sliding_window": 9,
            "norm_eps": 1e-4,
            "conv_bias": True,
            "attention_bias": True,
            "max_position_embeddings": 256,
        },
    ),
    "lfm3_plain": (
        "Lfm3",
        {
            "num_hidden_layers": 4,
            "head_dim": 24,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "use_sandwich_norm": False,
            "use_attention_gate": False,
        },
    ),
    "granite_swa": (
        "GraniteSWA",
        {
            "sliding_window": 9,
            "num_hidden_layers": 5,
            "layer_rope_theta": [1000.0, 5e4, 0, 5e4, 1000.0],
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.22,
        },
    ),
    "granitemoe_swa": (
        "GraniteMoeSWA",
        {"sliding_window": 9, "layer_types": _ALTERNATING, "num_local_experts": 4, "attention_multiplier": 0.1},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **_SSD,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_local_experts": 4,
            "shared_intermediate_size": 80,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.22,
        },
    ),
    "granitemoehybrid_dense": (
        "GraniteMoeHybrid",
        {
            **_SSD,
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 80,
            "position_embedding_type": "rope",
            "attention_multiplier": 0.1,
            "mamba_proj_bias": True,
        },
    ),
    "bamba": ("Bamba", {**_SSD, "attn_layer_indices": [1], "mamba_conv_bias": False, "mlp_bias": True}),
    "falcon_h1": (
        "FalconH1",
        {
            **_SSD,
            **_FALCON_H1,
            "mamba_d_ssm": 96,
            "mamba_norm_before_gate": False,
            "mamba_rms_norm": True,
            "projectors_bias": True,
            "mlp_bias": True,
        },
    ),
    "falcon_h1_no_norm": (
        "FalconH1",
        {**_SSD, **_FALCON_H1, "mamba_d_ssm": None, "mamba_proj_bias": True, "attention_bias": True},
    ),
    "falcon_h1_norm_first": ("FalconH1", {**_SSD, "mamba_d_ssm": 64, "mamba_rms_norm": True, "num_hidden_layers": 2}),
    "nemotron_h": (
        "NemotronH",
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention", "mlp", "moe"],
            "head_dim": 16,
            "mamba_num_heads": 6,
            "mamba_head_dim": 20,
            "n_groups": 3,
            "ssm_state_size": 12,
            "time_step_min": 1e-6,  # transformers clamps the steps of prompts alone
            "n_routed_experts": 6,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 40,
            "routed_scaling_factor": 1.5,
            "n_group": 2,
            "use_bias": True,
            "mlp_bias": True,
        },
    ),
    "nemotron_h_latent": (
        "NemotronH",
        {
            "layers_block_type": ["moe", "full_attention", "moe"],
            "head_dim": 16,
            "num_key_value_heads": 1,
            "n_routed_experts": 6,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 80,
            "moe_latent_size": 32,
            "norm_topk_prob": False,
            "mlp_bias": True,
        },
    ),
    "jamba": (
        "Jamba",
        {
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "num_experts": 5,
            "mamba_d_state": 12,
            "mamba_dt_rank": 10,
            "mamba_proj_bias": True,
            "num_hidden_layers": 4,
        },
    ),
    "mamba": ("Mamba", {"hidden_size": 64, "state_size": 12, "use_bias": True, "expand": 3, "conv_kernel": 3}),
    "falcon_mamba": (
        "FalconMamba",
        {"hidden_size": 64, "time_step_rank": 7, "use_conv_bias": False, "mixer_rms_eps": 1e-4, "num_hidden_layers": 2},
    ),
    "mamba2": (
        "Mamba2",
        {"hidden_size": 64, "n_groups": 2, "state_size": 12, "use_bias": True, "num_heads": 8, "head_dim": 16},
    ),
    "qwen3_5_moe": ("Qwen3_5Moe", {**_DELTA, **_SHARED_EXPERT, "linear_num_value_heads": 2}),
    "qwen3_next": ("Qwen3Next", {**_DELTA, **_SHARED_EXPERT, "mlp_only_layers": [1], "attention_bias": True}),
    "llama4": (
        "Llama4",
        {
            "head_dim": 16,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "intermediate_size": 48,
            "intermediate_size_mlp": 80,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 3,
            "attention_chunk_size": 11,
            "floor_scale": 8,
            "attn_scale": 0.3,
            "rope_parameters": _LLAMA3,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": 9}),
    "phimoe": ("Phimoe", {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}),
    "phimoe_long": (
        "Phimoe",
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "rope_parameters": {
                **_LONGROPE,
                "attention_factor": 1.0,
                "short_factor": [1.0 + 0.1 * pair for pair in range(8)],
                "long_factor": [1.0 + 0.1 * pair for pair in range(8)],  # transformers never reads them
                "short_mscale": 3.0,
                "long_mscale": 1.2,
                "original_max_position_embeddings": 1,
            },
        },
    ),
    "minimax_m2": ("MiniMaxM2", {"num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 16, "rotary_dim": 8}),
    "olmoe": ("Olmoe", {"num_experts": 5, "num_experts_per_tok": 2, "num_key_value_heads": 4, "clip_qkv": 0.9}),
    "flex_olmo": ("FlexOlmo", {"num_experts": 5, "num_experts_per_tok": 2, "num_key_value_heads": 1}),
    "dots1": (
        "Dots1",
        {
            **_DEEPSEEK,
            "head_dim": 16,
            "n_routed_experts": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "sliding_window": 9,
            "max_window_layers": 2,
        },
    ),
    "solar_open": ("SolarOpen", {**_DEEPSEEK, "head_dim": 24, "n_routed_experts": 6, "n_group": 2, "topk_group": 1}),
    "exaone_moe": (
        "ExaoneMoe",
        {**_DEEPSEEK, "head_dim": 16, "num_experts": 5, "sliding_window": 9, "layer_types": _ALTERNATING},
    ),
    "hy_v3": (
        "HYV3",
        {**_EXPERTS, "head_dim": 16, "num_shared_experts": 2, "mlp_layer_types": ["sparse", "dense", "sparse"]},
    ),
    "hunyuan_moe": ("HunYuanMoEV1", {"head_dim": 16, "num_experts": 5, "moe_topk": [2, 2, 2]}),
    "mellum": (
        "Mellum",
        {
            **_EXPERTS,
            "head_dim": 16,
            "sliding_window": 9,
            "layer_types": _ALTERNATING,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "rope_parameters": {"full_attention": _YARN, "sliding_attention": _LOCAL_ROPE["sliding_attention"]},
        },
    ),
    "gpt_oss": (
        "GptOss",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9, "swiglu_limit": 1.5},
    ),
    "granitemoe": ("GraniteMoe", {k: v for k, v in _MULTIPLIERS.items() if k != "mlp_bias"} | {"num_local_experts": 4}),
    "granitemoeshared": (
        "GraniteMoeShared",
        {"num_local_experts": 4, "shared_intermediate_size": 80, "attention_multiplier": 0.1},
    ),
    "ernie_moe": (
        "Ernie4_5_Moe",
        {
            "moe_num_experts": 6,
            "moe_k": 3,
            "moe_intermediate_size": 48,
            "num_key_value_heads": 2,
            "use_bias": True,
        },
    ),
    "glm4_moe": (
        "Glm4Moe",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.5,
            "use_qk_norm": True,
            "attention_bias": True,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 16,
        },
    ),
    "deepseek_v2": (
        "DeepseekV2",
        {
            **_LATENT,
            "q_lora_rank": None,
            "topk_method": "group_limited_greedy",
            "n_group": 3,
            "topk_group": 2,
            "rope_parameters": _MSCALE,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_LATENT,
            "n_group": 3,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "rope_parameters": _MSCALE,
            "attention_bias": True,
        },
    ),
    "glm4_moe_lite": ("Glm4MoeLite", {**_LATENT, "v_head_dim": 40, "num_attention_heads": 5, "num_key_value_heads": 5}),
    "mistral4": (
        "Mistral4",
        {**_LATENT, "n_group": 3, "topk_group": 2, "rope_parameters": _QUERY_BETA | {"mscale_all_dim": 0.8}},
    ),
    "youtu": ("Youtu", _LATENT_SIZES | {"rope_interleave": False}),
    "minicpm3": ("MiniCPM3", _LATENT_SIZES | {"tie_word_embeddings": True}),
    "opt": ("OPT", {}),
    "opt_post_norm": ("OPT", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
}


def rewrite_config(directory: Path, **fields: Any) -> None:
    """Change fields of a saved config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# Together these have every feature of all variants (test_features.py), and the commonest families are among them. The
# slow tests, in Triton's interpreter, take these.
COVERING = (
    *("llama", "qwen2_window", "qwen3", "qwen3_moe", "gemma2", "gemma3", "gemma4_small", "gemma4_moe", "gpt_oss"),
    *("glm4_moe", "llama4", "opt_post_norm", "nanochat", "solar_open", "cohere_norm", "mpt", "olmo2", "phi_norm"),
    *("llama_linear", "apertus", "hyperclovax", "vaultgemma", "ministral3", "phi3_long", "gpt2_by_layer"),
    *("bloom_normed", "qwen2_moe", "phimoe", "olmoe", "deepseek_v2", "youtu", "qwen3_5", "lfm2", "bamba", "mamba2"),
    *("falcon_h1_no_norm", "falcon_h1_norm_first", "nemotron_h_latent", "jamba", "falcon_mamba", "lfm3", "mistral4"),
)


def config_class(name: str) -> Any:
    """transformers' configuration class of a name in VARIANTS, which need not have a model's class of its own."""
    import transformers

    found = getattr(transformers, model_class(name), None)
    if found is not None:  # Mistral 4 is known as a part of multimodal models alone
        transformers.AutoModelForCausalLM.register(found.config_class, found, exist_ok=True)
    return getattr(transformers, f"{name}Config") if found is None else found.config_class


def model_class(name: str) -> str:
    """The class of a family's models, by the name that its classes begin with."""
    return f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"


def tiny_fields(family: str) -> tuple[str, dict[str, Any]]:
    """The name of a family's (or variant's) classes, and the fields of its configuration."""
    name, differences = VARIANTS[family]
    return name, {**_BASES.get(name, _COMMON), **differences}


def tiny_config(family: str) -> DecoderConfig:
    """The description of a tiny model, without its weights."""
    name, fields = tiny_fields(family)
    values = json.loads(config_class(name)(**fields).to_json_string(use_diff=False))
    return read_config({**values, "architectures": [model_class(name)]})


def make_tiny(
    family: str,
    directory: str | Path,
    *,
    seed: int = 0,
    max_shard_size: str = "5GB",
    auto: str = "AutoModelForCausalLM",
    **overrides: Any,
) -> Path:
    """Save a tiny random model of a family (or variant, see VARIANTS) and return its directory. `auto`: the class of
    transformers that makes it.

    `overrides` are fields of its configuration; `dtype` is that of the saved weights (default float32).
    """
    import torch
    import transformers

    dtype = overrides.pop("dtype", torch.float32)
    name, fields = tiny_fields(family)
    fields = {"init_std" if name == "OPT" else "initializer_range": 0.3, **fields, **overrides}
    config = config_class(name)(**fields)
    torch.manual_seed(seed)
    model = getattr(transformers, auto).from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # biases are zero and norms one where a model is new: make each matter
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter_name.endswith("embed_positions.weight"):
                parameter.mul_(2.0)
            elif parameter_name.endswith("_bias"):  # of experts
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith(("e_score_correction_bias", "expert_bias", "layer_scalar")):
                buffer.add_(torch.randn_like(buffer) * 0.1)
    model.to(dtype)
    directory = Path(directory)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    is_causal = auto == "AutoModelForCausalLM"
    if is_causal and model.config.architectures != [model_class(name)]:  # InternLM 3 is a Llama in transformers
        rewrite_config(directory, architectures=[model_class(name)])
    return directory
