"""Products with weights in float8 in Triton kernels."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.linear import Linear
from ember.engine.layers.scratch import scratch
from ember.engine.operators.triton_linear import LayoutKernels, Rounding
from ember_kernels import float8_gemm as float8
from ember_kernels.expert_blocks import ExpertBlocks
from ember_kernels.float8_experts import gather_float8, grouped_float8
from ember_kernels.rounding import Rounded

_SCALED_ALIGNMENT = 16  # elements: what torch's product of float8 matrices demands of rows and columns


def _linear(weight: Linear, x: Tensor) -> Tensor | None:
    assert isinstance(weight, Float8Linear)
    n, k = weight.codes.shape
    if not float8.can_multiply(n, k, weight.block):
        return None
    if len(x) <= float8.MAX_ROWS:
        return float8.float8_gemm(x.contiguous(), weight.codes, weight.scales, weight.block, weight.bias)
    if _is_scaled(weight, x):
        return _multiply_rounded(weight, x, float8.quantise_rows(x))
    buffer = scratch(n, k, x.dtype, x.device)
    return F.linear(x, float8.float8_restore(weight.codes, weight.scales, weight.block, buffer), weight.bias)


def _multiply_rounded(weight: Linear, x: Tensor, rounded: Rounded) -> Tensor:
    assert isinstance(weight, Float8Linear)
    codes, scales = rounded
    operands = codes.view(torch.float8_e4m3fn), weight.codes.T, scales, weight.scales.T.contiguous()
    product = torch._scaled_mm(*operands, out_dtype=x.dtype)
    return product if weight.bias is None else product.add_(weight.bias)


def _rounds(weight: Linear, x: Tensor) -> bool:
    assert isinstance(weight, Float8Linear)
    return len(x) > float8.MAX_ROWS and _is_scaled(weight, x)


def _experts(
    weight: Float8Linear, x: Tensor, ids: Tensor, count: int, blocks: ExpertBlocks | None, per_token: int
) -> Tensor:
    held = weight.codes, weight.scales, weight.block
    if blocks is None:
        return gather_float8(x, held, count, ids, per_token)
    return grouped_float8(x, held, count, blocks, per_token)


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


def _prepare(device: torch.device) -> None:
    has_scaled(device)


KERNELS = LayoutKernels(_linear, _experts, _prepare, Rounding(_rounds, _multiply_rounded))
