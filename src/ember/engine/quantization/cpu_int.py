"""Linear layers with weights of 8 or 4 bits on a CPU: integers with scales (`kernels/ember_cpu/quantised.h`).

For few rows the C library multiplies with the quantised weights, so it reads a half or a quarter of the bytes. For many
rows, which are mostly prompts, a layer's weight is dequantised to bfloat16 while it is needed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from copy import copy
from typing import Self

import torch
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.block import DecoderParts
from ember.engine.layers.linear import Linear, Pages, fresh_memory
from ember.engine.layers.restored import RestoredLinear
from ember_cpu import library as native
from ember_cpu.variants import GROUP

BITS = {"int8": 8, "int4": 4}
_PIECE = 32 << 20  # bytes quantised at a time


class QuantisedLinear(RestoredLinear):
    """A quantised linear layer, x @ weight.T + bias. `codes`: the integers, [out, in * bits / 8]."""

    __slots__ = ("_library", "codes", "matrix", "scales")

    def __init__(self, library: ctypes.CDLL, linear: Linear, bits: int, pages: Pages | None = None) -> None:
        """`linear`: plain bfloat16, [out, in]; `in` is a multiple of 128. If it is mapped (`pages`), its pages are
        dropped chunk by chunk."""
        super().__init__(torch.bfloat16, linear.bias)
        self._library = library
        out, width = linear.out_features, linear.in_features
        self.codes = fresh_memory(out * width * bits // 8, torch.uint8).view(out, -1)
        self.scales = torch.empty(out, width // GROUP)  # float32
        at, threads = 0, torch.get_num_threads()
        for piece in (piece for rows in linear.rows for piece in rows.split(max(1, _PIECE // (2 * width)))):
            to = (self.codes[at:].data_ptr(), self.scales[at:].data_ptr())
            library.ember_quantise(native.matrix((piece,)), bits, *to, threads)
            if pages is not None:
                pages.let_go(piece.data_ptr(), piece.nbytes)
            at += len(piece)
        self.matrix = native.quantised_matrix(self.codes, self.scales, bits, self.bias)

    @property
    def out_features(self) -> int:
        return len(self.codes)

    @property
    def in_features(self) -> int:
        columns: int = self.matrix.columns
        return columns

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.codes, self.scales)
        if self.bias is not None:
            yield self.bias

    def select(self, rows: slice | Tensor) -> Self:
        made = copy(self)
        made.codes, made.scales, made.bias = self.codes[rows], self.scales[rows], None
        made.matrix = native.quantised_matrix(made.codes, made.scales, self.matrix.bits)
        return made

    def restored(self) -> Tensor:
        return self.restore_into(torch.empty(self.out_features, self.in_features, dtype=torch.bfloat16))

    def restore_into(self, weight: Tensor) -> Tensor:
        self._library.ember_restore(self.matrix, weight.data_ptr(), torch.get_num_threads())
        return weight


def quantise(parts: DecoderParts, weights: str, pages: Pages | None) -> int:
    """Quantise the matrices of the blocks to int8 or int4 (`weights`), and the embedding and the head, in which one row
    has all of a token, to int8. Returns the bytes that a step reads.

    Mapped weights (`pages`) are dropped from memory chunk by chunk. Raises ModelError if the C library is missing.
    """
    library = native.load()
    if library is None:
        raise ModelError("CPU_WEIGHTS: the C library for CPUs cannot be used; the log says why")
    made = []

    def small(linear: Linear, bits: int = BITS[weights]) -> QuantisedLinear:
        made.append(QuantisedLinear(library, linear, bits, pages))
        return made[-1]

    for block in parts.blocks:
        attention = block.attention
        attention.qkv, attention.output = small(attention.qkv), small(attention.output)
        for mlp in block.mlps():
            mlp.up, mlp.down = small(mlp.up), small(mlp.down)
    tokens = parts.embedding.tokens
    assert isinstance(tokens, Tensor)
    is_tied = parts.head.rows[0] is tokens
    parts.head = head = small(parts.head, 8)
    parts.embedding.tokens = head if is_tied else QuantisedLinear(library, Linear(tokens), 8, pages)
    return sum(linear.nbytes for linear in made)
