"""nanochat. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

NAMES = replace(LLAMA_NAMES, gate=None, up="mlp.fc1", down="mlp.fc2")


def read(fields: Fields) -> DecoderConfig:
    """Norms without weights, also of the embeddings and of the rotated heads; a plain MLP with squared ReLU. Heads are
    rotated in the other direction."""
    config = read_rotary_decoder(fields, max_position_embeddings=2048, activation="relu2")
    bias = fields.flag("attention_bias", False)
    return replace(
        config,
        names=NAMES,
        norm_affine=False,
        embed_norm=True,
        gated_mlp=False,
        qk_norm="plain",
        rope=None if config.rope is None else replace(config.rope, reversed=True),
        rope_before_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        logits_soft_cap=fields.optional_number("final_logit_softcapping", 15.0, above=0.0),
    )


NANOCHAT = Family(read, ROTARY_FIELDS | {"attention_bias", "final_logit_softcapping"})
