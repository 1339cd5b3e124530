"""Cohere's Command R, Aya and Command A. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

COHERE_NAMES = replace(LLAMA_NAMES, mlp_norm=None, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")


def read_cohere(fields: Fields, rope_theta: float = 500_000.0) -> DecoderConfig:
    """One LayerNorm for attention and MLP, which are beside each other; interleaved rotary positions; scaled logits."""
    bias = fields.flag("attention_bias", False)
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=8192,
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
