"""BLOOM (arXiv 2211.05100). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.classic_decoder import CLASSIC_FIELDS, alibi_slopes, read_classic_decoder
from ember.engine.description.config import DecoderConfig, Wiring
from ember.engine.description.families.falcon import FALCON_NAMES
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields

_SPELLING = {
    "hidden_size": "n_embed",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "seq_length",
}
BLOOM_NAMES = replace(
    FALCON_NAMES, embed_norm="transformer.word_embeddings_layernorm", mlp_norm="post_attention_layernorm"
)


def read(fields: Fields) -> DecoderConfig:
    """ALiBi, a norm of the embeddings, LayerNorm before each part."""
    config = read_classic_decoder(fields, BLOOM_NAMES, spelling=_SPELLING)
    after_norm = fields.flag("apply_residual_connection_post_layernorm", False)
    wiring: Wiring = "normed_residual" if after_norm else "pre_norm"
    return replace(config, wiring=wiring, embed_norm=True, alibi=alibi_slopes(config.num_heads))


BLOOM = Family(
    read,
    CLASSIC_FIELDS | frozenset(_SPELLING.values()) | {"apply_residual_connection_post_layernorm"},
    harmless=dict.fromkeys(
        field_names(
            "slow_but_exact n_inner bias_dropout_fusion masked_softmax_fusion offset_alibi attention_softmax_in_fp32 "
            "skip_bias_add skip_bias_add_qkv"
        ),
        (),
    ),
)
