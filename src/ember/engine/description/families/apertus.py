"""Apertus (arXiv 2509.14233). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

APERTUS_NAMES = replace(
    LLAMA_NAMES,
    attention_norm="attention_layernorm",
    mlp_norm="feedforward_layernorm",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    activation="mlp.act_fn",
)
ROPE = {  # of a config.json without rope_parameters
    "rope_type": "llama3",
    "rope_theta": 12e6,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def read(fields: Fields) -> DecoderConfig:
    """A Llama with norms of queries and keys, and a plain MLP with the activation xIELU."""
    bias = fields.flag("attention_bias", False)
    return replace(
        read_rotary_decoder(
            fields,
            max_position_embeddings=65536,
            norm_eps=1e-5,
            activation="xielu",
            rope=RopeForm(theta=12e6, absent=ROPE),
        ),
        names=APERTUS_NAMES,
        qkv_bias=bias,
        output_bias=bias,
        gated_mlp=False,
        qk_norm="head",
    )


APERTUS = Family(
    read,
    ROTARY_FIELDS | {"attention_bias"},
    harmless={"qk_norm": (True,), "post_norm": (False,), "mlp_bias": (False,)},
)
