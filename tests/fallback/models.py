"""Tiny random checkpoints of families that Ember does not know as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine_models.tiny import _COMMON

_EXPERTS = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_WINDOW = {"sliding_window": 9, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {  # the class -> fields beside the common ones
    "AfmoeForCausalLM": {**_EXPERTS, **_WINDOW, "num_dense_layers": 1, "num_shared_experts": 1},
    "AriaTextForCausalLM": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "AXK1ForCausalLM": {**_LATENT, **_EXPERTS, "n_routed_experts": 8, "n_group": 2, "topk_group": 1},
    "BitNetForCausalLM": {},
    "Cohere2MoeForCausalLM": {**_EXPERTS, **_WINDOW},
    "CTRLLMHeadModel": {"n_embd": 64, "n_layer": 2, "n_head": 4, "dff": 96, "n_positions": 256},
    "DiffLlamaForCausalLM": {},
    "FlintForCausalLM": {**_EXPERTS, **_WINDOW},
    "Gemma3nForCausalLM": {
        **_WINDOW,
        "num_hidden_layers": 5,
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 199,
        "altup_num_inputs": 2,
        "laurel_rank": 8,
        "intermediate_size": [112] * 5,
        "activation_sparsity_pattern": [0.0] * 5,
    },
    "GraniteSWAForCausalLM": {**_WINDOW, "sliding_window": 10},
    "JetMoeForCausalLM": {**_EXPERTS, "kv_channels": 16, "num_hidden_layers": 2},
    "ModernBertDecoderForCausalLM": {"local_attention": 18},
    "MoshiForCausalLM": {"head_dim": 16, "ffn_dim": 128},
}


def make_model(name: str, directory: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Save a tiny random model of a class of transformers and return its directory."""
    import torch
    import transformers

    model_class: Any = getattr(transformers, name)
    fields = {"initializer_range": 0.2, **_COMMON, **FAMILIES.get(name, {}), **overrides}
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases are zero and norms one where a model is new: make each matter
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return directory
