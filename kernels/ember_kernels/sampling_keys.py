"""Device functions of the samplers: sortable keys of tokens, and counter-based noise."""

from __future__ import annotations

import triton
import triton.language as tl

MAX_VOCABULARY = 1 << 20  # ids have 20 bits in a key


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
def gumbel(stream, index):
    """Gumbel noise of a token: -log(-log(1 - v)), v in (0, 1), finely spaced near 0, where the noise is largest."""
    low = (stream & 0xFFFFFFFF).to(tl.uint32)
    high = (stream >> 32).to(tl.uint32)
    bits = _mix32(_mix32(index.to(tl.uint32) ^ low) ^ high)
    v = tl.minimum((bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    series = v + v * v * 0.5 + v * v * v * 0.3333333333333333
    return -tl.log(tl.where(v < 1e-3, series, -tl.log(1.0 - v)))
