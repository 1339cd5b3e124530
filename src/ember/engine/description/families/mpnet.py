"""MPNet (arXiv 2004.09297). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig, DistanceBias
from ember.engine.description.families.bert import TWO_LAYERS, bert_names
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.read_encoder import ENCODER_FIELDS, read_encoder

MPNET_NAMES = replace(
    bert_names("mpnet."),
    embed_token_types=None,
    distance_bias="mpnet.encoder.relative_attention_bias",
    attention_norm="attention.LayerNorm",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    output="attention.attn.o",
)


def read(fields: Fields) -> DecoderConfig:
    """A RoBERTa without token types, whose scores have a bias by distance. Its padding token is always number 1."""
    config = read_encoder(fields, MPNET_NAMES, position_offset=2, token_types=None, head=TWO_LAYERS)
    buckets = fields.integer("relative_attention_num_buckets", 32, at_least=4)
    return replace(config, distance_bias=DistanceBias(buckets))


MPNET = Family(read, ENCODER_FIELDS - {"type_vocab_size"} | {"relative_attention_num_buckets"})
