"""Jais 2. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families import llama
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields


def read(fields: Fields) -> DecoderConfig:
    """LayerNorm before each part, rotary positions, a plain MLP with squared ReLU, biases everywhere."""
    config = llama.read(
        fields,
        max_position_embeddings=8192,
        qkv_bias=True,
        mlp_bias=True,
        norm_eps=1e-5,
        norm_eps_field="layer_norm_eps",
        activation="relu2",
    )
    return replace(config, norm="layer", norm_bias=True, gated_mlp=False)


JAIS2 = Family(read, llama.LLAMA.fields - {"rms_norm_eps"} | {"layer_norm_eps"})
