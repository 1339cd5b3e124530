"""ALBERT (arXiv 1909.11942). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families.bert import bert_names
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_encoder import ENCODER_FIELDS, classifier_of, read_encoder

ALBERT_NAMES = replace(
    bert_names("albert.", ("predictions.", "sop_classifier.")),
    layer="albert.encoder.albert_layer_groups.{}.albert_layers.0.",
    project_in="albert.encoder.embedding_hidden_mapping_in",
    attention_norm="attention.LayerNorm",
    mlp_norm="full_layer_layer_norm",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    output="attention.dense",
    up="ffn",
    down="ffn_output",
)


def read(fields: Fields) -> DecoderConfig:
    """A BERT with narrower embeddings, of which many layers have the same weights."""
    if fields.integer("inner_group_num", 1) != 1:
        raise fields.error("inner_group_num", "1: groups of several layers are not supported")
    head = classifier_of(("albert.",), ("pooler", "tanh"), ("classifier", "identity"))
    config = read_encoder(fields, ALBERT_NAMES, activation="gelu_new", head=head)
    layers = config.num_layers
    groups = fields.integer("num_hidden_groups", 1, at_most=layers)
    return replace(
        config,
        num_layers=groups,
        layer_order=tuple(layer * groups // layers for layer in range(layers)),
        embed_dim=fields.integer("embedding_size", 128),
        projects_sum=True,
    )


ALBERT = Family(
    read,
    ENCODER_FIELDS | field_names("embedding_size num_hidden_groups inner_group_num"),
    harmless=dict.fromkeys(
        field_names("classifier_dropout_prob net_structure_type gap_size num_memory_blocks down_scale_factor"), ()
    ),
)
