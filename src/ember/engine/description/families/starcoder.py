"""StarCoder 2 (arXiv 2402.19173). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

STARCODER2_NAMES = replace(LLAMA_NAMES, gate=None, up="mlp.c_fc", down="mlp.c_proj")


def read(fields: Fields) -> DecoderConfig:
    """LayerNorm before each part, rotary positions, a plain MLP with GELU, the same sliding window in every layer."""
    bias = fields.flag("use_bias", True)
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=4096,
        num_kv_heads=2,
        norm_eps=1e-5,
        norm_eps_field="norm_epsilon",
        activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
    )
    return replace(
        config,
        names=STARCODER2_NAMES,
        norm="layer",
        norm_bias=True,
        gated_mlp=False,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        sliding_window=fields.optional_integer("sliding_window", None),
    )


STARCODER2 = Family(
    read,
    ROTARY_FIELDS - {"rms_norm_eps"} | {"norm_epsilon", "use_bias", "sliding_window"},
    harmless={
        "mlp_type": ("default",),
        "norm_type": ("layer_norm",),
        "scale_attn_weights": (True,),
        "activation_function": (),  # beside `hidden_act`, which holds
    },
)
