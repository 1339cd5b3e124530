"""Llama 4. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig, ExpertsConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.read_experts import read_experts
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import ExpertNames
from ember.engine.errors import ModelError

NAMES = replace(
    LLAMA_NAMES,
    gate="feed_forward.gate_proj",
    up="feed_forward.up_proj",
    down="feed_forward.down_proj",
    experts=ExpertNames(
        router="feed_forward.router",
        gate_up="feed_forward.experts.gate_up_proj",
        down="feed_forward.experts.down_proj",
        transposed=True,
        shared_gate="feed_forward.shared_expert.gate_proj",
        shared_up="feed_forward.shared_expert.up_proj",
        shared_down="feed_forward.shared_expert.down_proj",
    ),
)


def read(fields: Fields) -> DecoderConfig:
    """Experts that weigh their inputs, beside an MLP that computes every token. Most layers have rotary positions,
    norms of queries and keys, and attention within chunks; the others, without positions, scale queries."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=131072,
        num_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        rope=RopeForm(theta=500_000.0, interleaved=True),
    )
    bias, layers = fields.flag("attention_bias", False), config.num_layers
    interval, given = fields.integer("no_rope_layer_interval", 4), fields.flags("no_rope_layers")
    rotated = tuple(given) if given else every_nth(interval, False, layers)
    if len(rotated) != layers:
        raise ModelError(f"no_rope_layers has {len(rotated)} entries for num_hidden_layers={layers}")
    tunes = fields.values.get("attn_temperature_tuning", True)  # a number in older files
    if not isinstance(tunes, bool | int | float | None):
        raise fields.error("attn_temperature_tuning", "true, false or a number")
    config = replace(
        config,
        names=NAMES,
        intermediate_size=fields.integer("intermediate_size_mlp", 16384),
        intermediate_field="intermediate_size_mlp",
        qkv_bias=bias,
        output_bias=bias,
        qk_norm="plain" if fields.flag("use_qk_norm", True) else None,
        qk_norm_layers=rotated,
        rope_before_norm=True,
        rope_layers=rotated,
        nope_beta=fields.number("attn_scale", 0.1) if tunes else 0.0,
        nope_length=fields.integer("floor_scale", 8192),
        sliding_window=fields.optional_integer("attention_chunk_size", 8192),
        window_is_chunk=True,
        experts=_experts(fields, layers),
    )
    return with_layer_types(config, fields, None if config.sliding_window is None else rotated)


def _experts(fields: Fields, num_layers: int) -> ExpertsConfig:
    """Every layer has experts, or those whose number, counted from 1, is a multiple of an interval, or those listed."""
    experts = read_experts(fields, ("num_local_experts", 16), ("num_experts_per_tok", 1), ("intermediate_size", 8192))
    listed, layers = fields.values.get("moe_layers"), range(num_layers)
    if listed is not None and not (isinstance(listed, list) and all(type(i) is int and i in layers for i in listed)):
        raise fields.error("moe_layers", f"a list of the numbers of layers, from 0 to {num_layers - 1}")
    sparse = every_nth(fields.integer("interleave_moe_layer_step", 1), True, num_layers)
    if listed is not None:
        sparse = tuple(layer in listed for layer in layers)
    return replace(
        experts,
        layers=() if all(sparse) else sparse,
        scores="sigmoid",
        normalised=False,
        scales_input=True,
        shared_size=experts.intermediate_size,
        shared_field=experts.intermediate_field,
    )


LLAMA4 = Family(
    read,
    ROTARY_FIELDS
    | field_names(
        "intermediate_size_mlp num_local_experts num_experts_per_tok moe_layers interleave_moe_layer_step use_qk_norm "
        "no_rope_layers no_rope_layer_interval attention_chunk_size layer_types attn_temperature_tuning floor_scale "
        "attn_scale attention_bias"
    ),
    harmless=dict.fromkeys(field_names("cache_implementation for_llm_compressor"), ()),
)
