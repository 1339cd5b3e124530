"""Nemotron 3 and 4, and Minitron (arXiv 2402.16819). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families import llama
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm


def read(fields: Fields) -> DecoderConfig:
    """LayerNorm with weights stored less one, partial rotary positions, a plain MLP with squared ReLU."""
    config = llama.read(
        fields,
        max_position_embeddings=4096,
        norm_eps=1e-5,
        norm_eps_field="norm_eps",
        activation="relu2",
        rope=RopeForm(share=0.5),
    )
    return replace(config, norm="layer", norm_bias=True, norm_offset=1.0, gated_mlp=False)


NEMOTRON = Family(read, llama.LLAMA.fields - {"rms_norm_eps"} | {"norm_eps"})
