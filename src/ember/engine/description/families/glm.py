"""GLM-4 (arXiv 2406.12793) and Helium. This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

GLM_NAMES = replace(LLAMA_NAMES, gate_up="mlp.gate_up_proj")
GLM4_NAMES = replace(GLM_NAMES, attention_output_norm="post_self_attn_layernorm", mlp_output_norm="post_mlp_layernorm")


def read_glm(fields: Fields) -> DecoderConfig:
    """A Llama whose rotary positions are partial and interleaved, with biases on query, key and value."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=131072,
        num_kv_heads=2,
        head_dim=128,
        norm_eps=1.5625e-7,
        rope=RopeForm(share=0.5, interleaved=True),
    )
    return replace(config, names=GLM_NAMES, qkv_bias=fields.flag("attention_bias", True))


def read_glm4(fields: Fields) -> DecoderConfig:
    """GLM-4-0414: norms of the inputs and of the outputs of attention and MLP."""
    return replace(read_glm(fields), names=GLM4_NAMES, wiring="sandwich")


def read_helium(fields: Fields) -> DecoderConfig:
    """A Llama with interleaved rotary positions, and biases on query, key and value."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=4096,
        num_kv_heads=20,
        head_dim=128,
        norm_eps=1e-8,
        rope=RopeForm(theta=100_000.0, interleaved=True),
    )
    return replace(config, qkv_bias=fields.flag("attention_bias", False), mlp_bias=fields.flag("mlp_bias", False))


GLM = Family(read_glm, ROTARY_FIELDS | {"attention_bias"})
GLM4 = Family(read_glm4, GLM.fields)
HELIUM = Family(read_helium, GLM.fields | {"mlp_bias"})
