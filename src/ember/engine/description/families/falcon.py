"""Falcon (arXiv 2311.16867). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.classic_decoder import CLASSIC_FIELDS, alibi_slopes, read_classic_decoder
from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import ROPE_FIELDS, warn_of_unused_rope
from ember.engine.description.rotary_decoder import with_rope
from ember.engine.description.weight_names import WeightNames
from ember.engine.errors import ModelError

_SPELLING = {"hidden_size": "n_embed", "intermediate_size": "ffn_hidden_size", "activation": "activation"}
FALCON_NAMES = WeightNames(
    layer="transformer.h.{}.",
    embed_tokens="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    lm_head="lm_head",
    attention_norm="input_layernorm",
    mlp_norm=None,
    qkv="self_attention.query_key_value",
    qkv_order="heads",
    output="self_attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    base="transformer.",
)


def read(fields: Fields) -> DecoderConfig:
    """Three forms: 7B (one key-value head, one norm), RW (ALiBi, one part after the other), and the newer
    architecture of 40B and 180B (groups of heads, a norm for each part)."""
    names, is_newer = FALCON_NAMES, fields.flag("new_decoder_architecture", False)
    config = read_classic_decoder(fields, FALCON_NAMES, spelling=_SPELLING, activation="gelu")
    is_multi_query, is_parallel = fields.flag("multi_query", True), fields.flag("parallel_attn", True) or is_newer
    kv_heads = fields.optional_integer("num_kv_heads", None) or config.num_heads
    if is_multi_query and not is_newer:
        kv_heads = 1
    if config.num_heads % kv_heads or not (is_newer or is_multi_query or kv_heads == config.num_heads):
        raise ModelError(f"num_attention_heads={config.num_heads} does not go with num_kv_heads={kv_heads}")
    norms = fields.optional_integer("num_ln_in_parallel_attn", None) or 2
    if is_newer and norms == 2:
        names = replace(FALCON_NAMES, attention_norm="ln_attn", mlp_norm="ln_mlp")
    elif not is_parallel:
        names = replace(FALCON_NAMES, mlp_norm="post_attention_layernorm")
    bias = fields.flag("bias", False)
    config = replace(
        config,
        names=names,
        num_kv_heads=kv_heads,
        wiring="parallel" if is_parallel else "pre_norm",
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
    )
    if fields.flag("alibi", False):
        warn_of_unused_rope(fields)
        return replace(config, alibi=alibi_slopes(config.num_heads, scale=config.head_dim**-0.5))
    return with_rope(config, fields)


FALCON = Family(
    read,
    CLASSIC_FIELDS
    | ROPE_FIELDS
    | frozenset(_SPELLING.values())
    | field_names("new_decoder_architecture multi_query parallel_attn num_kv_heads num_ln_in_parallel_attn bias alibi"),
    harmless={"apply_residual_connection_post_layernorm": (False,), "n_head_kv": (), "rotary": ()},
)
