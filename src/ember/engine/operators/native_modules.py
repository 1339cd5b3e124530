"""Products with the matrices of torch modules in the C library for CPUs, for models that transformers computes.

Models call their `torch.nn.Linear` modules. torch multiplies a matrix with a few rows at half of the speed at which it
could be read from memory, or less. The library does it at that speed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ember.engine.description.operator_sets import NATIVE_ALIGNMENT, NATIVE_MAX_SIZE
from ember_cpu import library as native

_MAX_ROWS = {torch.float32: 32, torch.bfloat16: native.MAX_ROWS}
"""Rows of input up to which the library is faster than torch, in each dtype."""


def use_library(lm: nn.Module) -> int:
    """Let the library compute the products of a model on a CPU, where it is faster. Returns how many matrices it
    multiplies with. Modules of derived classes, and those whose products somebody else has replaced, stay as they
    are."""
    library = native.load()
    if library is None:
        return 0
    changed = 0
    for module in lm.modules():
        if type(module) is nn.Linear and "forward" not in vars(module) and _multiplies(module.weight, module.bias):
            module.forward = _product(library, module)  # type: ignore[method-assign, assignment]
            changed += 1
    return changed


def _multiplies(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the library multiplies with such a matrix."""
    if weight.device.type != "cpu" or weight.dtype not in _MAX_ROWS or not weight.is_contiguous():
        return False
    if bias is not None and (bias.dtype != weight.dtype or not bias.is_contiguous()):
        return False
    rows, columns = weight.shape
    return rows >= 4 and columns % NATIVE_ALIGNMENT == 0 and columns <= NATIVE_MAX_SIZE


def _product(library: ctypes.CDLL, module: Any) -> Callable[[Tensor], Tensor]:
    """The module's `forward`."""
    out_features, in_features, dtype = module.out_features, module.in_features, module.weight.dtype
    most = _MAX_ROWS[dtype] * in_features

    def forward(x: Tensor) -> Tensor:
        weight, bias = module.weight, module.bias
        if not 0 < x.numel() <= most or x.dtype != dtype or x.shape[-1] != in_features:
            return F.linear(x, weight, bias)
        rows = x.reshape(-1, in_features).contiguous()
        out = torch.empty(len(rows), out_features, dtype=dtype)
        threads = torch.get_num_threads()
        if dtype == torch.float32:
            native.linear_float32(library, weight, bias, rows, out, threads)
        else:
            out.copy_(native.linear(library, native.plain_matrix(weight, bias), rows, threads))
        return out.view(*x.shape[:-1], out_features)

    return forward
