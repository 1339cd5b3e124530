"""GPT-Neo. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.classic_decoder import CLASSIC_FIELDS, GPT_SPELLING, read_classic_decoder
from ember.engine.description.config import DecoderConfig
from ember.engine.description.families.gpt2 import BIGCODE_NAMES
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import every_nth
from ember.engine.errors import ModelError

_SPELLING = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "activation": GPT_SPELLING["activation"],
}
GPT_NEO_NAMES = replace(
    BIGCODE_NAMES,
    qkv=None,
    query="attn.attention.q_proj",
    key="attn.attention.k_proj",
    value="attn.attention.v_proj",
    output="attn.attention.out_proj",
    buffers=(".attn.attention.bias",),
)


def read(fields: Fields) -> DecoderConfig:
    """Learned positions, products of queries and keys without a factor, a window in the layers of the type local."""
    config = read_classic_decoder(fields, GPT_NEO_NAMES, spelling=_SPELLING)
    windowed = _layer_types(fields, config.num_layers)
    return replace(
        config,
        position_offset=0,
        attention_scale=1.0,
        qkv_bias=False,
        sliding_window=fields.integer("window_size", 256),
        windowed_layers=windowed,
    )


def _layer_types(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """Whether each layer is local: from `attention_layers`, or a list of [types, repetitions]; every second if neither
    is there."""
    kinds, groups = fields.names("attention_layers"), fields.values.get("attention_types")
    if not kinds and groups is None:
        return every_nth(2, True, num_layers)
    if not kinds:
        allowed = "a list of [a list of global and local, repetitions]"
        if not isinstance(groups, list):
            raise fields.error("attention_types", allowed)
        for group in groups:
            if not (isinstance(group, list) and len(group) == 2 and isinstance(group[0], list)):
                raise fields.error("attention_types", allowed)
            if type(group[1]) is not int or not 0 < group[1] <= num_layers:
                raise fields.error("attention_types", allowed)
            kinds += group[0] * group[1]
    if len(kinds) != num_layers or not set(kinds) <= {"global", "local"}:
        name = "attention_layers" if fields.values.get("attention_layers") else "attention_types"
        raise ModelError(f"{name} must give global or local for each of num_layers={num_layers} layers")
    return tuple(kind == "local" for kind in kinds)


GPT_NEO = Family(
    read,
    CLASSIC_FIELDS | frozenset(_SPELLING.values()) | field_names("attention_layers attention_types window_size"),
    harmless=dict.fromkeys(
        field_names("summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout"), ()
    ),
)
