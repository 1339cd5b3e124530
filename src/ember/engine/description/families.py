"""The model families: for each, a function from its `config.json` to a `DecoderConfig`, and its weight names.

Defaults for absent fields are those that the family's Hugging Face configuration documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ember.engine.description import known_fields
from ember.engine.description.config import DecoderConfig, WeightNames
from ember.engine.description.fields import MAX_INTEGER, Fields, listed, shown
from ember.engine.description.rope_config import RopeConfig
from ember.engine.errors import ModelError

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
_MAX_FACTOR = 1e6  # by which a context may be stretched


def llama(fields: Fields) -> DecoderConfig:
    """Llama 1, 2, 3 (arXiv 2302.13971, 2307.09288, 2407.21783): RMSNorm before, rotary, gated SiLU, grouped queries."""
    bias = fields.flag("attention_bias", False)
    return replace(
        _rotary_decoder(fields, max_position_embeddings=2048),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def mistral(fields: Fields) -> DecoderConfig:
    """Mistral (arXiv 2310.06825): Llama with the same sliding window in every layer, or none. With `layer_types`, as
    Ministral has them, the window is that of the layers which are named so."""
    config = _rotary_decoder(fields, max_position_embeddings=4096 * 32, num_kv_heads=8)
    window = fields.optional_integer("sliding_window", 4096)
    return _with_layer_types(replace(config, sliding_window=window), fields)


def qwen2(fields: Fields) -> DecoderConfig:
    """Qwen2 and 2.5 (arXiv 2407.10671): Llama with biases on query, key and value; sliding windows in some layers."""
    return replace(_with_qwen_windows(_rotary_decoder(fields, max_position_embeddings=32768), fields), qkv_bias=True)


def qwen3(fields: Fields) -> DecoderConfig:
    """Qwen3 (arXiv 2505.09388): Llama with RMSNorm on each query and key head; head_dim is set on its own."""
    bias = fields.flag("attention_bias", False)
    config = _rotary_decoder(fields, max_position_embeddings=32768, head_dim=128)
    config = replace(config, names=QWEN3_NAMES, qk_norm=True, qkv_bias=bias, output_bias=bias)
    return _with_qwen_windows(config, fields)


def opt(fields: Fields) -> DecoderConfig:
    """OPT (arXiv 2205.01068): learned positions (table offset 2), LayerNorm, ReLU; 350m norms after and projects."""
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    bias = fields.flag("enable_bias", True)
    affine = fields.flag("layer_norm_elementwise_affine", True)
    norm_first = fields.flag("do_layer_norm_before", True)
    embed_dim = fields.optional_integer("word_embed_proj_dim", None)
    return DecoderConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("ffn_dim"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=_divide("hidden_size", hidden_size, num_heads),
        max_position_embeddings=fields.integer("max_position_embeddings", 2048),
        names=OPT_NAMES,
        norm="layer",
        norm_eps=1e-5,
        norm_bias=affine,
        norm_affine=affine,
        norm_first=norm_first,
        final_norm=norm_first and not fields.flag("_remove_final_layer_norm", False),
        activation=fields.one_of("activation_function", "relu", ACTIVATIONS),
        intermediate_field="ffn_dim",
        gated_mlp=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        position_offset=2,
        embed_dim=None if embed_dim == hidden_size else embed_dim,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
    )


class Family(NamedTuple):
    """How a family's config.json is read, and the names of all fields that may be read of it."""

    read: Callable[[Fields], DecoderConfig]
    fields: frozenset[str]


_MISTRAL = Family(mistral, known_fields.MISTRAL)
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(llama, known_fields.LLAMA),
    "MistralForCausalLM": _MISTRAL,
    "MinistralForCausalLM": _MISTRAL,
    "Qwen2ForCausalLM": Family(qwen2, known_fields.QWEN2),
    "Qwen3ForCausalLM": Family(qwen3, known_fields.QWEN3),
    "OPTForCausalLM": Family(opt, known_fields.OPT),
}
MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral": "MinistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "opt": "OPTForCausalLM",
}


def _rotary_decoder(
    fields: Fields, *, max_position_embeddings: int, num_kv_heads: int | None = None, head_dim: int | None = None
) -> DecoderConfig:
    """What the Llama line of models has in common; the arguments are the family's defaults."""
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    num_kv_heads = fields.optional_integer("num_key_value_heads", num_kv_heads) or num_heads
    head_dim = fields.optional_integer("head_dim", head_dim) or _divide("hidden_size", hidden_size, num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(f"num_attention_heads={num_heads} must be a multiple of num_key_value_heads={num_kv_heads}")
    longest = fields.integer("max_position_embeddings", max_position_embeddings)
    rope = rope_config(fields, head_dim, longest)
    if rope.kind == "linear":
        longest = max(int(longest * rope.factor), 1)
    if rope.kind == "yarn":
        longest = max(longest, int(rope.original_max_position_embeddings * rope.factor))
    longest = min(longest, MAX_INTEGER)
    return DecoderConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=longest,
        names=LLAMA_NAMES,
        norm_eps=fields.number("rms_norm_eps", 1e-6, at_least=0.0),
        activation=fields.one_of("hidden_act", "silu", ACTIVATIONS),
        rope=rope,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
    )


def rope_config(fields: Fields, head_dim: int, max_position_embeddings: int) -> RopeConfig:
    """From `rope_parameters` (newer files) or `rope_theta` and `rope_scaling` (older ones, which win where a file has
    both, as in transformers); raises ModelError."""
    name = "rope_scaling" if fields.mapping("rope_scaling") else "rope_parameters"
    given = fields.mapping(name)
    own = {key: fields.values.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    rope = Fields({**own, **given}, f"{name}." if given else "")
    for key, value in given.items():
        if isinstance(value, dict):
            raise rope.error(key, "a number or a word, the same for all layers")
    other = fields.mapping("rope_parameters")
    if name == "rope_scaling" and other and other != given:
        fields.warnings.append("it has both rope_scaling and rope_parameters, which differ: rope_scaling holds")
    kind = rope.text("rope_type") or rope.text("type") or "default"
    if kind not in known_fields.ROPE:
        known = ", ".join(known_fields.ROPE)
        raise ModelError(f"{name}: the rope type {shown(kind)} is not supported; supported are {known}")
    if unread := rope.unread(known_fields.ROPE[kind]):
        fields.warnings.append(f"{listed(unread)} has no meaning for rotary positions of the kind {kind}")
    share = rope.number("partial_rotary_factor", 1.0, above=0.0)
    rotary_dim = int(head_dim * share)
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise ModelError(f"partial_rotary_factor={share:g} turns {rotary_dim} of a head's {head_dim} dimensions")
    base = RopeConfig(rotary_dim=rotary_dim, theta=rope.number("rope_theta", 10_000.0, above=0.0))
    if kind == "default":
        return base
    original = fields.optional_integer("original_max_position_embeddings", None) or rope.integer(
        "original_max_position_embeddings", max_position_embeddings
    )
    if kind == "linear":
        return replace(base, kind="linear", factor=rope.number("factor", above=0.0, at_most=_MAX_FACTOR))
    if kind == "llama3":
        low = rope.number("low_freq_factor", above=0.0)
        return replace(
            base,
            kind="llama3",
            factor=rope.number("factor", above=0.0, at_most=_MAX_FACTOR),
            low_freq_factor=low,
            high_freq_factor=rope.number("high_freq_factor", above=low),
            original_max_position_embeddings=original,
        )
    factor = rope.number("factor", max_position_embeddings / original, above=0.0, at_most=_MAX_FACTOR)
    if base.theta <= 1:
        raise rope.error("rope_theta", "a number above 1 for yarn")
    return replace(
        base,
        kind="yarn",
        factor=factor,
        beta_fast=rope.number("beta_fast", 32.0, above=0.0),
        beta_slow=rope.number("beta_slow", 1.0, above=0.0),
        truncate=rope.flag("truncate", True),
        attention_factor=_yarn_attention_factor(rope, factor),
        original_max_position_embeddings=original,
    )


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """YaRN's temperature, 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22), or what the file says instead."""
    if rope.values.get("attention_factor") is not None:
        return rope.number("attention_factor", above=0.0)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        return scale(rope.number("mscale", at_least=0.0)) / scale(rope.number("mscale_all_dim", at_least=0.0))
    return scale(1.0)


LAYER_TYPES = {"full_attention": False, "attention": False, "sliding_attention": True}  # whether it has a window


def _with_layer_types(config: DecoderConfig, fields: Fields) -> DecoderConfig:
    """The windows layer by layer, where `layer_types` says so."""
    if fields.values.get("layer_types") is None:
        return config
    kinds = fields.names("layer_types")
    if len(kinds) != config.num_layers:
        raise ModelError(f"layer_types has {len(kinds)} entries for num_hidden_layers={config.num_layers}")
    for kind in dict.fromkeys(kinds):
        if kind not in LAYER_TYPES:
            known = ", ".join(LAYER_TYPES)
            raise ModelError(f"layer_types: {shown(kind)} is not supported here; supported are {known}")
    has_window = tuple(LAYER_TYPES[kind] for kind in kinds)
    if any(has_window) and config.sliding_window is None:
        raise ModelError("layer_types has sliding_attention, but sliding_window is null, or use_sliding_window false")
    return replace(config, windowed_layers=has_window)


def _with_qwen_windows(config: DecoderConfig, fields: Fields) -> DecoderConfig:
    """Qwen's windows: none unless `use_sliding_window`; which layers, by `layer_types` or `max_window_layers`."""
    uses_window = fields.flag("use_sliding_window", False)
    window = fields.optional_integer("sliding_window", 4096)
    first = fields.integer("max_window_layers", 28, at_least=0)
    config = replace(config, sliding_window=window if uses_window else None, first_window_layer=first)
    return _with_layer_types(config, fields)


def _divide(name: str, total: int, heads: int) -> int:
    if total % heads:
        raise ModelError(f"{name}={total} cannot be divided into {heads} heads (num_attention_heads)")
    return total // heads
