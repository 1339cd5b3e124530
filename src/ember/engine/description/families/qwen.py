"""Qwen 2, 2.5 and 3 (arXiv 2407.10671, 2505.09388). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import with_layer_types
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

QWEN3_NAMES = replace(LLAMA_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")


def read_qwen2(fields: Fields) -> DecoderConfig:
    """Qwen2 and 2.5 (arXiv 2407.10671): Llama with biases on query, key and value; sliding windows in some layers."""
    return replace(_with_windows(read_rotary_decoder(fields, max_position_embeddings=32768), fields), qkv_bias=True)


def read_qwen3(fields: Fields) -> DecoderConfig:
    """Qwen3 (arXiv 2505.09388): Llama with RMSNorm on each query and key head; head_dim is set on its own."""
    bias = fields.flag("attention_bias", False)
    config = read_rotary_decoder(fields, max_position_embeddings=32768, head_dim=128)
    config = replace(config, names=QWEN3_NAMES, qk_norm="head", qkv_bias=bias, output_bias=bias)
    return _with_windows(config, fields)


def _with_windows(config: DecoderConfig, fields: Fields) -> DecoderConfig:
    """Qwen's windows: none unless `use_sliding_window`; their layers are in `layer_types` or `max_window_layers`."""
    uses_window = fields.flag("use_sliding_window", False)
    window = fields.optional_integer("sliding_window", 4096)
    first = fields.integer("max_window_layers", 28, at_least=0)
    config = replace(config, sliding_window=window if uses_window else None, first_window_layer=first)
    return with_layer_types(config, fields)


def read_mimo(fields: Fields) -> DecoderConfig:
    """MiMo (arXiv 2505.07608): Qwen2 with layers that predict further tokens, which are not used."""
    config = read_qwen2(fields)
    return replace(config, names=replace(config.names, unused=("model.mtp_layers.",)))


QWEN2 = Family(read_qwen2, ROTARY_FIELDS | {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
MIMO = Family(read_mimo, QWEN2.fields, harmless={"num_nextn_predict_layers": (), "attention_bias": (True,)})
QWEN3 = Family(read_qwen3, QWEN2.fields | {"attention_bias"})
