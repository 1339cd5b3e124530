"""Blocks of GGUF files from plain weights: rounded as ggml's reference does (ggml-quants.c)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ember.gguf.types import BY_NAME

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def to_bytes(weight: Tensor, type_name: str) -> Tensor:
    """The rows of a weight [rows, columns] in a type of `gguf.types`: uint8 [rows, bytes of a row]."""
    if type_name in _PLAIN:
        return weight.to(_PLAIN[type_name]).contiguous().view(torch.uint8)
    kind = BY_NAME[type_name]
    blocks = weight.float().reshape(-1, kind.elements)
    return _WRITERS[type_name](blocks).view(len(weight), -1)


def _q8_0(blocks: Tensor) -> Tensor:
    scale = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    codes = scaled.sign() * (scaled.abs() + 0.5).floor()  # halves are rounded away from zero
    return torch.cat((_half(scale), codes.to(torch.int8).view(torch.uint8)), dim=1)


def _symmetric(blocks: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The scale, and codes of which `levels / 2` stands for zero: the number with the largest magnitude is code 0."""
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / (-levels // 2)
    codes = (blocks * _inverse(scale) + (levels / 2 + 0.5)).trunc().clamp(0, levels - 1)
    return scale, codes.to(torch.uint8)


def _asymmetric(blocks: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """The scale, the least number and the codes, which count from it on."""
    least, most = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale = (most - least) / (levels - 1)
    codes = ((blocks - least) * _inverse(scale) + 0.5).trunc().clamp(0, levels - 1)
    return scale, least, codes.to(torch.uint8)


def _q4_0(blocks: Tensor) -> Tensor:
    scale, codes = _symmetric(blocks, 16)
    return torch.cat((_half(scale), _nibbles(codes)), dim=1)


def _q4_1(blocks: Tensor) -> Tensor:
    scale, least, codes = _asymmetric(blocks, 16)
    return torch.cat((_half(scale), _half(least), _nibbles(codes)), dim=1)


def _q5_0(blocks: Tensor) -> Tensor:
    scale, codes = _symmetric(blocks, 32)
    return torch.cat((_half(scale), _fifth_bits(codes), _nibbles(codes & 15)), dim=1)


def _q5_1(blocks: Tensor) -> Tensor:
    scale, least, codes = _asymmetric(blocks, 32)
    return torch.cat((_half(scale), _half(least), _fifth_bits(codes), _nibbles(codes & 15)), dim=1)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _half(numbers: Tensor) -> Tensor:
    """[blocks, 1] as the bytes of float16."""
    return numbers.to(torch.float16).view(torch.uint8)


def _nibbles(codes: Tensor) -> Tensor:
    """The first half of a block in the low halves of the bytes, the second one in the high halves."""
    low, high = codes.chunk(2, dim=1)
    return low | high << 4


def _fifth_bits(codes: Tensor) -> Tensor:
    """The bits of 32 codes in four bytes, the first in the lowest bit."""
    weights = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)
    return ((codes >> 4).unflatten(1, (4, 8)) * weights).sum(2, dtype=torch.uint8)


_WRITERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
}
