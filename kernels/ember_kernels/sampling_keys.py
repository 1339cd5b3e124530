"""Device functions of the samplers: sortable keys of tokens, and counter-based noise."""

from __future__ import annotations

import os

import triton
import triton.language as tl

MAX_VOCABULARY = 1 << 20  # ids have 20 bits in a key
SERIES_BELOW, SERIES_TERMS = 0.125, 8  # where 1 - v has lost digits of v, a series gives -log(1 - v)

_INTERPRET: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_SMALL: tl.constexpr = tl.constexpr(SERIES_BELOW)
_TERMS: tl.constexpr = tl.constexpr(SERIES_TERMS)


@triton.jit
def pack(value, index):
    """Key of a float32 value and an id: larger values first, of equal ones the lower id; NaN counts as -inf."""
    value = tl.where(value == value, value, float("-inf"))
    value = tl.where(value == 0.0, 0.0, value)  # -0 is 0
    bits = value.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
    return (ordered << 20) | (1048575 - index)


@triton.jit
def key_index(key):
    return 1048575 - (key & 1048575)


@triton.jit
def key_value(key):
    ordered = ((key >> 20) - 2147483648).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def splitmix64(x):
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _mix32(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _log(x):
    """The natural logarithm by the hardware's instruction, whose error is below 2e-7 or relatively as small."""
    if _INTERPRET:
        y = tl.log(x)
    else:
        bits = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
        y = bits * 0.6931471805599453
    return y


@triton.jit
def gumbel(stream, index):
    """Gumbel noise of a token: -log(-log(1 - v)), v in (0, 1), finely spaced near 0, where the noise is largest."""
    low = (stream & 0xFFFFFFFF).to(tl.uint32)
    high = (stream >> 32).to(tl.uint32)
    bits = _mix32(_mix32(index.to(tl.uint32) ^ low) ^ high)
    v = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    series = tl.full(v.shape, 1.0 / _TERMS, tl.float32)  # -log(1 - v) / v = 1 + v / 2 + v^2 / 3 + ...
    for i in tl.static_range(1, _TERMS):
        series = series * v + 1.0 / (_TERMS - i)
    return -_log(tl.where(v < _SMALL, series * v, -_log(1.0 - v)))
