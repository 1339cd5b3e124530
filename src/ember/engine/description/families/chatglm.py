"""ChatGLM 2 and 3, and GLM-4-9B in its first form (arXiv 2406.12793). This module does not import torch."""

from __future__ import annotations

from ember.engine.description.classic_decoder import must_be
from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import COMMON_FIELDS, Family, field_names
from ember.engine.description.fields import MAX_LAYERS, Fields
from ember.engine.description.rope_config import RopeConfig
from ember.engine.description.weight_names import WeightNames
from ember.engine.errors import ModelError

NAMES = WeightNames(
    layer="transformer.encoder.layers.{}.",
    embed_tokens="transformer.embedding.word_embeddings",
    final_norm="transformer.encoder.final_layernorm",
    lm_head="transformer.output_layer",
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    qkv="self_attention.query_key_value",
    output="self_attention.dense",
    gate_up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    base="transformer.",
    buffers=("rotary_pos_emb.inv_freq",),
)


def read(fields: Fields) -> DecoderConfig:
    """GLM (`families.glm`) with other names, also of fields."""
    for name, usual in (("rmsnorm", True), ("post_layer_norm", True), ("add_bias_linear", False)):
        must_be(fields, name, usual)
    must_be(fields, "apply_residual_connection_post_layernorm", False)
    heads, head_dim = fields.integer("num_attention_heads"), fields.integer("kv_channels", 128)
    kv_heads = fields.integer("multi_query_group_num", 1) if fields.flag("multi_query_attention", False) else heads
    if heads % kv_heads:
        raise ModelError(f"num_attention_heads={heads} must be a multiple of multi_query_group_num={kv_heads}")
    if head_dim % 4:
        raise fields.error("kv_channels", "a multiple of 4, as half of the dimensions are rotated in pairs")
    layers = "num_layers" if fields.values.get("num_layers") is not None else "num_hidden_layers"
    vocabulary = "padded_vocab_size" if fields.values.get("padded_vocab_size") is not None else "vocab_size"
    return DecoderConfig(
        architecture="",
        vocab_size=fields.integer(vocabulary),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("ffn_hidden_size"),
        intermediate_field="ffn_hidden_size",
        num_layers=fields.integer(layers, at_most=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=fields.integer("seq_length", 2048),
        names=NAMES,
        norm_eps=fields.number("layernorm_epsilon", 1e-5, at_least=0.0),
        qkv_bias=fields.flag("add_qkv_bias", False),
        rope=RopeConfig(head_dim // 2, 10_000.0 * fields.number("rope_ratio", 1.0, above=0.0), interleaved=True),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
    )


CHATGLM = Family(
    read,
    COMMON_FIELDS - {"max_position_embeddings"}
    | field_names(
        "rmsnorm post_layer_norm add_bias_linear apply_residual_connection_post_layernorm kv_channels seq_length "
        "multi_query_group_num multi_query_attention num_layers padded_vocab_size ffn_hidden_size layernorm_epsilon "
        "add_qkv_bias rope_ratio"
    ),
    harmless={
        **dict.fromkeys(
            field_names(
                "auto_map apply_query_key_layer_scaling attention_softmax_in_fp32 bias_dropout_fusion original_rope "
                "classifier_dropout"
            ),
            (),
        ),
        "fp32_residual_connection": (False,),
        "quantization_bit": (0,),
        "prefix_projection": (False,),
    },
)
