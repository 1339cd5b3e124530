"""InternLM 2, 2.5 and 3 (arXiv 2403.17297). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import WeightNames

INTERNLM2_NAMES = WeightNames(
    layer="model.layers.{}.",
    embed_tokens="model.tok_embeddings",
    final_norm="model.norm",
    lm_head="output",
    attention_norm="attention_norm",
    mlp_norm="ffn_norm",
    qkv="attention.wqkv",
    qkv_order="heads",
    output="attention.wo",
    gate="feed_forward.w1",
    up="feed_forward.w3",
    down="feed_forward.w2",
    buffers=("rotary_emb.inv_freq",),
)


def read_internlm2(fields: Fields) -> DecoderConfig:
    """A Llama whose query, key and value are in one matrix, with names of its own."""
    config, bias = read_rotary_decoder(fields, max_position_embeddings=2048), fields.flag("bias", True)
    return replace(config, names=INTERNLM2_NAMES, qkv_bias=bias, output_bias=bias)


def read_internlm3(fields: Fields) -> DecoderConfig:
    """A Llama with a bias of query, key and value, and another of all other matrices. In transformers they are
    attention_bias and mlp_bias."""
    config = read_rotary_decoder(fields, max_position_embeddings=32768, num_kv_heads=2, head_dim=128, norm_eps=1e-5)
    qkv_bias = fields.flag("qkv_bias", fields.flag("attention_bias", False))
    bias = fields.flag("bias", fields.flag("mlp_bias", False))
    return replace(config, qkv_bias=qkv_bias, output_bias=bias, mlp_bias=bias)


INTERNLM2 = Family(read_internlm2, ROTARY_FIELDS | {"bias"})
INTERNLM3 = Family(read_internlm3, ROTARY_FIELDS | field_names("qkv_bias attention_bias bias mlp_bias"))
