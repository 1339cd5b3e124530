"""ELECTRA (arXiv 2003.10555). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families.bert import bert_names
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_encoder import ENCODER_FIELDS, classifier_of, read_encoder

_UNUSED = ("discriminator_predictions.", "generator_predictions.", "generator_lm_head.")
ELECTRA_NAMES = replace(bert_names("electra.", _UNUSED), project_in="electra.embeddings_project")


def read(fields: Fields) -> DecoderConfig:
    """A BERT whose embeddings may be narrower than its layers."""
    head = classifier_of((), ("classifier.dense", "gelu"), ("classifier.out_proj", "identity"))
    config = read_encoder(fields, ELECTRA_NAMES, head=head)
    width = fields.integer("embedding_size", 128)
    return config if width == config.hidden_size else replace(config, embed_dim=width, projects_sum=True)


ELECTRA = Family(
    read,
    ENCODER_FIELDS | {"embedding_size"},
    harmless=dict.fromkeys(
        field_names("summary_type summary_use_proj summary_activation summary_last_dropout generator_size"), ()
    ),
)
