"""Cohere's Command R, Aya and Command A. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.read_experts import EXPERT_NAMES, read_experts
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

_SHARED = "mlp.shared_experts."
COHERE_NAMES = replace(LLAMA_NAMES, mlp_norm=None, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")

MOE_NAMES = replace(
    COHERE_NAMES,
    experts=replace(
        EXPERT_NAMES,
        shared_gate=f"{_SHARED}gate_proj",
        shared_up=f"{_SHARED}up_proj",
        shared_down=f"{_SHARED}down_proj",
    ),
)


def read_cohere(fields: Fields, rope_theta: float = 500_000.0, head_dim: int | None = None) -> DecoderConfig:
    """One LayerNorm for attention and MLP, which are beside each other; interleaved rotary positions; scaled logits."""
    bias = fields.flag("attention_bias", False)
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=8192,
        head_dim=head_dim,
        norm_eps=1e-5,
        norm_eps_field="layer_norm_eps",
        rope=RopeForm(theta=rope_theta, interleaved=True),
        tie_word_embeddings=True,
    )
    return replace(
        config,
        names=COHERE_NAMES,
        norm="layer",
        wiring="parallel",
        qkv_bias=bias,
        output_bias=bias,
        logits_scale=fields.number("logit_scale", 0.0625),
        # The name of the context's length where `max_position_embeddings` is that of the first training.
        max_position_embeddings=fields.integer("model_max_length", config.max_position_embeddings),
    )


def read_command_r(fields: Fields) -> DecoderConfig:
    """Some models have a LayerNorm of each query and key head."""
    return replace(read_cohere(fields), qk_norm="layer" if fields.flag("use_qk_norm", False) else None)


def read_command_a(fields: Fields) -> DecoderConfig:
    """Layers with a sliding window, and layers without rotary positions: every fourth, unless `layer_types` says
    otherwise."""
    config = read_cohere(fields, rope_theta=10_000.0)
    window = fields.optional_integer("sliding_window", 4096)
    windowed = every_nth(fields.integer("sliding_window_pattern", 4), False, config.num_layers)
    config = with_layer_types(replace(config, sliding_window=window), fields, windowed)
    has_rope = config.windowed_layers if window is not None else (False,) * config.num_layers
    return replace(config, rope_layers=has_rope)


def read_command_moe(fields: Fields) -> DecoderConfig:
    """Command A with experts after the first layers, which have rotary positions too unless they have a pattern of
    their own. RMSNorm in place of LayerNorm if the file has its eps."""
    config = read_cohere(fields, rope_theta=10_000.0, head_dim=128)
    rms_eps, layers = fields.optional_number("rms_norm_eps", None), config.num_layers
    if rms_eps is not None:
        config = replace(config, norm="rms", norm_eps=rms_eps)
    first = min(fields.integer("first_k_dense_replace", 0, at_least=0), layers)
    dense = _dense_layers(fields, layers, first)
    every, every_dense = fields.integer("sliding_window_pattern", 4), fields.integer(_PREFIX, 1)
    windowed = every_nth(every_dense, False, first) + every_nth(every, False, layers - first)
    window = fields.optional_integer("sliding_window", 4096)
    config = with_layer_types(replace(config, sliding_window=window), fields, windowed)
    has_window = config.windowed_layers if window is not None else (False,) * layers
    size = fields.optional_integer("prefix_dense_intermediate_size", None) or config.intermediate_size
    shared = fields.integer("num_shared_experts", 0, at_least=0)
    if shared and not all(dense) and (fields.text(_COMBINATION) or "average") != "sum":
        raise fields.error(_COMBINATION, f"sum with num_shared_experts={shared}: no other is supported")
    scores = fields.one_of("expert_selection_fn", "softmax", ("softmax", "sigmoid"))
    found = read_experts(
        fields, ("num_experts", 8), ("num_experts_per_tok", 2), ("intermediate_size", config.intermediate_size)
    )
    return replace(
        config,
        names=MOE_NAMES,
        rope_layers=tuple(window or (mlp and every_dense == 1) for window, mlp in zip(has_window, dense, strict=True)),
        intermediate_size=size,
        intermediate_field="prefix_dense_intermediate_size",
        experts=replace(
            found,
            layers=() if not any(dense) else tuple(not each for each in dense),
            scores="sigmoid" if scores == "sigmoid" else "softmax",
            normalised=scores == "softmax" or fields.flag("norm_topk_prob", True),
            shared_size=shared * found.intermediate_size,
            shared_field="num_shared_experts * intermediate_size",
        ),
    )


def _dense_layers(fields: Fields, num_layers: int, first: int) -> tuple[bool, ...]:
    """Whether each layer has an MLP in place of experts."""
    kinds = fields.names("mlp_layer_types") or ["dense"] * first + ["sparse"] * (num_layers - first)
    if len(kinds) != num_layers or not set(kinds) <= {"dense", "sparse"}:
        raise fields.error("mlp_layer_types", f"a list of num_hidden_layers={num_layers} times dense or sparse")
    return tuple(kind == "dense" for kind in kinds)


_COMBINATION = "shared_expert_combination_strategy"
_PREFIX = "prefix_dense_sliding_window_pattern"
_FIELDS = ROTARY_FIELDS - {"rms_norm_eps"} | field_names("layer_norm_eps attention_bias logit_scale model_max_length")
COHERE = Family(read_command_r, _FIELDS | {"use_qk_norm"})
COHERE2 = Family(
    read_command_a,
    _FIELDS | field_names("sliding_window sliding_window_pattern layer_types"),
    harmless={
        "position_embedding_type": ("rope_gptj",),
        "rotary_pct": (1.0,),
        "order_of_interleaved_layers": ("local_attn_first",),
        "use_gated_activation": (True,),
        "use_parallel_block": (True,),
        "use_qk_norm": (False,),
        **dict.fromkeys(
            field_names("use_embedding_sharing use_parallel_embedding layer_switch cache_implementation"), ()
        ),
    },
)
COHERE2_MOE = Family(
    read_command_moe,
    ROTARY_FIELDS
    | field_names("layer_norm_eps attention_bias logit_scale model_max_length sliding_window sliding_window_pattern")
    | field_names("layer_types mlp_layer_types num_experts num_experts_per_tok num_shared_experts norm_topk_prob")
    | field_names("shared_expert_combination_strategy expert_selection_fn prefix_dense_intermediate_size")
    | {_PREFIX, "first_k_dense_replace"},
)
