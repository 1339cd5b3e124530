"""LFM2. This module does not import torch.

Most layers have a short convolution with gates, the others attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ember.engine.description.config import DecoderConfig, ExpertNames, Mixer
from ember.engine.description.deepseek_experts import after_dense
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import read_mixers
from ember.engine.description.mixers import ConvConfig, ConvNames
from ember.engine.description.read_experts import read_experts
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder
from ember.engine.errors import ModelError

NAMES = replace(
    LLAMA_NAMES,
    final_norm="model.embedding_norm",
    attention_norm="operator_norm",
    mlp_norm="ffn_norm",
    output="self_attn.out_proj",
    query_norm="self_attn.q_layernorm",
    key_norm="self_attn.k_layernorm",
    gate="feed_forward.w1",
    up="feed_forward.w3",
    down="feed_forward.w2",
    conv=ConvNames(inputs="conv.in_proj", conv="conv.conv", output="conv.out_proj"),
)
EXPERT_NAMES = ExpertNames(
    router="feed_forward.gate",
    gate="feed_forward.experts.{}.w1",
    up="feed_forward.experts.{}.w3",
    down="feed_forward.experts.{}.w2",
    correction="feed_forward.expert_bias",
)
_MIXERS: dict[str, Mixer] = {"conv": "conv", "full_attention": "attention"}


def read_lfm2(fields: Fields) -> DecoderConfig:
    """A gated MLP in all layers, whose size follows from several fields."""
    name = "intermediate_size" if fields.values.get("block_ff_dim") is None else "block_ff_dim"
    config = _read(fields, (name, 12288))
    size, multiple = config.intermediate_size, fields.integer("block_multiple_of", 256)
    factor = fields.number("block_ffn_dim_multiplier", 1.0, above=0.0)
    if fields.flag("block_auto_adjust_ff_dim", True):
        size = -(-int(factor * int(2 * size / 3)) // multiple) * multiple
    if size < 1:
        raise ModelError(f"{name}={config.intermediate_size} leaves an MLP of size {size}")
    return replace(config, intermediate_size=size)


def read_lfm2_moe(fields: Fields) -> DecoderConfig:
    """Experts in all layers but the first ones."""
    config = _read(fields, ("intermediate_size", 7168))
    experts = read_experts(fields, ("num_experts", 32), ("num_experts_per_tok", 4), ("moe_intermediate_size", 1792))
    return replace(
        config,
        names=replace(NAMES, experts=EXPERT_NAMES),
        experts=replace(
            experts,
            layers=after_dense(fields, config.num_layers, 2, "num_dense_layers"),
            scores="sigmoid",
            normalised=fields.flag("norm_topk_prob", True),
            norm_min=1e-6,
            scale=fields.number("routed_scaling_factor", 1.0),
            correction=fields.flag("use_expert_bias", True),
        ),
    )


def _read(fields: Fields, intermediate: tuple[str, int]) -> DecoderConfig:
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=128_000,
        num_kv_heads=8,
        norm_eps=1e-5,
        norm_eps_field="norm_eps",
        rope=RopeForm(theta=1e6),
        tie_word_embeddings=True,
        intermediate=intermediate,
    )
    attention = fields.values.get("full_attn_idxs")
    if attention is None:
        attention = range(config.num_layers)
    elif not isinstance(attention, Sequence) or not all(type(layer) is int for layer in attention):
        raise fields.error("full_attn_idxs", "a list of integers")
    absent: list[Mixer] = ["attention" if layer in attention else "conv" for layer in range(config.num_layers)]
    mixers = read_mixers(fields, config.num_layers, _MIXERS, absent)
    conv = ConvConfig(fields.integer("conv_L_cache", 3), fields.flag("conv_bias", False))
    return replace(
        config,
        names=NAMES,
        qk_norm="head",
        tie_word_embeddings=fields.flag("tie_embedding", config.tie_word_embeddings),
        layer_mixers=mixers if "conv" in mixers else (),
        conv=conv if "conv" in mixers else None,
    )


_FIELDS = (ROTARY_FIELDS - {"rms_norm_eps"}) | field_names(
    "norm_eps layer_types full_attn_idxs conv_L_cache conv_bias tie_embedding"
)
# Fields of training, and other names for the same sizes.
_HARMLESS = dict.fromkeys(
    field_names(
        "block_dim block_mlp_init_scale block_norm_eps block_out_init_scale block_use_xavier_init conv_dim "
        "conv_dim_out conv_use_xavier_init num_heads theta"
    ),
    (),
) | {"block_use_swiglu": (True,), "use_pos_enc": (True,)}
LFM2 = Family(
    read_lfm2,
    _FIELDS | field_names("block_ff_dim block_multiple_of block_ffn_dim_multiplier block_auto_adjust_ff_dim"),
    harmless=_HARMLESS,
)
LFM2_MOE = Family(
    read_lfm2_moe,
    _FIELDS
    | field_names(
        "num_experts num_experts_per_tok moe_intermediate_size num_dense_layers norm_topk_prob routed_scaling_factor "
        "use_expert_bias"
    ),
    harmless=_HARMLESS,
)
