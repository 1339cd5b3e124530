"""The names of tensors in GGUF files, which are the same for all architectures. This module does not import torch.

Source: the `gguf` package's constants.py (TENSOR_NAMES).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.mixers import ConvNames, DeltaNames, SsdNames
from ember.engine.description.weight_names import ExpertNames, WeightNames

_NAMES = WeightNames(
    layer="blk.{}.",
    embed_tokens="token_embd",
    embed_positions="position_embd",
    embed_norm="token_embd_norm",
    final_norm="output_norm",
    lm_head="output",
    attention_norm="attn_norm",
    mlp_norm="ffn_norm",
    query="attn_q",
    key="attn_k",
    value="attn_v",
    output="attn_output",
    sinks="attn_sinks.weight",
    attention_output_norm="post_attention_norm",
    mlp_output_norm="post_ffw_norm",
    gate="ffn_gate",
    up="ffn_up",
    down="ffn_down",
    query_norm="attn_q_norm",
    key_norm="attn_k_norm",
    query_down="attn_q_a",
    query_down_norm="attn_q_a_norm",
    query_up="attn_q_b",
    kv_down="attn_kv_a_mqa",
    kv_down_norm="attn_kv_a_norm",
    kv_up="attn_kv_b",
    layer_table="per_layer_token_embd",
    layer_projection="per_layer_model_proj",
    layer_projection_norm="per_layer_proj_norm",
    layer_gate="inp_gate",
    layer_output="proj",
    layer_output_norm="post_norm",
    layer_scalar="layer_output_scale.weight",
    unused_kv=("attn_k.", "attn_v.", "attn_k_norm."),
    delta=DeltaNames(
        qkv="attn_qkv",
        gate="attn_gate",
        beta="ssm_beta",
        alpha="ssm_alpha",
        conv="ssm_conv1d",
        dt_bias="ssm_dt.bias",
        decay="ssm_a",
        norm="ssm_norm",
        output="ssm_out",
    ),
    ssd=SsdNames(
        inputs="ssm_in",
        conv="ssm_conv1d",
        dt_bias="ssm_dt.bias",
        decay="ssm_a",
        skip="ssm_d",
        norm="ssm_norm",
        output="ssm_out",
    ),
    conv=ConvNames(inputs="shortconv.in_proj", conv="shortconv.conv", output="shortconv.out_proj"),
    base="",
)
_EXPERTS = ExpertNames(
    router="ffn_gate_inp",
    gate="ffn_gate_exps",
    up="ffn_up_exps",
    down="ffn_down_exps",
    correction="exp_probs_b.bias",
    shared_gate="ffn_gate_shexp",
    shared_up="ffn_up_shexp",
    shared_down="ffn_down_shexp",
    latent_down="ffn_latent_down",
    latent_up="ffn_latent_up",
    shared_router="ffn_gate_inp_shexp",
    router_scale="ffn_gate_inp.scale",
    expert_scales="ffn_down_exps.scale",
    mlp_output_norm="post_ffw_norm_1",
    input_norm="pre_ffw_norm_2",
    output_norm="post_ffw_norm_2",
    suffix=".weight",
    bias_suffix=".bias",
)
_OPTIONAL = (
    *("mlp_norm", "attention_output_norm", "mlp_output_norm", "query_norm", "key_norm", "sinks"),
    *("query_down", "query_down_norm", "query_up", "kv_down", "kv_down_norm", "kv_up"),
    *("layer_table", "layer_projection", "layer_projection_norm", "layer_gate", "layer_output", "layer_output_norm"),
    *("layer_scalar", "delta", "ssd", "conv"),
)
# Stored tensors that are no weights: factors of rotary positions, which the configuration has.
BUFFERS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "attn_rot_embd.weight")


def gguf_names(config: DecoderConfig, layers: Collection[str], own: Mapping[str, Any]) -> WeightNames:
    """The names of a decoder's weights. `layers`: the names of tensors that the file's layers have; `own`: names of the
    architecture that differ from the usual.

    What the family's own names lack, the decoder does not have. Whether query, key and value are one matrix, and gate
    and up, the files decide.
    """
    family = config.names
    lacking: dict[str, Any] = {name: None for name in _OPTIONAL if getattr(family, name) is None}
    names = replace(_NAMES, **lacking, buffers=BUFFERS)
    if "attn_k_b.weight" in layers:
        names = replace(names, kv_up=None, key_up="attn_k_b", value_up="attn_v_b")
    if names.delta is not None:
        names = replace(names, delta=_delta_names(names.delta, layers))
    elif "attn_qkv.weight" in layers:
        names = replace(names, query=None, key=None, value=None, qkv="attn_qkv")
    if config.gated_mlp and "ffn_gate.weight" not in layers:
        names = replace(names, gate=None, gate_up="ffn_up")
    if config.experts is not None:
        names = replace(names, experts=_expert_names(config, layers))
    return replace(names, **own)


def _delta_names(names: DeltaNames, layers: Collection[str]) -> DeltaNames:
    """Of Qwen3-Next, the inputs of each key head are together in old files, and beta and alpha in all files."""
    if "ssm_ba.weight" in layers:
        names = replace(names, beta="", alpha="", beta_alpha="ssm_ba")
    if "ssm_in.weight" in layers:
        names = replace(names, qkv="", gate="", qkv_gate="ssm_in")
    return names


def _expert_names(config: DecoderConfig, layers: Collection[str]) -> ExpertNames:
    names = _EXPERTS
    if "ffn_gate_up_exps.weight" in layers:
        names = replace(names, gate=None, up=None, gate_up="ffn_gate_up_exps")
    elif "ffn_down.0.weight" in layers:  # each expert in tensors of its own, in the first files of Mixtral
        names = replace(names, gate="ffn_gate.{}", up="ffn_up.{}", down="ffn_down.{}")
    if config.gated_mlp and "ffn_up_shexp.weight" in layers and "ffn_gate_shexp.weight" not in layers:
        names = replace(names, shared_gate_up="ffn_up_shexp")
    return names
