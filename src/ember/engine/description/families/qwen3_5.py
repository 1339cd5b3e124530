"""Qwen 3.5 and Qwen3-Next. This module does not import torch.

Three of four layers have the gated delta rule (arXiv 2412.06464), the others attention with a gate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig, ExpertsConfig, Mixer
from ember.engine.description.families.qwen import QWEN3_NAMES
from ember.engine.description.families.qwen_moe import QWEN2_MOE_NAMES, STACKED_NAMES
from ember.engine.description.family import Family, field_names
from ember.engine.description.fields import Fields
from ember.engine.description.layer_types import read_mixers
from ember.engine.description.mixers import DeltaConfig, DeltaNames
from ember.engine.description.read_experts import expert_layers, read_experts
from ember.engine.description.read_rope import RopeForm
from ember.engine.description.rotary_decoder import ROTARY_FIELDS, read_rotary_decoder
from ember.engine.description.weight_names import WeightNames
from ember.engine.errors import ModelError

_PARTS = DeltaNames(
    conv="linear_attn.conv1d",
    dt_bias="linear_attn.dt_bias",
    decay="linear_attn.A_log",
    norm="linear_attn.norm",
    output="linear_attn.out_proj",
)
APART = replace(
    _PARTS,
    qkv="linear_attn.in_proj_qkv",
    gate="linear_attn.in_proj_z",
    beta="linear_attn.in_proj_b",
    alpha="linear_attn.in_proj_a",
)
TOGETHER = replace(_PARTS, qkv_gate="linear_attn.in_proj_qkvz", beta_alpha="linear_attn.in_proj_ba")
_APART = QWEN2_MOE_NAMES.experts  # each expert in tensors of its own
assert _APART is not None
_STACKED = replace(
    _APART, up=None, gate=None, gate_up=STACKED_NAMES.gate_up, down=STACKED_NAMES.down, transposed=None, apart=_APART
)
_MIXERS: dict[str, Mixer] = {"linear_attention": "delta", "full_attention": "attention"}


def read_qwen3_5(fields: Fields) -> DecoderConfig:
    """Qwen 3.5: a gated MLP in all layers."""
    return _read(fields, replace(QWEN3_NAMES, delta=APART), num_kv_heads=4)


def read_qwen3_5_moe(fields: Fields) -> DecoderConfig:
    """Qwen 3.5 with experts in all layers, whose matrices are in one tensor."""
    names = replace(QWEN3_NAMES, delta=APART, experts=_STACKED)
    config = _read(fields, names, num_kv_heads=2, intermediate=("moe_intermediate_size", 512))
    return replace(config, experts=_read_experts(fields, count=256, per_token=8))


def read_qwen3_next(fields: Fields) -> DecoderConfig:
    """Qwen3-Next: the inputs of the delta rule in two matrices, and experts."""
    config = _read(fields, replace(QWEN3_NAMES, delta=TOGETHER, experts=_APART), num_kv_heads=2)
    experts = _read_experts(fields, count=512, per_token=10)
    layers, normalised = expert_layers(fields, config.num_layers), fields.flag("norm_topk_prob", True)
    return replace(config, experts=replace(experts, layers=layers, normalised=normalised))


def _read(
    fields: Fields,
    names: WeightNames,
    *,
    num_kv_heads: int,
    intermediate: tuple[str, int | None] = ("intermediate_size", None),
) -> DecoderConfig:
    config = read_rotary_decoder(
        fields,
        max_position_embeddings=32768,
        num_kv_heads=num_kv_heads,
        head_dim=256,
        rope=RopeForm(share=0.25),
        intermediate=intermediate,
    )
    fields.one_of("hidden_act", "silu", ("silu",))  # that of the convolution too
    delta = DeltaConfig(
        key_heads=fields.integer("linear_num_key_heads", 16),
        value_heads=fields.integer("linear_num_value_heads", 32),
        key_dim=fields.integer("linear_key_head_dim", 128),
        value_dim=fields.integer("linear_value_head_dim", 128),
        kernel=fields.integer("linear_conv_kernel_dim", 4),
    )
    if delta.value_heads % delta.key_heads:
        raise ModelError(
            f"linear_num_value_heads={delta.value_heads} must be a multiple of linear_num_key_heads={delta.key_heads}"
        )
    every, layers, bias = (
        fields.integer("full_attention_interval", 4),
        config.num_layers,
        fields.flag("attention_bias", False),
    )
    absent: list[Mixer] = ["delta" if (layer + 1) % every else "attention" for layer in range(layers)]
    return replace(
        config,
        names=replace(names, unused=("mtp.",)),
        norm_offset=1.0,
        qk_norm="head",
        qkv_bias=bias,
        output_bias=bias,
        attention_gate=True,
        layer_mixers=read_mixers(fields, layers, _MIXERS, absent),
        delta=delta,
    )


def _read_experts(fields: Fields, *, count: int, per_token: int) -> ExpertsConfig:
    experts = read_experts(
        fields, ("num_experts", count), ("num_experts_per_tok", per_token), ("moe_intermediate_size", 512)
    )
    return replace(
        experts,
        shared_size=fields.integer("shared_expert_intermediate_size", 512),
        shared_field="shared_expert_intermediate_size",
        shared_router=True,
    )


_FIELDS = ROTARY_FIELDS | field_names(
    "attention_bias layer_types full_attention_interval linear_num_key_heads linear_num_value_heads "
    "linear_key_head_dim linear_value_head_dim linear_conv_kernel_dim"
)
_EXPERT_FIELDS = field_names("num_experts num_experts_per_tok moe_intermediate_size shared_expert_intermediate_size")
# Published files say that attention has a gate, that states are float32, and how further tokens are predicted.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "attn_output_gate": (True,),
    "mamba_ssm_dtype": ("float32",),
    "mtp_num_hidden_layers": (),
    "mtp_use_dedicated_embeddings": (),
}
QWEN3_5 = Family(read_qwen3_5, _FIELDS, harmless=_HARMLESS)
QWEN3_5_MOE = Family(
    read_qwen3_5_moe,
    (_FIELDS | _EXPERT_FIELDS) - {"intermediate_size"},
    harmless={**_HARMLESS, "intermediate_size": ()},  # no layer has an MLP alone
)
QWEN3_NEXT = Family(
    read_qwen3_next,
    _FIELDS | _EXPERT_FIELDS | field_names("norm_topk_prob decoder_sparse_step mlp_only_layers"),
    harmless={"use_sliding_window": (False,)},
)
