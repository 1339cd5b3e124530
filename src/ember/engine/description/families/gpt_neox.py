"""GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import WeightNames

GPT_NEOX_NAMES = WeightNames(
    layer="gpt_neox.layers.{}.",
    embed_tokens="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    lm_head="embed_out",
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    qkv="attention.query_key_value",
    qkv_order="heads",
    output="attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    base="gpt_neox.",
    buffers=(".attention.bias",),
)


def read(fields: Fields) -> DecoderConfig:
    """LayerNorm, partial rotary positions; attention and MLP beside each other, each with its norm."""
    bias = fields.flag("attention_bias", True)
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=2048,
        norm_eps=1e-5,
        norm_eps_field="layer_norm_eps",
        activation="gelu",
        rope=RopeForm(share=0.25, theta_name="rotary_emb_base", share_name="rotary_pct"),
    )
    return replace(
        config,
        names=GPT_NEOX_NAMES,
        num_kv_heads=config.num_heads,
        norm="layer",
        norm_bias=True,
        wiring="parallel" if fields.flag("use_parallel_residual", True) else "pre_norm",
        gated_mlp=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=True,
    )


GPT_NEOX = Family(
    read,
    ROTARY_FIELDS - field_names("rms_norm_eps rope_theta partial_rotary_factor")
    | field_names("layer_norm_eps attention_bias use_parallel_residual rotary_emb_base rotary_pct"),
)
