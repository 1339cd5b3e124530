"""DeBERTa v2 and v3 (arXiv 2006.03654, 2111.09543). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig, Disentangled, TextConvolution
from ember.engine.description.families.bert import bert_names
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_encoder import ENCODER_FIELDS, classifier_of, read_encoder

_UNUSED = ("lm_predictions.", "mask_predictions.", "deberta.embeddings.position_embeddings.")
DEBERTA_NAMES = replace(
    bert_names("deberta.", (*_UNUSED, "embeddings.position_embeddings.")),
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    position_vectors="deberta.encoder.rel_embeddings",
    position_norm="deberta.encoder.LayerNorm",
    text_conv="deberta.encoder.conv.conv",
    text_conv_norm="deberta.encoder.conv.LayerNorm",
)


def read(fields: Fields) -> DecoderConfig:
    """A BERT whose attention sees contents and relative positions apart; in most files without other positions."""
    for name, only in (("relative_attention", True), ("share_att_key", True)):
        if fields.flag(name, False) is not only:
            raise fields.error(name, "true: the other is not supported")
    width = fields.optional_integer("embedding_size", None)
    if width not in (None, fields.values.get("hidden_size")):
        raise fields.error("embedding_size", "hidden_size: another is not supported")
    act = fields.one_of("pooler_hidden_act", "gelu", ("gelu", "tanh", "relu", "silu"))
    learned = fields.flag("position_biased_input", True)
    config = read_encoder(
        fields,
        DEBERTA_NAMES,
        position_offset=0 if learned else None,
        token_types=0,
        norm_eps=1e-7,
        head=classifier_of(("deberta.",), ("pooler.dense", act), ("classifier", "identity")),
    )
    longest, buckets = config.max_position_embeddings, fields.integer("position_buckets", -1, at_least=-1)
    far = fields.integer("max_relative_positions", -1, at_least=-1)
    far = far if far > 0 else longest
    if buckets == 1:
        raise fields.error("position_buckets", "at least 2, or -1: half of the buckets are exact")
    if buckets > 0 and far < 2:
        raise fields.error("max_relative_positions", "at least 2 beside position_buckets")
    kinds = fields.values.get("pos_att_type") or []
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not all(kind in ("c2p", "p2c") for kind in kinds):
        raise fields.error("pos_att_type", "a list of c2p and p2c")
    norms = str(fields.text("norm_rel_ebd", "none"))
    relative = Disentangled(
        span=buckets if buckets > 0 else far,
        buckets=max(buckets, 0),
        max_distance=far,
        content_to_position="c2p" in kinds,
        position_to_content="p2c" in kinds,
        norm="layer_norm" in norms,
    )
    scale = (config.head_dim * (1 + len(set(kinds)))) ** -0.5
    return replace(config, disentangled=relative, attention_scale=scale, text_conv=_convolution(fields, config))


def _convolution(fields: Fields, config: DecoderConfig) -> TextConvolution | None:
    kernel, groups = fields.integer("conv_kernel_size", 0, at_least=0), fields.integer("conv_groups", 1)
    if not kernel:
        return None
    if kernel % 2 == 0:
        raise fields.error("conv_kernel_size", "an odd number, so that the text keeps its length")
    if config.hidden_size % groups:
        raise fields.error("conv_groups", f"a divisor of hidden_size={config.hidden_size}")
    return TextConvolution(kernel, fields.one_of("conv_act", "tanh", ("tanh", "gelu", "relu", "silu")), groups)


DEBERTA_V2 = Family(
    read,
    ENCODER_FIELDS
    | field_names(
        "relative_attention share_att_key embedding_size conv_kernel_size conv_groups conv_act position_biased_input"
    )
    | field_names("position_buckets max_relative_positions pos_att_type norm_rel_ebd pooler_hidden_act"),
    harmless=dict.fromkeys(field_names("pooler_dropout pooler_hidden_size legacy cls_dropout padding_idx"), ()),
)
