"""Gemma 4 in GGUF files. This module does not import torch."""

from __future__ import annotations

from ember.engine.description.gguf.architecture import Values
from ember.engine.description.gguf.facts import Facts


def gemma4(facts: Facts) -> Values:
    """Layers with full attention have other heads than those with the window, of which the metadata has the sizes with
    the ending _swa."""
    windowed = facts.array("attention.sliding_window_pattern") or []
    layers, heads = facts.num_layers, facts.of_each_layer("attention.head_count_kv")
    sizes = facts.of_each_layer("feed_forward_length")
    shared, first = facts.integer("attention.shared_kv_layers", 0), sizes[0]
    full = [layer for layer in range(layers) if not (layer < len(windowed) and windowed[layer])]
    local = [layer for layer in range(layers) if layer not in full]
    own = [layer for layer in full if layer < layers - shared]
    is_shared = any(not facts.in_layer(layer, "attn_v.weight") for layer in own)
    experts, table = facts.integer("expert_count", 0), facts.tensors.get("per_layer_token_embd.weight")
    values: Values = {
        "head_dim": facts.integer("attention.key_length_swa"),
        "global_head_dim": facts.integer("attention.key_length"),
        "num_key_value_heads": heads[local[0]] if local else heads[0],
        "num_global_key_value_heads": heads[full[0]] if full and is_shared else None,
        "attention_k_eq_v": is_shared,
        "num_kv_shared_layers": shared,
        "intermediate_size": first,
        "use_double_wide_mlp": sizes[-1] == 2 * first,
        "hidden_size_per_layer_input": facts.integer("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": table.shape[0] if table is not None else None,
        "final_logit_softcapping": facts.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": _rope(facts),
        "enable_moe_block": experts > 0,
    }
    if experts:
        values |= {
            "num_experts": experts,
            "top_k_experts": facts.integer("expert_used_count"),
            "moe_intermediate_size": facts.integer("expert_feed_forward_length"),
        }
    return values


def _rope(facts: Facts) -> Values:
    """The divisors of the frequencies say which pairs are rotated: they are 1 for those, and very large for others."""
    divisors = facts.factors("rope_freqs.weight")
    share = 1.0 if not divisors else sum(divisor == 1.0 for divisor in divisors) / len(divisors)
    theta = facts.number("rope.freq_base", 1_000_000.0)
    return {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": share, "rope_theta": theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": facts.number("rope.freq_base_swa", 10_000.0)},
    }
