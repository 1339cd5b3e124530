"""Phi 1, 1.5, 2, 3 and 4 (arXiv 2309.05463, 2404.14219). This module does not import torch."""

from __future__ import annotations

from dataclasses import replace

from ember.engine.description.config import DecoderConfig
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import LLAMA_NAMES, ROTARY_FIELDS, read_rotary_decoder

PHI_NAMES = replace(
    LLAMA_NAMES,
    final_norm="model.final_layernorm",
    mlp_norm=None,
    output="self_attn.dense",
    gate=None,
    up="mlp.fc1",
    down="mlp.fc2",
    query_norm="self_attn.q_layernorm",
    key_norm="self_attn.k_layernorm",
)
PHI3_NAMES = replace(LLAMA_NAMES, qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj")


def read_phi(fields: Fields) -> DecoderConfig:
    """Attention and MLP beside each other with one LayerNorm, partial rotary positions, biases everywhere. Some models
    have a LayerNorm of query and key heads."""
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=2048,
        norm_eps=1e-5,
        norm_eps_field="layer_norm_eps",
        activation="gelu_new",
        rope=RopeForm(share=0.5),
    )
    return replace(
        config,
        names=PHI_NAMES,
        norm="layer",
        norm_bias=True,
        wiring="parallel",
        qk_norm="layer_bias" if fields.flag("qk_layernorm", False) else None,
        gated_mlp=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
    )


def read_phi3(fields: Fields) -> DecoderConfig:
    """A Llama with a sliding window, whose matrices are fused in the checkpoint. Some have long factors of RoPE."""
    form = RopeForm(original=4096, renamed={"su": "longrope", "yarn": "longrope"})
    config = read_rotary_decoder(fields, max_position_embeddings=4096, norm_eps=1e-5, rope=form)
    return replace(config, names=PHI3_NAMES, sliding_window=fields.optional_integer("sliding_window", None))


PHI = Family(read_phi, ROTARY_FIELDS - {"rms_norm_eps"} | field_names("layer_norm_eps qk_layernorm"))
_NEVER = field_names("attention_bias mlp_bias lm_head_bias")
_PHI4: dict[str, tuple[int, ...]] = {"full_attn_mod": (1,), "interpolate_factor": (1,)}
PHI3 = Family(read_phi3, ROTARY_FIELDS | {"sliding_window"}, harmless=dict.fromkeys(_NEVER, (False,)) | _PHI4)
