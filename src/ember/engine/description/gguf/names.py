"""The names of tensors in GGUF files, which are the same for all architectures. This module does not import torch.

Source: the `gguf` package's constants.py (TENSOR_NAMES).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ember.engine.description.config import DecoderConfig, ExpertNames, WeightNames

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
    shared_router="ffn_gate_inp_shexp",
    suffix=".weight",
    bias_suffix=".bias",
)
_OPTIONAL = ("mlp_norm", "attention_output_norm", "mlp_output_norm", "query_norm", "key_norm", "sinks")
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
    if "attn_qkv.weight" in layers:
        names = replace(names, query=None, key=None, value=None, qkv="attn_qkv")
    if config.gated_mlp and "ffn_gate.weight" not in layers:
        names = replace(names, gate=None, gate_up="ffn_up")
    if config.experts is not None:
        names = replace(names, experts=_expert_names(config, layers))
    return replace(names, **own)


def _expert_names(config: DecoderConfig, layers: Collection[str]) -> ExpertNames:
    names = _EXPERTS
    if "ffn_gate_up_exps.weight" in layers:
        names = replace(names, gate=None, up=None, gate_up="ffn_gate_up_exps")
    elif "ffn_down.0.weight" in layers:  # each expert in tensors of its own, in the first files of Mixtral
        names = replace(names, gate="ffn_gate.{}", up="ffn_up.{}", down="ffn_down.{}")
    if config.gated_mlp and "ffn_up_shexp.weight" in layers and "ffn_gate_shexp.weight" not in layers:
        names = replace(names, shared_gate_up="ffn_up_shexp")
    return names
