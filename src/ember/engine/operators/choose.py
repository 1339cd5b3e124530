"""The making of a decoder's operators, as `description.operator_choice` decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ember.engine.description.config import DecoderConfig
from ember.engine.description.operator_choice import Decision, decide
from ember.engine.description.operator_sets import check_features
from ember.engine.errors import ModelError
from ember.engine.layers.block import DecoderParts
from ember.engine.layers.linear import Linear
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
    config: DecoderConfig, parts: DecoderParts, dtype: torch.dtype, device: torch.device, weights: str = "auto"
) -> Choice:
    """Choose the operators for `parts`, which are on `device` in `dtype`. `weights`: the form of its matrices on a CPU
    (auto: unchanged; int8, int4).

    Raises ModelError that names features and layouts that no set computes.
    """
    check_features(config)
    torch_ops = TorchOperators(config, parts, dtype, device)
    foreign = {type(weight) for weight in all_weights(parts)} - torch_ops.layouts
    if foreign:
        names = ", ".join(sorted(layout.__name__ for layout in foreign))
        raise ModelError(f"no operators multiply weights of the layout {names}: {config.architecture} cannot be served")
    if device.type == "cuda":
        return _for_gpu(config, torch_ops)
    return _for_cpu(config, parts, torch_ops, weights)


def _for_gpu(config: DecoderConfig, torch_ops: TorchOperators) -> Choice:
    dtype = _name(torch_ops.dtype)
    try:
        from ember.engine.operators.triton_ops import TritonOperators
    except ImportError as error:
        return Choice(torch_ops, decide(config, dtype, "cuda", fault=str(error)))
    decision = decide(config, dtype, "cuda")
    return Choice(TritonOperators(torch_ops, decision.lacking), decision)


def _for_cpu(config: DecoderConfig, parts: DecoderParts, torch_ops: TorchOperators, weights: str) -> Choice:
    dtype = _name(torch_ops.dtype)
    float8_cache = any(block.attention.cache_scales is not None for block in parts.blocks)
    decision = decide(config, dtype, "cpu", weights, float8_cache=float8_cache)
    if decision.name != "native":
        return Choice(torch_ops, decision)
    library = native.load()
    if library is None:
        fault = "it cannot be loaded; the log says why"
        return Choice(torch_ops, decide(config, dtype, "cpu", weights, fault))
    from ember.engine.operators.native_ops import NativeOperators

    return Choice(NativeOperators(torch_ops, parts, library, decision.lacking), decision)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def all_weights(parts: DecoderParts) -> Iterator[Linear]:
    """The matrices of a decoder's matrix products."""
    for block in parts.blocks:
        yield from block.matrices()
    yield from (weight for weight in (parts.embedding.project, parts.project_out) if weight is not None)
    yield parts.head
