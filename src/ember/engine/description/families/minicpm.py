"""MiniCPM 1 to 4 (arXiv 2404.06395). This module does not import torch."""

from __future__ import annotations

import math
from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_latent import LATENT_FIELDS, LATENT_HARMLESS, LatentSizes, read_latent_decoder
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder


def read(fields: Fields) -> DecoderConfig:
    """A Llama with factors of embeddings, of outputs before the residual, and of the final hidden states."""
    config = read_rotary_decoder(fields, max_position_embeddings=2048, tie_word_embeddings=True)
    if fields.integer("num_experts", 0, at_least=0):
        raise fields.error("num_experts", "0: experts of MiniCPM are not supported")
    bias = fields.flag("attention_bias", False)
    return replace(
        config,
        qkv_bias=bias,
        output_bias=bias,
        embed_scale=fields.number("scale_emb", 1.0),
        residual_scale=fields.number("scale_depth", 1.0) / math.sqrt(config.num_layers),
        logits_scale=fields.integer("dim_model_base", 1) / config.hidden_size,
    )


def read_minicpm3(fields: Fields) -> DecoderConfig:
    """MiniCPM 3: the same factors, and latent attention."""
    sizes = LatentSizes(kv_rank=256, query_rank=768, plain_dim=64, rotary_dim=32, value_dim=None)
    config = read_latent_decoder(
        fields,
        max_position_embeddings=32768,
        sizes=sizes,
        norm_eps=1e-5,
        interleaved=None,
        tie_word_embeddings=True,
    )
    # null is a neutral factor.
    depth = fields.optional_number("scale_depth", 1.4)
    base = fields.optional_integer("dim_model_base", 256)
    return replace(
        config,
        mlp_bias=fields.flag("mlp_bias", False),
        embed_scale=fields.number("scale_emb", 12.0),
        residual_scale=1.0 if depth is None else depth / math.sqrt(config.num_layers),
        logits_scale=1.0 if base is None else base / config.hidden_size,
    )


MINICPM = Family(
    read,
    ROTARY_FIELDS | field_names("attention_bias scale_emb scale_depth dim_model_base num_experts"),
    harmless={"mup_denominator": ()},  # of drafts
)
MINICPM3 = Family(
    read_minicpm3, LATENT_FIELDS | field_names("mlp_bias scale_emb scale_depth dim_model_base"), LATENT_HARMLESS
)
