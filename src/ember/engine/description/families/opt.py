"""OPT (arXiv 2205.01068). This module does not import torch."""

from __future__ import annotations

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import ACTIVATIONS, COMMON_FIELDS, Family, divide_into_heads, field_names
from ember.engine.description.fields import MAX_LAYERS, Fields
from ember.engine.description.weight_names import WeightNames

OPT_NAMES = WeightNames(
    layer="model.decoder.layers.{}.",
    embed_tokens="model.decoder.embed_tokens",
    embed_positions="model.decoder.embed_positions",
    project_in="model.decoder.project_in",
    project_out="model.decoder.project_out",
    final_norm="model.decoder.final_layer_norm",
    lm_head="lm_head",
    attention_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    up="fc1",
    down="fc2",
)


def read(fields: Fields) -> DecoderConfig:
    """Learned positions (table offset 2), LayerNorm, ReLU. The 350m model has norms after the sums, and projections."""
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    bias = fields.flag("enable_bias", True)
    affine = fields.flag("layer_norm_elementwise_affine", True)
    without_final_norm = fields.flag("_remove_final_layer_norm", False)
    norm_first = fields.flag("do_layer_norm_before", True)
    embed_dim = fields.optional_integer("word_embed_proj_dim", None)
    return DecoderConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("ffn_dim"),
        num_layers=fields.integer("num_hidden_layers", at_most=MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=divide_into_heads("hidden_size", hidden_size, num_heads),
        max_position_embeddings=fields.integer("max_position_embeddings", 2048),
        names=OPT_NAMES,
        norm="layer",
        norm_eps=1e-5,
        norm_bias=affine,
        norm_affine=affine,
        wiring="pre_norm" if norm_first else "post_norm",
        final_norm=norm_first and not without_final_norm,
        activation=ACTIVATIONS[fields.one_of("activation_function", "relu", ACTIVATIONS)],
        intermediate_field="ffn_dim",
        gated_mlp=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        position_offset=2,
        embed_dim=None if embed_dim == hidden_size else embed_dim,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
    )


OPT = Family(
    read,
    COMMON_FIELDS
    | field_names(
        "ffn_dim activation_function do_layer_norm_before _remove_final_layer_norm word_embed_proj_dim enable_bias "
        "layer_norm_elementwise_affine"
    ),
)
