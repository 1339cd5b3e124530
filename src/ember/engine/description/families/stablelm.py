"""StableLM. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

STABLELM_NAMES = replace(
    LLAMA_NAMES, query_norm="self_attn.q_layernorm.norms.{}", key_norm="self_attn.k_layernorm.norms.{}"
)


def read(fields: Fields) -> DecoderConfig:
    """LayerNorm, partial rotary positions, a gated MLP. Some models have a LayerNorm of each query and key head, and
    attention and MLP beside each other."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=4096,
        num_kv_heads=32,
        norm_eps=1e-5,
        norm_eps_field="layer_norm_eps",
        rope=RopeForm(share=0.25),
    )
    is_parallel = fields.flag("use_parallel_residual", False)
    return replace(
        config,
        names=replace(STABLELM_NAMES, mlp_norm=None) if is_parallel else STABLELM_NAMES,
        norm="layer",
        norm_bias=True,
        wiring="parallel" if is_parallel else "pre_norm",
        qk_norm="layer" if fields.flag("qk_layernorm", False) else None,
        qkv_bias=fields.flag("use_qkv_bias", False),
    )


STABLELM = Family(
    read,
    ROTARY_FIELDS - {"rms_norm_eps"} | field_names("layer_norm_eps use_parallel_residual qk_layernorm use_qkv_bias"),
    harmless={"use_norm_bias": (), "rotary_scaling_factor": (1.0,)},
)
