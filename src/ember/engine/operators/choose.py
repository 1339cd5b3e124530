"""The making of a decoder's operators, as `description.operator_choice` decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.description.operator_choice import Decision, decide
from ember.engine.description.operator_sets import TRITON_EXPERT_LAYOUTS, check_features
from ember.engine.layers.block import DecoderParts
from ember.engine.layers.experts import Experts
from ember.engine.layers.linear import Linear
from ember.engine.layers.mixers import StateMixer
from ember.engine.operators.base import Operators
from ember.engine.operators.torch_ops import TorchOperators
from ember_cpu import library as native


@dataclass(frozen=True, slots=True)
class Choice:
    """The operators of a model, and the decision for them."""

    ops: Operators[Any]
    decision: Decision

    @property
    def name(self) -> str:
        return self.decision.name

    @property
    def reason(self) -> str:
        return self.decision.reason

    @property
    def warning(self) -> str | None:
        return self.decision.warning

    def __str__(self) -> str:
        return str(self.decision)


def choose(
    config: DecoderConfig,
    parts: DecoderParts,
    dtype: torch.dtype,
    device: torch.device,
    weights: str = "auto",
    activations: str = "auto",
) -> Choice:
    """Choose the operators for `parts`, which are on `device` in `dtype`. `weights`: the form of its matrices on a CPU
    (auto: unchanged; int8, int4). `activations`: those that quantised weights are multiplied with there (auto: in 8
    bits; float).

    Raises ModelError that names features that no set computes.
    """
    check_features(config)
    torch_ops = TorchOperators(config, parts, dtype, device)
    if device.type == "cuda":
        return _for_gpu(config, parts, torch_ops)
    return _for_cpu(config, parts, torch_ops, weights, activations)


def decision_for(
    config: DecoderConfig,
    parts: DecoderParts,
    dtype: torch.dtype,
    device: str,
    weights: str = "auto",
    fault: str | None = None,
    activations: str = "auto",
) -> Decision:
    """The decision for a decoder with these weights. `fault`: as `decide` has it."""
    experts = [block.mlp for block in parts.blocks if isinstance(block.mlp, Experts)]
    return decide(
        config,
        str(dtype).removeprefix("torch."),
        device,
        weights,
        fault,
        float8_cache=any(
            mixer.cache_scales is not None
            for mixer in (block.mixer for block in parts.blocks)
            if mixer is not None and not isinstance(mixer, StateMixer)
        ),
        layouts=parts.layout_names(),
        own_experts=all(has_kernels(matrices) for each in experts for matrices in (each.up, each.down)),
        activations=activations,
    )


def has_kernels(matrices: Tensor | Linear | None) -> bool:
    """Whether Triton's kernels multiply the matrices of all experts, which may be one plain tensor or one layer."""
    if isinstance(matrices, Linear):
        return frozenset({matrices.layout}) in TRITON_EXPERT_LAYOUTS
    return isinstance(matrices, Tensor)


def _for_gpu(config: DecoderConfig, parts: DecoderParts, torch_ops: TorchOperators) -> Choice:
    try:
        from ember.engine.operators.triton_linear import load
        from ember.engine.operators.triton_ops import TritonOperators

        load(parts.layouts(), torch_ops.device)
    except ImportError as error:
        return Choice(torch_ops, decision_for(config, parts, torch_ops.dtype, "cuda", fault=str(error)))
    decision = decision_for(config, parts, torch_ops.dtype, "cuda")
    return Choice(TritonOperators(torch_ops, decision.lacking), decision)


def _for_cpu(
    config: DecoderConfig, parts: DecoderParts, torch_ops: TorchOperators, weights: str, activations: str
) -> Choice:
    decision = decision_for(config, parts, torch_ops.dtype, "cpu", weights, activations=activations)
    if decision.name != "native":
        return Choice(torch_ops, decision)
    library = native.load()
    if library is None:
        fault = "it cannot be loaded; the log says why"
        return Choice(torch_ops, decision_for(config, parts, torch_ops.dtype, "cpu", weights, fault, activations))
    from ember.engine.operators.native_ops import NativeOperators

    return Choice(NativeOperators(torch_ops, parts, library, decision.lacking, activations), decision)
