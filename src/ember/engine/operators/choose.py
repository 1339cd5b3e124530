"""The choice of a decoder's operators, by device, dtype, CPU, features, sizes and layouts. It is made only here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ember.engine.description.config import DecoderConfig
from ember.engine.description.native_forms import library_fault
from ember.engine.description.operator_sets import NATIVE, TRITON, Lacking, check_features
from ember.engine.errors import ModelError
from ember.engine.layers.block import DecoderParts
from ember.engine.layers.linear import Linear
from ember.engine.operators.base import Operators
from ember.engine.operators.torch_ops import TorchOperators
from ember_cpu import library as native
from ember_cpu.variants import cpu_flags


@dataclass(frozen=True, slots=True)
class Choice:
    """The operators of a model, and the reason for the choice."""

    ops: Operators[Any]
    name: str  # torch, triton, native
    reason: str
    warning: str | None = None  # why faster operators cannot be used, if the user can change that

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


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
    try:
        from ember.engine.operators.triton_ops import TritonOperators
    except ImportError as error:
        return Choice(torch_ops, "torch", str(error), f"{error}; the model runs on torch operators, which is slower")
    lacking = TRITON.lacking(config)
    return Choice(TritonOperators(torch_ops, lacking), "triton", f"a GPU{_but(lacking)}")


def _for_cpu(config: DecoderConfig, parts: DecoderParts, torch_ops: TorchOperators, weights: str) -> Choice:
    dtype = str(torch_ops.dtype).removeprefix("torch.")
    if dtype != "bfloat16":
        return Choice(torch_ops, "torch", f"{dtype} on a CPU, where the C library computes in bfloat16")
    lacking = NATIVE.lacking(config)
    if "linear" in lacking:
        return Choice(torch_ops, "torch", f"the C library for CPUs cannot multiply: {lacking['linear']}")
    if weights == "auto" and "amx_bf16" in cpu_flags():
        return Choice(torch_ops, "torch", "a CPU with AMX, where oneDNN's packed products are the fastest")
    library = native.load()
    if library is None:
        fault = library_fault() or "it cannot be loaded; the log says why"
        warning = f"the model runs on torch operators, which is slower, without the C library: {fault}"
        return Choice(torch_ops, "torch", f"without the C library for CPUs: {fault}", warning)
    from ember.engine.operators.native_ops import NativeOperators

    held = "bfloat16" if weights == "auto" else f"{weights} weights"
    ops = NativeOperators(torch_ops, parts, library, lacking)
    return Choice(ops, "native", f"the C library for CPUs, {held}{_but(lacking)}")


def all_weights(parts: DecoderParts) -> Iterator[Linear]:
    """The matrices of a decoder's matrix products."""
    for block in parts.blocks:
        yield from block.matrices()
    yield from (weight for weight in (parts.embedding.project, parts.project_out) if weight is not None)
    yield parts.head


def _but(lacking: Lacking) -> str:
    """The operations that torch computes, as a part of the reason."""
    return "".join(f"; torch computes {operation}: {fault}" for operation, fault in lacking.items())
