"""BERT and RoBERTa (arXiv 1810.04805, 1907.11692). This module does not import torch."""

from __future__ import annotations

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.pooling import ClassifierHead
from ember.engine.description.read_encoder import ENCODER_FIELDS, classifier_of, read_encoder, with_mask_head
from ember.engine.description.weight_names import WeightNames


def bert_names(base: str, more_unused: tuple[str, ...] = ()) -> WeightNames:
    """The names of BERT's weights under the prefix `base`."""
    return WeightNames(
        base=base,
        layer=base + "encoder.layer.{}.",
        embed_tokens=f"{base}embeddings.word_embeddings",
        embed_positions=f"{base}embeddings.position_embeddings",
        embed_token_types=f"{base}embeddings.token_type_embeddings",
        embed_norm=f"{base}embeddings.LayerNorm",
        final_norm="",
        lm_head="cls.predictions.decoder",
        attention_norm="attention.output.LayerNorm",
        mlp_norm="output.LayerNorm",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
        up="intermediate.dense",
        down="output.dense",
        buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
        unused=("cls.", "lm_head.", "pooler.", f"{base}pooler.", *more_unused),
    )


BERT_NAMES = bert_names("bert.")
ROBERTA_NAMES = bert_names("roberta.")


TWO_LAYERS = classifier_of((), ("classifier.dense", "tanh"), ("classifier.out_proj", "identity"))


def pooler_and_classifier(*bases: str) -> ClassifierHead:
    """The head of BERT: the pooler, which is a part of the encoder, and a layer. `bases`: prefixes of the encoder."""
    return classifier_of(bases, ("pooler.dense", "tanh"), ("classifier", "identity"))


def read_bert(fields: Fields) -> DecoderConfig:
    """Learned positions and token types, LayerNorm after the sums, GELU."""
    config = read_encoder(fields, BERT_NAMES, head=pooler_and_classifier("bert."))
    transform, bias = "cls.predictions.transform.", "cls.predictions.bias"
    return with_mask_head(config, f"{transform}dense", f"{transform}LayerNorm", "cls.predictions.decoder", bias)


def read_roberta(fields: Fields) -> DecoderConfig:
    """A BERT whose positions begin after that of padding."""
    offset = fields.integer("pad_token_id", 1, at_least=0) + 1
    config = read_encoder(fields, ROBERTA_NAMES, position_offset=offset, head=TWO_LAYERS)
    return with_mask_head(config, "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", "gelu")


BERT = Family(
    read_bert,
    ENCODER_FIELDS,
    harmless=dict.fromkeys(  # of TensorFlow's first checkpoints
        field_names(
            "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head "
            "pooler_type"
        ),
        (),
    ),
)
ROBERTA = Family(read_roberta, ENCODER_FIELDS | field_names("pad_token_id"))
