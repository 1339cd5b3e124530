"""Conversions of float32 to the narrower types that kernels write.

float8 e4m3 ("fn": no infinities, largest value 448) is written as uint8, so that one source works for devices with the
conversion instruction (capability 8.9 and up), for devices without it and in Triton's interpreter. The latter two
convert with integer arithmetic, to the same bits.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = 448.0
Rounded = tuple[Tensor, Tensor]
"""What a row is also written to in float8: its codes, uint8 [T, size], and its scale, float32 [T, 1]. Their product is
about the row."""
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
_INTERPRET: tl.constexpr = tl.constexpr(INTERPRET)


def has_conversion(capability: int | None = None) -> bool:
    """Whether the device (None: the current one) converts to e4m3 in hardware."""
    if INTERPRET:
        return False
    if capability is None:
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    return capability >= 89


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 -> dtype, nearest, ties to even. (Triton's interpreter truncates a plain conversion to bfloat16.)"""
    if _INTERPRET and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, even, bits).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def e4m3_bits(x, HARDWARE: tl.constexpr):
    """float32 -> e4m3 as uint8: nearest, ties to even, saturating; NaN stays NaN."""
    x = tl.where(x > 448.0, 448.0, x)
    x = tl.where(x < -448.0, -448.0, x)
    if HARDWARE:
        return x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Normal numbers keep 3 of 23 mantissa bits; the exponent's bias goes from 127 to 7.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 the step is 2^-9: in 16384 + |x| that is the last bit of the mantissa.
    subnormal = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, subnormal, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


def new_rounded(like: Tensor, tokens: int, size: int) -> Rounded:
    """Uninitialised memory for rows in float8, on the device of `like`."""
    codes = torch.empty((tokens, size), dtype=torch.uint8, device=like.device)
    return codes, torch.empty((tokens, 1), dtype=torch.float32, device=like.device)


@triton.jit
def row_scale(largest):
    """Largest magnitude of a row -> (scale to store, factor to multiply by before `e4m3_bits`)."""
    largest = tl.maximum(largest, 1e-12)
    return tl.div_rn(largest, 448.0), tl.div_rn(448.0, largest)


def quantise_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """[T, size] -> (e4m3 [T, size], float32 scale [T]); x is about value * scale."""
    x = x.float()
    largest = x.abs().amax(dim=-1).clamp(min=1e-12)
    scaled = x * (LARGEST / largest)[:, None]
    return scaled.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), largest / LARGEST
