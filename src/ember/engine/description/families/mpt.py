"""MPT. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.classic_decoder import CLASSIC_FIELDS, alibi_slopes, must_be, read_classic_decoder
from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields, listed
from ember.engine.description.known_fields import HARMLESS, NEUTRAL
from ember.engine.description.weight_names import WeightNames

_SPELLING = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}
MPT_NAMES = WeightNames(
    layer="transformer.blocks.{}.",
    embed_tokens="transformer.wte",
    embed_positions="transformer.wpe",
    final_norm="transformer.norm_f",
    lm_head="lm_head",
    attention_norm="norm_1",
    mlp_norm="norm_2",
    qkv="attn.Wqkv",
    output="attn.out_proj",
    up="ffn.up_proj",
    down="ffn.down_proj",
    base="transformer.",
)
_ATTENTION = field_names("attn_type clip_qkv softmax_scale alibi alibi_bias_max prefix_lm qk_ln rope")
_HARMLESS_ATTENTION = HARMLESS | NEUTRAL.keys() | field_names("attn_impl attn_uses_sequence_id model_type")


def read(fields: Fields) -> DecoderConfig:
    """ALiBi, or learned positions; biases everywhere or nowhere. `attn_config` is an object with the fields of
    attention."""
    config = read_classic_decoder(fields, MPT_NAMES, spelling=_SPELLING, activation="gelu")
    attention = Fields(fields.mapping("attn_config"), "attn_config.")
    attention.one_of("attn_type", "multihead_attention", ("multihead_attention",))
    for name in ("prefix_lm", "qk_ln", "rope"):
        must_be(attention, name, False)
    if unread := attention.unread(_ATTENTION | _HARMLESS_ATTENTION):
        fields.warnings.append(f"{listed(unread)} is not read")
    clip = attention.number("clip_qkv", 0.0, at_least=0.0)
    scale = attention.number("softmax_scale", 0.0, at_least=0.0)
    learned = fields.flag("learned_pos_emb", True)
    has_alibi, bias = attention.flag("alibi", True), not fields.flag("no_bias", True)
    slopes = alibi_slopes(config.num_heads, attention.integer("alibi_bias_max", 8))
    return replace(
        config,
        intermediate_size=config.hidden_size * fields.integer("expansion_ratio", 4),
        intermediate_field="d_model * expansion_ratio",
        norm_bias=bias,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        qkv_clip=clip or None,
        attention_scale=scale or None,
        alibi=slopes if has_alibi else (),
        position_offset=None if has_alibi or not learned else 0,
        logits_scale=_logits_scale(fields, config.hidden_size),
    )


def _logits_scale(fields: Fields, hidden_size: int) -> float:
    """A number, or the name of one."""
    if fields.values.get("logit_scale") == "inv_sqrt_d_model":
        return float(hidden_size**-0.5)
    return fields.number("logit_scale", 1.0)


MPT = Family(
    read,
    CLASSIC_FIELDS
    | frozenset(_SPELLING.values())
    | field_names("no_bias logit_scale attn_config expansion_ratio learned_pos_emb"),
    harmless={
        **dict.fromkeys(field_names("init_device embedding_fraction verbose init_config tokenizer_name"), ()),
        "norm_type": ("low_precision_layernorm", "layernorm"),
        "ffn_config": ({"ffn_type": "mptmlp"}, {"ffn_type": "mptmlp", "fc_type": "torch"}, {}),
    },
)
