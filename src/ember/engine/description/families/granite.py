"""Granite 3. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families import llama
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields


def read(fields: Fields) -> DecoderConfig:
    """A Llama with factors of embeddings, attention, outputs before the residual, and logits."""
    return replace(
        llama.read(fields),
        embed_scale=fields.number("embedding_multiplier", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logits_scale=1 / fields.number("logits_scaling", 1.0, above=0.0),
    )


GRANITE = Family(
    read,
    llama.LLAMA.fields | field_names("embedding_multiplier attention_multiplier residual_multiplier logits_scaling"),
)
