"""Gemma 4, with and without experts. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig, ExpertsConfig
from ember.engine.description.families.gemma import GEMMA3_NAMES
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields, listed, shown
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.read_rope import ROPE_FIELDS, RopeForm, read_local_rope, read_rope
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import ExpertNames
from ember.engine.errors import ModelError

NAMES = replace(
    GEMMA3_NAMES,
    layer_scalar="layer_scalar",
    layer_table="model.embed_tokens_per_layer",
    layer_projection="model.per_layer_model_projection",
    layer_projection_norm="model.per_layer_projection_norm",
    layer_gate="per_layer_input_gate",
    layer_output="per_layer_projection",
    layer_output_norm="post_per_layer_input_norm",
    unused_kv=tuple(f"self_attn.{name}." for name in ("k_proj", "v_proj", "k_norm", "v_norm")),
    experts=ExpertNames(
        router="router.proj",
        gate_up="experts.gate_up_proj",
        down="experts.down_proj",
        router_scale="router.scale",
        expert_scales="router.per_expert_scale",
        mlp_output_norm="post_feedforward_layernorm_1",
        input_norm="pre_feedforward_layernorm_2",
        output_norm="post_feedforward_layernorm_2",
    ),
)
_FULL_ROPE = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0}


def read(fields: Fields) -> DecoderConfig:
    """The models with inputs of single layers (E2B, E4B), with experts beside the MLP (26B-A4B), or with neither."""
    config = read_unified(fields, max_position_embeddings=131072, sliding_window=512)
    rows, name = fields.integer("vocab_size_per_layer_input", 262144), "hidden_size_per_layer_input"
    size = 0 if fields.values.get(name, 0) is None else fields.integer(name, 256, at_least=0)
    if size and rows < config.vocab_size:
        raise ModelError(f"vocab_size_per_layer_input={rows} is less than vocab_size={config.vocab_size}")
    experts = _read_experts(fields) if fields.flag("enable_moe_block", False) else None
    return replace(config, layer_input_size=size, layer_input_vocab_size=rows if size else 0, experts=experts)


def read_unified(fields: Fields, *, max_position_embeddings: int = 262144, sliding_window: int = 1024) -> DecoderConfig:
    """What all models have in common. Layers with full attention have other heads than those with the window, and
    values that may be their keys. The last layers may have no keys and values of their own."""
    if fields.values.get("use_bidirectional_attention") not in (None, False, "vision"):  # "vision": not of text
        raise fields.error("use_bidirectional_attention", "null or 'vision': only causal models generate text")
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=max_position_embeddings,
        num_kv_heads=4,
        head_dim=256,
        activation_field="hidden_activation",
        activation="gelu_pytorch_tanh",
        reads_rope=False,
        tie_word_embeddings=True,
    )
    config = replace(config, sliding_window=fields.integer("sliding_window", sliding_window))
    config = with_layer_types(config, fields, every_nth(6, False, config.num_layers))
    if config.windowed_layers[-1]:
        fields.warnings.append("the last of layer_types is taken as full_attention, as in transformers")
        config = replace(config, windowed_layers=(*config.windowed_layers[:-1], False))
    bias, is_full = fields.flag("attention_bias", False), tuple(not windowed for windowed in config.windowed_layers)
    config = _with_heads(config, fields, is_full)
    form = RopeForm(theta=1_000_000.0, per_layer_type=True, absent={"full_attention": _FULL_ROPE})
    ropes = _ropes(fields)
    rope = read_rope(ropes, config.heads(config.num_layers - 1).head_dim, config.max_position_embeddings, form)
    local = read_local_rope(ropes, config.head_dim, config.max_position_embeddings, RopeForm())
    fields.warnings += ropes.warnings
    return replace(
        _with_shared_layers(config, fields),
        names=NAMES,
        wiring="sandwich",
        rope=rope,
        local_rope=None if local == rope else local,
        embed_scale=config.hidden_size**0.5,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="head",
        value_norm=True,
        attention_scale=1.0,
        layer_scalar=True,
        logits_soft_cap=fields.optional_number("final_logit_softcapping", None, above=0.0),
    )


def _ropes(fields: Fields) -> Fields:
    """`rope_parameters` alone, since the class has no older spelling of rotary positions: of each type of layers, or
    none. Its kind default rotates whole heads."""
    given, types = fields.mapping("rope_parameters"), ("full_attention", "sliding_attention")
    if given and given.keys() != {*types}:
        raise ModelError(
            f"rope_parameters must have {' and '.join(types)}, and nothing else, not {listed(given.keys())}"
        )
    made: dict[str, Any] = {}
    for name in given:
        rope = made[name] = dict(Fields(given, "rope_parameters.").mapping(name))
        if rope.get("rope_type", "default") == "default" and rope.pop("partial_rotary_factor", 1) != 1:
            fields.warnings.append(f"rope_parameters.{name}.partial_rotary_factor has no meaning for the kind default")
    return Fields({"rope_parameters": made}, fields.prefix)


def _with_heads(config: DecoderConfig, fields: Fields, is_full: tuple[bool, ...]) -> DecoderConfig:
    """The configuration with the heads of layers with full attention: from `per_layer_config`, which has an object for
    each such layer (files of newer versions of transformers), or from global_head_dim and num_global_key_value_heads.
    """
    is_shared = fields.flag("attention_k_eq_v", False)
    sizes = (
        fields.integer("global_head_dim", 512),
        fields.optional_integer("num_global_key_value_heads", None) if is_shared else None,
    )
    given = fields.mapping("per_layer_config")
    if fields.values.get("per_layer_config") is not None:  # an empty one says that the heads of all layers are equal
        each = _own_heads(Fields(given, "per_layer_config."), config.num_layers)
        by_type = {full: {own for own, kind in zip(each, is_full, strict=True) if kind == full} for full in is_full}
        if any(len(found) > 1 for found in by_type.values()) or by_type.get(False, {(None, None)}) != {(None, None)}:
            raise ModelError(
                "per_layer_config must have the same head_dim and num_key_value_heads for all layers with "
                "full_attention, and nothing for others (layer_types, num_hidden_layers)"
            )
        ((head_dim, kv_heads),) = by_type[True]
        sizes = head_dim or config.head_dim, kv_heads
    head_dim, kv_heads = sizes[0], sizes[1] or config.num_kv_heads
    if config.num_heads % kv_heads:
        raise ModelError(
            f"num_attention_heads={config.num_heads} must be a multiple of {kv_heads} key-value heads "
            "(num_key_value_heads, num_global_key_value_heads)"
        )
    is_same = (head_dim, kv_heads) == (config.head_dim, config.num_kv_heads)
    return replace(
        config,
        layer_head_dims=() if is_same else tuple(head_dim if full else config.head_dim for full in is_full),
        layer_kv_heads=() if is_same else tuple(kv_heads if full else config.num_kv_heads for full in is_full),
        key_value_layers=is_full if is_shared else (),
    )


def _own_heads(layers: Fields, num_layers: int) -> list[tuple[int | None, int | None]]:
    """The head size and the number of key-value heads that each layer has in `per_layer_config`; None: the common one.
    The names there are the layers' numbers, which may begin with zeros."""
    found: list[tuple[int | None, int | None]] = [(None, None)] * num_layers
    for name in layers.values:
        layer = int(name) if name.isdecimal() and len(name) < 10 else num_layers
        if layer >= num_layers:
            raise ModelError(f"per_layer_config: {shown(name)} is not the number of one of {num_layers} layers")
        own = Fields(layers.mapping(name), f"{layers.prefix}{name}.")
        if unread := own.unread(("head_dim", "num_key_value_heads")):
            raise ModelError(f"{listed(unread)} is not supported: only head_dim and num_key_value_heads may differ")
        found[layer] = own.optional_integer("head_dim", None), own.optional_integer("num_key_value_heads", None)
    return found


def _with_shared_layers(config: DecoderConfig, fields: Fields) -> DecoderConfig:
    """The configuration with the last layers that read the keys and values of earlier ones."""
    count, windowed = fields.integer("num_kv_shared_layers", 0, at_least=0), config.windowed_layers
    own = config.num_layers - count
    if count and (own < 1 or {*windowed[:own]} != {*windowed}):
        raise ModelError(f"num_kv_shared_layers={count}: no layer of each of layer_types is left before them")
    is_wide, size = fields.flag("use_double_wide_mlp", False), config.intermediate_size
    sizes = (*[size] * own, *[2 * size] * count) if is_wide and count else ()
    return replace(config, shared_kv_layers=count, layer_intermediate_sizes=sizes)


def _read_experts(fields: Fields) -> ExpertsConfig:
    for name in ("num_experts", "top_k_experts"):
        if fields.values.get(name) is None:
            raise ModelError(f"the field {fields.prefix}{name} is missing, which enable_moe_block demands")
    count, per_token = fields.integer("num_experts"), fields.integer("top_k_experts")
    if per_token > count:
        raise ModelError(f"top_k_experts={per_token} is more than num_experts={count}")
    name = "moe_intermediate_size"
    experts = ExpertsConfig(count, "num_experts", fields.integer(name), name, per_token)
    return replace(experts, beside_mlp=True, router_norm=True, expert_scales=True)


UNIFIED = Family(
    read_unified,
    ROTARY_FIELDS - ROPE_FIELDS - {"hidden_act"}
    | field_names("rope_parameters hidden_activation attention_bias sliding_window layer_types final_logit_softcapping")
    | field_names("use_bidirectional_attention attention_k_eq_v num_kv_shared_layers use_double_wide_mlp")
    | field_names("global_head_dim num_global_key_value_heads per_layer_config"),
)
GEMMA4 = Family(
    read,
    UNIFIED.fields
    | field_names("hidden_size_per_layer_input vocab_size_per_layer_input")
    | field_names("enable_moe_block num_experts top_k_experts moe_intermediate_size"),
)
