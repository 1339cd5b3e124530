"""DistilBERT (arXiv 1910.01108). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families.bert import bert_names
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_encoder import ENCODER_FIELDS, classifier_of, read_encoder, with_mask_head

_SPELLING = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}
DISTILBERT_NAMES = replace(
    bert_names("distilbert.", ("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "pre_classifier.")),
    layer="distilbert.transformer.layer.{}.",
    embed_token_types=None,
    attention_norm="sa_layer_norm",
    mlp_norm="output_layer_norm",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    output="attention.out_lin",
    up="ffn.lin1",
    down="ffn.lin2",
)


def read(fields: Fields) -> DecoderConfig:
    """A BERT without token types."""
    head = classifier_of((), ("pre_classifier", "relu"), ("classifier", "identity"))
    config = read_encoder(fields, DISTILBERT_NAMES, spelling=_SPELLING, token_types=None, head=head)
    modules = ("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias")
    return with_mask_head(config, *modules)


DISTILBERT = Family(
    read,
    ENCODER_FIELDS - {"layer_norm_eps", "type_vocab_size"} | frozenset(_SPELLING.values()),
    harmless=dict.fromkeys(field_names("sinusoidal_pos_embds qa_dropout seq_classif_dropout tie_weights_"), ()),
)
