"""Products with quantised weights in Triton kernels, for each layout that has some.

Few rows are multiplied with the weight as it is stored. For more rows a kernel restores the weight in the shared buffer
and torch multiplies it, or torch multiplies two matrices in float8 where the checkpoint is made for that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.scratch import scratch
from ember.engine.layers.table_linear import TableLinear
from ember_kernels import float8_gemm as float8
from ember_kernels import int_gemm as ints
from ember_kernels import table_gemm as table

_SCALED_ALIGNMENT = 16  # elements: what torch's product of float8 matrices demands of rows and columns


def multiply(weight: Linear, x: Tensor) -> Tensor | None:
    """x [rows, in] -> [rows, out] in kernels of the weight's layout; None: it has none, or none for these sizes."""
    kernel = KERNELS.get(type(weight))
    return None if kernel is None or x.dtype == torch.float32 else kernel(weight, x)


def _float8(weight: Linear, x: Tensor) -> Tensor | None:
    assert isinstance(weight, Float8Linear)
    n, k = weight.codes.shape
    if not float8.can_multiply(n, k, weight.block):
        return None
    if len(x) <= float8.MAX_ROWS:
        return float8.float8_gemm(x.contiguous(), weight.codes, weight.scales, weight.block, weight.bias)
    if _is_scaled(weight, x):
        codes, scales = float8.quantise_rows(x)
        product = torch._scaled_mm(codes, weight.codes.T, scales, weight.scales.T.contiguous(), out_dtype=x.dtype)
        return product if weight.bias is None else product.add_(weight.bias)
    buffer = scratch(n, k, x.dtype, x.device)
    return F.linear(x, float8.float8_restore(weight.codes, weight.scales, weight.block, buffer), weight.bias)


def _is_scaled(weight: Float8Linear, x: Tensor) -> bool:
    """Whether torch multiplies the inputs in float8: the checkpoint is made for it, and torch can with scales of rows
    (of bfloat16 results alone)."""
    n, k = weight.codes.shape
    fits = weight.block[0] == 1 and weight.block[1] >= k and n % _SCALED_ALIGNMENT == 0 == k % _SCALED_ALIGNMENT
    return weight.quantises_inputs and fits and x.dtype == torch.bfloat16 and has_scaled(x.device)


@cache
def has_scaled(device: torch.device) -> bool:
    """Whether torch's product of float8 matrices with scales of rows works on the device, tried on a small case. It
    waits for the device, so it is called first before any step."""
    if device.type != "cuda" or not torch.cuda.is_available() or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    ones = torch.ones(16, 16, device=device)
    try:
        codes, scales = ones.to(torch.float8_e4m3fn), torch.full((16, 1), 0.5, device=device)
        product = torch._scaled_mm(codes, codes.T, scales, scales.T.contiguous(), out_dtype=torch.bfloat16)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    return bool((product == 4.0).all())


def _ints(weight: Linear, x: Tensor) -> Tensor | None:
    assert isinstance(weight, IntLinear)
    n, k = weight.out_features, weight.in_features
    if not ints.can_multiply(k, weight.group):
        return None
    x = x.contiguous() if weight.order is None else x.index_select(1, weight.order)
    held = weight.codes, weight.scales, weight.zeros, weight.bits
    if len(x) <= ints.MAX_ROWS:
        return ints.int_gemm(x, *held, weight.bias)
    return F.linear(x, ints.int_restore(*held, scratch(n, k, x.dtype, x.device)), weight.bias)


def _table(weight: Linear, x: Tensor) -> Tensor | None:
    assert isinstance(weight, TableLinear)
    if not table.can_multiply(weight.in_features, weight.block):
        return None
    if len(x) <= table.MAX_ROWS:
        return table.table_gemm(x.contiguous(), table_weight(weight), weight.bias)
    buffer = scratch(weight.out_features, weight.in_features, x.dtype, x.device)
    return F.linear(x, table.table_restore(table_weight(weight), buffer), weight.bias)


def table_weight(weight: TableLinear) -> table.TableWeight:
    """The weight as the kernels take it."""
    return table.TableWeight(weight.codes, weight.scales, None if weight.is_e2m1 else weight.table, weight.factors)


KERNELS: dict[type[Linear], Callable[[Linear, Tensor], Tensor | None]] = {
    Float8Linear: _float8,
    IntLinear: _ints,
    TableLinear: _table,
}
