# mypy: disable-error-code="no-untyped-def"
"""GGUF's quantised blocks in kernels: the numbers of a tile of a weight, from blocks as they lie in the file.

A byte (or a half or a quarter of one) has one element of each of PLANES runs of elements. A plane of a tile therefore
has consecutive bytes in consecutive rows, and the inputs that it is multiplied with are runs of RUN columns, PLANES *
RUN apart. Elements of a plane are numbered by position: position t of plane p is the column

    t // RUN * RUN * PLANES + p * RUN + t % RUN

Source of the blocks: ggml-common.h and ggml-quants.c of ggml. Every type is a branch of `block_values`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ember_kernels.rounding import INTERPRET, rounded

_INTERPRET: tl.constexpr = tl.constexpr(INTERPRET)


class BlockType(NamedTuple):
    """`size` bytes hold `elements` consecutive elements of a row. `share`: consecutive positions with one scale.
    `tile`: positions of a tile, such that the numbers of all planes fit into the registers of four programs."""

    size: int
    elements: int
    planes: int
    share: int
    run: int
    tile: int


BLOCK_TYPES = {
    "Q4_0": BlockType(18, 32, 2, 16, 16, 64),
    "Q4_1": BlockType(20, 32, 2, 16, 16, 64),
    "Q5_0": BlockType(22, 32, 2, 16, 16, 64),
    "Q5_1": BlockType(24, 32, 2, 16, 16, 64),
    "Q8_0": BlockType(34, 32, 1, 32, 32, 64),
    "Q2_K": BlockType(84, 256, 4, 16, 32, 32),
    "Q3_K": BlockType(110, 256, 4, 16, 32, 32),
    "Q4_K": BlockType(144, 256, 2, 32, 32, 64),
    "Q5_K": BlockType(176, 256, 2, 32, 32, 64),
    "Q6_K": BlockType(210, 256, 4, 16, 32, 32),
    "IQ4_NL": BlockType(18, 32, 2, 16, 16, 64),
    "IQ4_XS": BlockType(136, 256, 2, 16, 16, 64),
    "MXFP4": BlockType(17, 32, 2, 16, 16, 64),
}


@triton.jit
def _number(field):
    """An integer of at most 23 bits as float32, without a conversion, which is slow: 2 ** 23 + it, less 2 ** 23."""
    return (field | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _byte(at):
    return tl.load(at).to(tl.int32)


@triton.jit
def _half(at):
    """The float16 number at an even address, as float32."""
    return tl.load(at.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def _four_bytes(at):
    """A number of 32 bits at an address that is a multiple of one byte alone."""
    return _byte(at) | (_byte(at + 1) << 8) | (_byte(at + 2) << 16) | (_byte(at + 3) << 24)


@triton.jit
def _scales_k4(block_at, index):
    """The scale and the minimum number `index` (0 to 7) of Q4_K and Q5_K: 6 bits each in 12 bytes, times d and dmin."""
    at = block_at + 4 + index % 4
    first, second, third = _byte(at), _byte(at + 4), _byte(at + 8)
    is_low = index < 4
    scale = tl.where(is_low, first & 63, (third & 15) | ((first >> 6) << 4))
    minimum = tl.where(is_low, second & 63, (third >> 4) | ((second >> 6) << 4))
    return _half(block_at) * _number(scale), _half(block_at + 2) * _number(minimum)


@triton.jit
def _iq4(codes):
    """The numbers of IQ4's table for codes of 4 bits. Each of four words has four signed bytes of it."""
    low = tl.where(codes < 4, -0x4052677F, -0x09152231)
    high = tl.where(codes < 12, 0x26190D01, 0x71594535)
    word = tl.where(codes < 8, low, high)
    return _number(((word >> ((codes & 3) * 8)) & 255) ^ 128) - 128.0


@triton.jit
def _e2m1(codes):
    """The numbers of E2M1: its bits, where float16 has sign, exponent and mantissa, are the number times 2 ** -14."""
    half = (((codes & 8) << 12) | ((codes & 7) << 9)).to(tl.int16).to(tl.float16, bitcast=True)
    return half.to(tl.float32) * 16384.0


@triton.jit
def block_values(block_at, r, j, P: tl.constexpr, TYPE: tl.constexpr):
    """Numbers of plane P in float32, of all positions r * share + j of a block, for blocks at `block_at`.

    block_at: pointers to bytes [groups, 1, columns]; r [groups, 1, 1] and j [1, share, 1]: int32.
    """
    if TYPE == "Q8_0":
        numbers = _half(block_at) * (_number(_byte(block_at + 2 + j) ^ 128) - 128.0)
    elif TYPE == "Q4_0":
        # The field of a plane is used where it is in its byte, which makes it 16 ** P times the code.
        code = _number(_byte(block_at + 2 + j) & (15 << 4 * P)) - (8 << 4 * P)
        numbers = _half(block_at) * (1.0 / (1 << 4 * P)) * code
    elif TYPE == "Q4_1":
        code = _number(_byte(block_at + 4 + j) & (15 << 4 * P))
        numbers = _half(block_at) * (1.0 / (1 << 4 * P)) * code + _half(block_at + 2)
    elif TYPE == "Q5_0":
        low = (_byte(block_at + 6 + j) >> 4 * P) & 15
        code = low | (((_four_bytes(block_at + 2) >> (16 * P + j)) & 1) << 4)
        numbers = _half(block_at) * (_number(code) - 16.0)
    elif TYPE == "Q5_1":
        low = (_byte(block_at + 8 + j) >> 4 * P) & 15
        code = low | (((_four_bytes(block_at + 4) >> (16 * P + j)) & 1) << 4)
        numbers = _half(block_at) * _number(code) + _half(block_at + 2)
    elif TYPE == "Q2_K":
        packed = _byte(block_at + r // 2 * 8 + 2 * P + r % 2)
        scale = _half(block_at + 80) * _number(packed & 15) * (1.0 / (1 << 2 * P))
        code = _number(_byte(block_at + 16 + r * 16 + j) & (3 << 2 * P))
        numbers = scale * code - _half(block_at + 82) * _number(packed >> 4)
    elif TYPE == "Q3_K":
        index = r // 2 * 8 + 2 * P + r % 2
        low = (_byte(block_at + 96 + index % 8) >> (index // 8 * 4)) & 15
        high = (_byte(block_at + 104 + index % 4) >> (index // 4 * 2)) & 3
        scale = _half(block_at + 108) * (_number(low | (high << 4)) - 32.0)
        third = (_byte(block_at + r % 2 * 16 + j) >> (r // 2 * 4 + P)) & 1
        code = ((_byte(block_at + 32 + r * 16 + j) >> 2 * P) & 3) | (third << 2)
        numbers = scale * (_number(code) - 4.0)
    elif TYPE == "Q4_K":
        scale, minimum = _scales_k4(block_at, 2 * r + P)
        code = _number(_byte(block_at + 16 + r * 32 + j) & (15 << 4 * P))
        numbers = scale * (1.0 / (1 << 4 * P)) * code - minimum
    elif TYPE == "Q5_K":
        scale, minimum = _scales_k4(block_at, 2 * r + P)
        fifth = (_byte(block_at + 16 + j) >> (2 * r + P)) & 1
        code = ((_byte(block_at + 48 + r * 32 + j) >> 4 * P) & 15) | (fifth << 4)
        numbers = scale * _number(code) - minimum
    elif TYPE == "Q6_K":
        scale = _half(block_at + 208) * (_number(_byte(block_at + 192 + r // 2 * 8 + 2 * P + r % 2) ^ 128) - 128.0)
        low = _byte(block_at + r // 2 * 64 + P % 2 * 32 + r % 2 * 16 + j) >> (P // 2 * 4)
        high = _byte(block_at + 128 + r * 16 + j) >> 2 * P
        numbers = scale * (_number((low & 15) | ((high & 3) << 4)) - 32.0)
    elif TYPE == "IQ4_NL":
        numbers = _half(block_at) * _iq4((_byte(block_at + 2 + j) >> 4 * P) & 15)
    elif TYPE == "IQ4_XS":
        high = (_byte(block_at + 2 + r // 4) >> (r % 4 * 2)) & 3
        low = (_byte(block_at + 4 + r // 2) >> (r % 2 * 4)) & 15
        scale = _half(block_at) * (_number(low | (high << 4)) - 32.0)
        numbers = scale * _iq4((_byte(block_at + 8 + r * 16 + j) >> 4 * P) & 15)
    else:
        tl.static_assert(TYPE == "MXFP4", "an unknown type of blocks")
        exponent = _byte(block_at)
        scale = tl.where(exponent == 0, 1 << 22, exponent << 23).to(tl.float32, bitcast=True)
        numbers = scale * _e2m1((_byte(block_at + 1 + j) >> 4 * P) & 15)
    return numbers


@triton.jit
def _kept(numbers):
    """Numbers of 16 bits, unchanged. The compiler may not move what made them behind the exchange between threads that
    a matrix product needs: there, many threads have the same numbers, and each would make them again."""
    if not _INTERPRET:
        numbers = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [numbers], dtype=numbers.dtype, is_pure=False, pack=2
        )
    return numbers


@triton.jit
def block_tile(
    row_at,
    tile,
    groups,
    P: tl.constexpr,
    TYPE: tl.constexpr,
    SIZE: tl.constexpr,
    SHARE: tl.constexpr,
    GROUPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    DTYPE: tl.constexpr,
    KEEPS: tl.constexpr,  # whether many threads multiply each number
):
    """Numbers of plane P [POSITIONS, columns] in DTYPE, of the positions from tile * POSITIONS on, for rows of the
    weight that begin at `row_at` [1, 1, columns]. Positions beyond the last group of the row repeat it."""
    q = tile * (POSITIONS // SHARE) + tl.arange(0, POSITIONS // SHARE)[:, None, None]
    q = tl.minimum(q, groups - 1)
    j = tl.arange(0, SHARE)[None, :, None]
    numbers = block_values(row_at + q // GROUPS * SIZE, q % GROUPS, j, P, TYPE)
    numbers = rounded(numbers, DTYPE)
    return tl.reshape(_kept(numbers) if KEEPS else numbers, (POSITIONS, row_at.shape[2]))
