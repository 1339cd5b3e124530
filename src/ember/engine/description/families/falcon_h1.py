"""Falcon H1 (arXiv 2507.22448). This module does not import torch.

Every layer has attention and Mamba 2 (arXiv 2405.21060) side by side.
"""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.families import llama
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.mixers import SsdConfig
from ember.engine.description.read_ssd import HARMLESS, SSD_FIELDS, read_ssd, ssd_names
from ember.engine.description.rotary_decoder import LLAMA_NAMES

NAMES = replace(
    LLAMA_NAMES,
    ssd=ssd_names("mamba"),
    final_norm="model.final_layernorm",
    mlp_norm="pre_ff_layernorm",
    gate="feed_forward.gate_proj",
    up="feed_forward.up_proj",
    down="feed_forward.down_proj",
)


def read(fields: Fields) -> DecoderConfig:
    """A Llama with Mamba 2 beside attention, and factors of nearly everything."""
    config = llama.read(fields, max_position_embeddings=8192, num_kv_heads=8, norm_eps=1e-5)
    key_scale = fields.number("key_multiplier", 1.0, above=0.0)
    gate_scale, mlp_scale = _factors(fields, "mlp_multipliers", 2)
    return replace(
        config,
        names=NAMES,
        embed_scale=fields.number("embedding_multiplier", 1.0),
        logits_scale=fields.number("lm_head_multiplier", 1.0),
        attention_scale=None if key_scale == 1.0 else key_scale * config.head_dim**-0.5,
        attention_input_scale=fields.number("attention_in_multiplier", 1.0),
        attention_output_scale=fields.number("attention_out_multiplier", 1.0),
        gate_scale=gate_scale,
        mlp_output_scale=mlp_scale,
        ssd_beside_attention=True,
        ssd=_read_ssd(fields, config.hidden_size),
    )


def _read_ssd(fields: Fields, hidden_size: int) -> SsdConfig:
    gate_scale, x_scale, b_scale, c_scale, dt_scale = _factors(fields, "ssm_multipliers", 5)
    norm_first = fields.flag("mamba_norm_before_gate", True)
    has_norm = fields.flag("mamba_rms_norm", False)
    return replace(
        read_ssd(fields, hidden_size, inner=("mamba_d_ssm", 1024)),
        output_bias=fields.flag("projectors_bias", False),
        norm="none" if not has_norm else "before_gate" if norm_first else "after_gate",
        input_scale=fields.number("ssm_in_multiplier", 1.0),
        gate_scale=gate_scale,
        channel_scales=(x_scale, b_scale, c_scale),
        dt_scale=dt_scale,
        output_scale=fields.number("ssm_out_multiplier", 1.0),
    )


def _factors(fields: Fields, name: str, count: int) -> tuple[float, ...]:
    return (1.0,) * count if fields.values.get(name) is None else fields.numbers(name, count)


FALCON_H1 = Family(
    read,
    llama.LLAMA.fields
    | SSD_FIELDS
    | field_names(
        "mamba_d_ssm mamba_rms_norm mamba_norm_before_gate projectors_bias embedding_multiplier lm_head_multiplier "
        "key_multiplier attention_in_multiplier attention_out_multiplier mlp_multipliers ssm_in_multiplier "
        "ssm_multipliers ssm_out_multiplier"
    ),
    harmless={
        **dict.fromkeys(
            HARMLESS | field_names("num_logits_to_keep layer_types layers_block_type mlp_expansion_factor"), ()
        ),
        "mamba_use_mlp": (True,),
    },
)
