"""Hunyuan's dense models. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

HUNYUAN_NAMES = replace(LLAMA_NAMES, query_norm="self_attn.query_layernorm", key_norm="self_attn.key_layernorm")


def read(fields: Fields) -> DecoderConfig:
    """A Llama with norms of each query and key head after their rotation, whose base `alpha` may stretch."""
    bias = fields.flag("attention_bias", False)
    return replace(
        read_rotary_decoder(fields, max_position_embeddings=2048, norm_eps=1e-5, rope=RopeForm(reads_alpha=True)),
        names=HUNYUAN_NAMES,
        qk_norm="head",
        rope_before_norm=True,
        qkv_bias=bias,
        output_bias=bias,
    )


# Of other models and tasks: images, classification, caches that layers share.
_UNUSED = field_names(
    "im_start_id im_end_id im_newline_id text_start_id text_end_id mask_init_id org_vocab_size class_num pool_type "
    "dense_list attention_head_dim cla_share_factor"
)
_ALWAYS = {"use_qk_norm": (True,), "use_rotary_pos_emb": (True,), "norm_type": ("rms",), "use_cla": (False,)}
_NEVER = {"add_classification_head": (False,), "mlp_bias": (False,)}
HUNYUAN_DENSE = Family(
    read, ROTARY_FIELDS | {"attention_bias"}, harmless={**dict.fromkeys(_UNUSED, ()), **_ALWAYS, **_NEVER}
)
