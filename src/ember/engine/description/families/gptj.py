"""GPT-J and CodeGen (arXiv 2203.13474). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.classic_decoder import GPT_FIELDS, read_classic_decoder
from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.rope_config import RopeConfig
from ember.engine.description.weight_names import WeightNames
from ember.engine.errors import ModelError

GPTJ_NAMES = WeightNames(
    layer="transformer.h.{}.",
    embed_tokens="transformer.wte",
    final_norm="transformer.ln_f",
    lm_head="lm_head",
    attention_norm="ln_1",
    mlp_norm=None,
    query="attn.q_proj",
    key="attn.k_proj",
    value="attn.v_proj",
    output="attn.out_proj",
    up="mlp.fc_in",
    down="mlp.fc_out",
    base="transformer.",
    buffers=(".attn.causal_mask",),
)
CODEGEN_NAMES = replace(GPTJ_NAMES, query=None, key=None, value=None, qkv="attn.qkv_proj", qkv_order="quarters")


def read_gptj(fields: Fields) -> DecoderConfig:
    """Attention and MLP beside each other with one norm, interleaved rotary positions, a bias of the head."""
    config = read_classic_decoder(fields, GPTJ_NAMES, tie_word_embeddings=False)
    rotary_dim = fields.integer("rotary_dim", 64)
    if rotary_dim % 2 or rotary_dim > config.head_dim:
        raise fields.error("rotary_dim", f"an even number up to the {config.head_dim} dimensions of a head")
    rope = RopeConfig(rotary_dim, interleaved=True)
    return replace(config, wiring="parallel", rope=rope, qkv_bias=False, output_bias=False, head_bias=True)


def read_codegen(fields: Fields) -> DecoderConfig:
    """GPT-J with query, value and key in one matrix, in four parts of the heads."""
    config = replace(read_gptj(fields), names=CODEGEN_NAMES)
    if config.num_heads % 4:
        raise ModelError(f"n_head={config.num_heads} must be a multiple of 4")
    return config


_NOT_READ = dict.fromkeys(
    field_names(
        "n_ctx scale_attn_weights rotary summary_type summary_use_proj "
        "summary_activation summary_proj_to_labels summary_first_dropout"
    ),
    (),
)
GPTJ = Family(read_gptj, GPT_FIELDS | {"rotary_dim"}, harmless=_NOT_READ)
CODEGEN = Family(read_codegen, GPTJ.fields, harmless=_NOT_READ)
