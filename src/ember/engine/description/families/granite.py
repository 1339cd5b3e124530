"""Granite 3, dense and with experts. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig, ExpertNames
from ember.engine.description.families import llama
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_experts import read_experts

MOE_NAMES = ExpertNames(
    router="block_sparse_moe.router.layer",
    gate_up="block_sparse_moe.input_linear.weight",
    down="block_sparse_moe.output_linear.weight",
)


def read(fields: Fields) -> DecoderConfig:
    """A Llama with factors of embeddings, attention, outputs before the residual, and logits."""
    return replace(
        llama.read(fields),
        embed_scale=fields.number("embedding_multiplier", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logits_scale=1 / fields.number("logits_scaling", 1.0, above=0.0),
    )


def read_moe(fields: Fields) -> DecoderConfig:
    """Granite with experts, in one tensor for all."""
    config = read(fields)
    experts = read_experts(
        fields, ("num_local_experts", 8), ("num_experts_per_tok", 2), (config.intermediate_field, 11008)
    )
    return replace(config, names=replace(config.names, experts=MOE_NAMES), experts=experts)


GRANITE = Family(
    read,
    llama.LLAMA.fields | field_names("embedding_multiplier attention_multiplier residual_multiplier logits_scaling"),
)
GRANITE_MOE = Family(read_moe, GRANITE.fields | {"num_local_experts", "num_experts_per_tok"})
