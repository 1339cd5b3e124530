"""Granite 3, dense and with experts, and HyperCLOVA X. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families import llama
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import with_layer_types
from ember.engine.description.read_experts import read_experts
from ember.engine.description.weight_names import ExpertNames

MOE_NAMES = ExpertNames(
    router="block_sparse_moe.router.layer",
    gate_up="block_sparse_moe.input_linear.weight",
    down="block_sparse_moe.output_linear.weight",
)


def read(fields: Fields, **defaults: Any) -> DecoderConfig:
    """A Llama with factors of embeddings, attention, outputs before the residual, and logits."""
    return replace(
        llama.read(fields, **defaults),
        embed_scale=fields.number("embedding_multiplier", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0, above=0.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logits_scale=1 / fields.number("logits_scaling", 1.0, above=0.0),
    )


def read_hyperclovax(fields: Fields) -> DecoderConfig:
    """HyperCLOVA X: Granite, most often with norms of outputs, whose factor of the logits is not a divisor."""
    given, config = fields.optional_number("attention_multiplier", None, above=0.0), llama.read(fields)
    has_norms = fields.flag("use_post_norm", True)
    return replace(
        config,
        names=replace(config.names, attention_output_norm="post_norm1", mlp_output_norm="post_norm2")
        if has_norms
        else config.names,
        wiring="sandwich" if has_norms else "pre_norm",
        embed_scale=fields.number("embedding_multiplier", 1.0),
        attention_scale=None if given == config.head_dim**-0.5 else given,
        residual_scale=fields.number("residual_multiplier", 1.0),
        logits_scale=fields.number("logits_scaling", 1.0),
    )


def read_moe_shared(fields: Fields) -> DecoderConfig:
    """Granite with experts, and an MLP that computes every token."""
    config, size = read_moe(fields), fields.integer("shared_intermediate_size", 0, at_least=0)
    assert config.experts is not None
    names = replace(MOE_NAMES, shared_gate_up="shared_mlp.input_linear", shared_down="shared_mlp.output_linear")
    experts = replace(config.experts, shared_size=size, shared_field="shared_intermediate_size")
    return replace(config, names=replace(config.names, experts=names), experts=experts)


def read_moe(fields: Fields) -> DecoderConfig:
    """Granite with experts, in one tensor for all."""
    config = read(fields)
    experts = read_experts(
        fields, ("num_local_experts", 8), ("num_experts_per_tok", 2), (config.intermediate_field, 11008)
    )
    return replace(config, names=replace(config.names, experts=MOE_NAMES), experts=experts)


def read_swa(fields: Fields) -> DecoderConfig:
    """Granite with attention sinks, a sliding window in three of four layers, and a base of rotary positions for each
    layer, of which 0 means none."""
    defaults = {"max_position_embeddings": 8192, "num_kv_heads": 4, "norm_eps": 1e-5, "tie_word_embeddings": True}
    return _with_windows(read(fields, **defaults), fields)


def read_moe_swa(fields: Fields) -> DecoderConfig:
    """The same with experts."""
    config = read_moe_shared(fields)
    assert config.names.experts is not None
    names = replace(
        config.names.experts,
        router="block_sparse_moe.router",
        gate_up="block_sparse_moe.experts.gate_up_proj",
        down="block_sparse_moe.experts.down_proj",
    )
    return _with_windows(replace(config, names=replace(config.names, experts=names)), fields)


def _with_windows(config: DecoderConfig, fields: Fields) -> DecoderConfig:
    number, window = config.num_layers, fields.optional_integer("sliding_window", 128)
    config = replace(
        config, names=replace(config.names, sinks="self_attn.sinks"), attention_sinks=True, sliding_window=window
    )
    config = with_layer_types(config, fields, [layer % 4 != 0 for layer in range(number)])
    given = fields.values.get("layer_rope_theta")
    if given is None or config.rope is None:
        return config
    if not isinstance(given, Sequence) or len(given) != number or not all(type(x) in (int, float) for x in given):
        raise fields.error("layer_rope_theta", f"a list of {number} numbers (num_hidden_layers)")
    thetas: dict[bool, set[float]] = {False: set(), True: set()}  # of the layers without the window, and with it
    for theta, windowed in zip(given, config.windowed_layers, strict=True):
        thetas[windowed] |= {float(theta)} if theta else set()
    if any(len(found) > 1 for found in thetas.values()):
        raise fields.error(
            "layer_rope_theta", "one number for the layers of each type, beside 0: no other is supported"
        )
    full, local = (replace(config.rope, theta=found.pop()) if found else None for found in thetas.values())
    return replace(
        config,
        rope=full or local,
        local_rope=local if full is not None and local != full else None,
        rope_layers=() if all(given) else tuple(map(bool, given)),
    )


GRANITE = Family(
    read,
    llama.LLAMA.fields | field_names("embedding_multiplier attention_multiplier residual_multiplier logits_scaling"),
)
GRANITE_MOE = Family(read_moe, GRANITE.fields | {"num_local_experts", "num_experts_per_tok"})
GRANITE_MOE_SHARED = Family(read_moe_shared, GRANITE_MOE.fields | {"shared_intermediate_size"})
_WINDOWS = field_names("sliding_window layer_types layer_rope_theta")
GRANITE_SWA = Family(read_swa, GRANITE.fields | _WINDOWS)
GRANITE_MOE_SWA = Family(read_moe_swa, GRANITE_MOE_SHARED.fields | _WINDOWS)
HYPERCLOVAX = Family(read_hyperclovax, GRANITE.fields | {"use_post_norm"})
