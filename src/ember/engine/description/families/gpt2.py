"""GPT-2 and GPTBigCode (SantaCoder and StarCoder, arXiv 2301.03988). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.classic_decoder import GPT_FIELDS, read_classic_decoder
from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.weight_names import WeightNames

BIGCODE_NAMES = WeightNames(
    layer="transformer.h.{}.",
    embed_tokens="transformer.wte",
    embed_positions="transformer.wpe",
    final_norm="transformer.ln_f",
    lm_head="lm_head",
    attention_norm="ln_1",
    mlp_norm="ln_2",
    qkv="attn.c_attn",
    output="attn.c_proj",
    up="mlp.c_fc",
    down="mlp.c_proj",
    base="transformer.",
)
GPT2_NAMES = replace(BIGCODE_NAMES, transposed=True)


def read_gpt2(fields: Fields) -> DecoderConfig:
    """Learned positions, LayerNorm before each part; the matrices are stored transposed."""
    config = read_classic_decoder(fields, GPT2_NAMES, max_position_embeddings=1024)
    scale = None if fields.flag("scale_attn_weights", True) else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx", False)
    return replace(config, position_offset=0, attention_scale=scale, divides_scale_by_layer=by_layer)


def read_bigcode(fields: Fields) -> DecoderConfig:
    """GPT-2 whose query heads share one head of key and value."""
    config = read_classic_decoder(fields, BIGCODE_NAMES, max_position_embeddings=1024, activation="gelu_pytorch_tanh")
    scale = None if fields.flag("scale_attn_weights", True) else 1.0
    config = replace(config, position_offset=0, attention_scale=scale)
    if fields.flag("multi_query", True):
        return replace(config, num_kv_heads=1)
    return replace(config, names=replace(BIGCODE_NAMES, qkv_order="heads"))


_NOT_READ = dict.fromkeys(
    field_names(
        "n_ctx summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout "
        "reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32 num_key_value_heads "
        "inference_runner validate_runner_input pre_allocate_kv_cache max_sequence_length max_batch_size"
    ),
    (),
)
GPT2 = Family(
    read_gpt2,
    GPT_FIELDS | {"scale_attn_weights", "scale_attn_by_inverse_layer_idx"},
    harmless=_NOT_READ,
)
GPT_BIGCODE = Family(
    read_bigcode, GPT_FIELDS | {"scale_attn_weights", "multi_query"}, harmless={**_NOT_READ, "pad_key_length": ()}
)
