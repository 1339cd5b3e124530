"""The model families: for each, a function from its `config.json` to a `DecoderConfig`, and its weight names.

Defaults for absent fields are those that the family's Hugging Face configuration documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ember.engine.errors import ModelError
from ember.engine.layers.rope_config import RopeConfig
from ember.engine.models.config import DecoderConfig, WeightNames

Raw = Mapping[str, Any]

LLAMA_NAMES = WeightNames(
    layer="model.layers.{}.",
    embed_tokens="model.embed_tokens",
    final_norm="model.norm",
    lm_head="lm_head",
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
)
QWEN3_NAMES = replace(LLAMA_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
OPT_NAMES = WeightNames(
    layer="model.decoder.layers.{}.",
    embed_tokens="model.decoder.embed_tokens",
    embed_positions="model.decoder.embed_positions",
    project_in="model.decoder.project_in",
    project_out="model.decoder.project_out",
    final_norm="model.decoder.final_layer_norm",
    lm_head="lm_head",
    attention_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    up="fc1",
    down="fc2",
)

ACTIVATIONS = ("silu", "relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def llama(raw: Raw) -> DecoderConfig:
    """Llama 1, 2, 3 (arXiv 2302.13971, 2307.09288, 2407.21783): RMSNorm before, rotary, gated SiLU, grouped queries."""
    bias = bool(raw.get("attention_bias", False))
    return replace(
        _rotary_decoder(raw, max_position_embeddings=2048),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )


def mistral(raw: Raw) -> DecoderConfig:
    """Mistral (arXiv 2310.06825): Llama with the same sliding window in every layer, or none."""
    config = _rotary_decoder(raw, max_position_embeddings=4096 * 32, num_kv_heads=8)
    window = _optional_int(raw, "sliding_window", 4096)
    return replace(config, sliding_windows=(window,) * config.num_layers)


def qwen2(raw: Raw) -> DecoderConfig:
    """Qwen2 and 2.5 (arXiv 2407.10671): Llama with biases on query, key and value; sliding windows in some layers."""
    config = _rotary_decoder(raw, max_position_embeddings=32768)
    return replace(config, qkv_bias=True, sliding_windows=_layer_windows(raw, config.num_layers))


def qwen3(raw: Raw) -> DecoderConfig:
    """Qwen3 (arXiv 2505.09388): Llama with RMSNorm on each query and key head; head_dim is set on its own."""
    bias = bool(raw.get("attention_bias", False))
    config = _rotary_decoder(raw, max_position_embeddings=32768, head_dim=128)
    return replace(
        config,
        names=QWEN3_NAMES,
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        sliding_windows=_layer_windows(raw, config.num_layers),
    )


def opt(raw: Raw) -> DecoderConfig:
    """OPT (arXiv 2205.01068): learned positions (table offset 2), LayerNorm, ReLU; 350m norms after and projects."""
    hidden_size, num_heads = _int(raw, "hidden_size"), _int(raw, "num_attention_heads")
    bias = bool(raw.get("enable_bias", True))
    affine = bool(raw.get("layer_norm_elementwise_affine", True))
    norm_first = bool(raw.get("do_layer_norm_before", True))
    embed_dim = _optional_int(raw, "word_embed_proj_dim", None)
    return DecoderConfig(
        architecture="",
        vocab_size=_int(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_int(raw, "ffn_dim"),
        num_layers=_int(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=_divide(hidden_size, num_heads),
        max_position_embeddings=_int(raw, "max_position_embeddings", 2048),
        names=OPT_NAMES,
        norm="layer",
        norm_eps=1e-5,
        norm_bias=affine,
        norm_affine=affine,
        norm_first=norm_first,
        final_norm=norm_first and not raw.get("_remove_final_layer_norm", False),
        activation=_activation(raw, "activation_function", "relu"),
        gated_mlp=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        position_offset=2,
        embed_dim=None if embed_dim == hidden_size else embed_dim,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", True)),
    )


FAMILIES: dict[str, Callable[[Raw], DecoderConfig]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "OPTForCausalLM": opt,
}
MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "opt": "OPTForCausalLM",
}


def _rotary_decoder(
    raw: Raw, *, max_position_embeddings: int, num_kv_heads: int | None = None, head_dim: int | None = None
) -> DecoderConfig:
    """What the Llama line of models has in common; the arguments are the family's defaults."""
    hidden_size, num_heads = _int(raw, "hidden_size"), _int(raw, "num_attention_heads")
    num_kv_heads = _optional_int(raw, "num_key_value_heads", num_kv_heads) or num_heads
    head_dim = _optional_int(raw, "head_dim", head_dim) or _divide(hidden_size, num_heads)
    _divide(num_heads, num_kv_heads)
    longest = _int(raw, "max_position_embeddings", max_position_embeddings)
    rope = rope_config(raw, head_dim, longest)
    if rope.kind == "linear":
        longest = int(longest * rope.factor)
    if rope.kind == "yarn":
        longest = max(longest, int(rope.original_max_position_embeddings * rope.factor))
    return DecoderConfig(
        architecture="",
        vocab_size=_int(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_int(raw, "intermediate_size"),
        num_layers=_int(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=longest,
        names=LLAMA_NAMES,
        norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        activation=_activation(raw, "hidden_act", "silu"),
        rope=rope,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
    )


def rope_config(raw: Raw, head_dim: int, max_position_embeddings: int) -> RopeConfig:
    """From `rope_parameters` (newer files) or `rope_theta` and `rope_scaling` (older ones); raises ModelError."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ModelError(f"rope parameters must be an object, not {given!r}")
    values: dict[str, Any] = {"rope_theta": raw.get("rope_theta"), **given}
    kind = values.get("rope_type") or values.get("type") or "default"
    share = _number(values, "partial_rotary_factor", _number(raw, "partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * share)
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise ModelError(f"partial_rotary_factor={share} turns {rotary_dim} of a head's {head_dim} dimensions")
    base = RopeConfig(rotary_dim=rotary_dim, theta=_number(values, "rope_theta", 10_000.0))
    if kind == "default":
        return base
    original = _optional_int(raw, "original_max_position_embeddings", None) or _int(
        values, "original_max_position_embeddings", max_position_embeddings
    )
    if kind == "linear":
        return replace(base, kind="linear", factor=_number(values, "factor"))
    if kind == "llama3":
        return replace(
            base,
            kind="llama3",
            factor=_number(values, "factor"),
            low_freq_factor=_number(values, "low_freq_factor"),
            high_freq_factor=_number(values, "high_freq_factor"),
            original_max_position_embeddings=original,
        )
    if kind == "yarn":
        factor = _number(values, "factor", max_position_embeddings / original)
        return replace(
            base,
            kind="yarn",
            factor=factor,
            beta_fast=_number(values, "beta_fast", 32.0),
            beta_slow=_number(values, "beta_slow", 1.0),
            truncate=bool(values.get("truncate", True)),
            attention_factor=_yarn_attention_factor(values, factor),
            original_max_position_embeddings=original,
        )
    raise ModelError(f"rope type {kind!r} is not supported; supported are default, linear, llama3, yarn")


def _yarn_attention_factor(values: Raw, factor: float) -> float:
    """YaRN's temperature, 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22), or what the file says instead."""
    if values.get("attention_factor") is not None:
        return _number(values, "attention_factor")

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if values.get("mscale") and values.get("mscale_all_dim"):
        return scale(_number(values, "mscale")) / scale(_number(values, "mscale_all_dim"))
    return scale(1.0)


def _layer_windows(raw: Raw, num_layers: int) -> tuple[int | None, ...]:
    """Qwen's windows: none unless `use_sliding_window`; which layers, by `layer_types` or `max_window_layers`."""
    window = _optional_int(raw, "sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    layer_types = raw.get("layer_types")
    if isinstance(layer_types, list) and len(layer_types) != num_layers:
        raise ModelError(f"layer_types has {len(layer_types)} entries for {num_layers} layers")
    if isinstance(layer_types, list):
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    first = _int(raw, "max_window_layers", 28)
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _int(raw: Raw, key: str, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if value is None:
        raise ModelError(f"the field {key} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelError(f"{key} must be a positive integer, not {value!r}")
    return value


def _optional_int(raw: Raw, key: str, default: int | None) -> int | None:
    """Absent means the default; null means None."""
    if key not in raw:
        return default
    return None if raw[key] is None else _int(raw, key)


def _number(raw: Raw, key: str, default: float | None = None) -> float:
    value = raw.get(key)
    value = default if value is None else value
    if value is None:
        raise ModelError(f"the field {key} is missing")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ModelError(f"{key} must be a number, not {value!r}")
    return float(value)


def _divide(total: int, parts: int) -> int:
    if total % parts:
        raise ModelError(f"{total} cannot be divided into {parts} heads")
    return total // parts


def _activation(raw: Raw, key: str, default: str) -> str:
    name = raw.get(key) or default
    if name not in ACTIVATIONS:
        raise ModelError(f"{key} {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return str(name)
