"""The elements of GGUF's quantised blocks, restored with torch on any device.

Source of the blocks: ggml-common.h and ggml-quants.c of ggml. The results are those of the `gguf` package bit for bit:
float32, rounded to the asked dtype at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ember.gguf.types import BLOCKS

_PIECE = 1 << 22  # elements restored at a time, so that the float32 values need little memory
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice the values of E2M1


def restore(blocks: Tensor, type_name: str, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The elements of some rows: uint8 [rows, bytes of a row] -> [rows, columns]. `out`: where they are written."""
    kind, (rows, row_bytes) = BLOCKS[type_name], blocks.shape
    columns = row_bytes // kind.size * kind.elements
    if out is None:
        out = torch.empty(rows, columns, dtype=dtype, device=blocks.device)
    values, step = _VALUES[type_name], max(1, _PIECE // columns)
    for first in range(0, rows, step):
        piece = blocks[first : first + step]
        out[first : first + step] = values(piece.reshape(-1, kind.size)).view(len(piece), columns)
    return out


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 number at a byte of each block: [blocks, 1] float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[..., n] bytes -> [..., 2n]: the low halves, then the high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _bits(packed: Tensor, width: int, count: int) -> Tensor:
    """[..., n] bytes -> [..., count, n]: fields of `width` bits, the lowest first."""
    shifts = torch.arange(0, width * count, width, dtype=torch.uint8, device=packed.device)
    return (packed[..., None, :] >> shifts[:, None]) & ((1 << width) - 1)


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """Four bytes with a bit for each of 32 elements: [blocks, 32], 16 where the bit is set."""
    return _bits(blocks[:, at : at + 4], 1, 8).transpose(-1, -2).reshape(-1, 32) << 4


def _table(blocks: Tensor, values: tuple[int, ...], indices: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=blocks.device)[indices.int()]


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)).float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def _q2_k(blocks: Tensor) -> Tensor:
    """16 bytes with a scale and a minimum of 4 bits for 16 elements each, 64 bytes of elements, d, dmin."""
    packed, count = blocks[:, :16], len(blocks)
    scales, minimums = _half(blocks, 80) * (packed & 15).float(), _half(blocks, 82) * (packed >> 4).float()
    codes = _bits(blocks[:, 16:80].reshape(count, 2, 32), 2, 4).reshape(count, 16, 16).float()
    return scales[..., None] * codes - minimums[..., None]


def _q3_k(blocks: Tensor) -> Tensor:
    """32 bytes with the third bit of 8 elements each, 64 bytes of elements, 12 bytes with 16 scales of 6 bits, d."""
    count = len(blocks)
    low = _bits(blocks[:, 32:96].reshape(count, 2, 32), 2, 4).reshape(count, 8, 32)
    codes = (low | (_bits(blocks[:, :32], 1, 8) << 2)).float() - 4
    low = _bits(blocks[:, 96:104], 4, 2).reshape(count, 16)
    scales = (low | (_bits(blocks[:, 104:108], 2, 4).reshape(count, 16) << 4)).float() - 32
    return (_half(blocks, 108) * scales)[..., None] * codes.reshape(count, 16, 16)


def _scales_k4(blocks: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minimums of 6 bits in 12 bytes, times d and dmin, which are the first four bytes."""
    first, second, third = (blocks[:, at + start : at + start + 4] for start in (0, 4, 8))
    scales = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)), dim=-1)
    minimums = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)), dim=-1)
    return (_half(blocks, 0) * scales.float())[..., None], (_half(blocks, 2) * minimums.float())[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minimums = _scales_k4(blocks, 4)
    codes = _bits(blocks[:, 16:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32).float()
    return scales * codes - minimums


def _q5_k(blocks: Tensor) -> Tensor:
    """32 bytes with the fifth bit of eight elements each come before the elements."""
    scales, minimums = _scales_k4(blocks, 4)
    low = _bits(blocks[:, 48:].reshape(-1, 4, 32), 4, 2).reshape(-1, 8, 32)
    codes = (low | (_bits(blocks[:, 16:48], 1, 8) << 4)).float()
    return scales * codes - minimums


def _q6_k(blocks: Tensor) -> Tensor:
    """128 bytes with the low 4 bits, 64 with the high 2, 16 scales of 8 bits, d."""
    low = _bits(blocks[:, :128].reshape(-1, 2, 64), 4, 2).reshape(-1, 2, 4, 32)
    codes = (low | (_bits(blocks[:, 128:192].reshape(-1, 2, 32), 2, 4) << 4)).float() - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return scales[..., None] * codes.reshape(-1, 16, 16)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _table(blocks, _IQ4, _nibbles(blocks[:, 2:]))


def _iq4_xs(blocks: Tensor) -> Tensor:
    """d, two bytes with the high 2 bits of eight scales, four with their low 4 bits, 128 bytes of elements."""
    high = _bits(blocks[:, 2:4], 2, 4).transpose(-1, -2).reshape(-1, 8)
    low = _bits(blocks[:, 4:8], 4, 2).transpose(-1, -2).reshape(-1, 8)
    scales = _half(blocks, 0) * ((low | (high << 4)).float() - 32)
    return scales[..., None] * _table(blocks, _IQ4, _nibbles(blocks[:, 8:].reshape(-1, 8, 16)))


def _mxfp4(blocks: Tensor) -> Tensor:
    """A power of two as its exponent, and 16 bytes of elements. The table has twice their values, so that the scale is
    half the power. The exponents 0 and 1 are those of numbers below the normal ones."""
    exponent = blocks[:, :1].int()
    bits = torch.where(exponent < 2, 0x200000 << exponent, (exponent - 1) << 23)
    return bits.view(torch.float32) * _table(blocks, _FP4, _nibbles(blocks[:, 1:]))


_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
