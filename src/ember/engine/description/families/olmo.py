"""OLMo 1, 2 and 3 (arXiv 2402.00838, 2501.00656). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth, with_layer_types
from ember.engine.description.read_rope import RopeForm, read_local_rope
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

OLMO2_NAMES = replace(
    LLAMA_NAMES,
    attention_norm="post_attention_layernorm",
    mlp_norm="post_feedforward_layernorm",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
)


def read_olmo1(fields: Fields) -> DecoderConfig:
    """A Llama whose LayerNorms have no weights. Queries, keys and values may be clipped."""
    bias, limit = fields.flag("attention_bias", False), None
    if fields.values.get("clip_qkv") is not None:
        limit = fields.number("clip_qkv", at_least=0.0)
    config = read_rotary_decoder(fields, max_position_embeddings=2048, norm_eps=1e-5, norm_eps_field=None)
    return replace(config, norm="layer", norm_affine=False, qkv_clip=limit, qkv_bias=bias, output_bias=bias)


def read_olmo2(
    fields: Fields, rope: RopeForm | None = None, *, max_position_embeddings: int = 2048, norm_eps: float = 1e-5
) -> DecoderConfig:
    """A Llama with norms of the outputs of attention and MLP in place of their inputs, and norms of all queries and of
    all keys."""
    bias = fields.flag("attention_bias", False)
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=max_position_embeddings, norm_eps=norm_eps, rope=rope),
        names=OLMO2_NAMES,
        wiring="output_norm",
        qk_norm="all",
        qkv_bias=bias,
        output_bias=bias,
    )


def read_olmo3(fields: Fields) -> DecoderConfig:
    """OLMo 2 with a sliding window in three of four layers, which have rotary positions of their own."""
    form = RopeForm(theta=500_000.0, per_layer_type=True)
    config = read_olmo2(fields, form)
    local = read_local_rope(fields, config.head_dim, config.max_position_embeddings, form)
    window = fields.optional_integer("sliding_window", 4096)
    config = replace(config, sliding_window=window, local_rope=None if local == config.rope else local)
    return with_layer_types(config, fields, every_nth(4, False, config.num_layers))


OLMO1 = Family(read_olmo1, ROTARY_FIELDS - {"rms_norm_eps"} | {"attention_bias", "clip_qkv"})
OLMO2 = Family(read_olmo2, ROTARY_FIELDS | {"attention_bias"})
OLMO3 = Family(read_olmo3, OLMO2.fields | {"sliding_window", "layer_types"})
