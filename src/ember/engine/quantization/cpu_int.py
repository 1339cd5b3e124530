"""Linear layers with weights of 8 or 4 bits on a CPU: integers with scales (`kernels/ember_cpu/quantised.h`).

For few rows the C library multiplies with the quantised weights, so it reads a half or a quarter of the bytes. For many
rows, which are mostly prompts, a layer's weight is dequantised to bfloat16 while it is needed.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.block import DecoderParts
from ember.engine.layers.linear import Linear, Pages, fresh_memory
from ember_cpu import library as native

BITS = {"int8": 8, "int4": 4}
_PIECE = 32 << 20  # bytes quantised at a time


class Scratch:
    """A buffer for one dequantised weight."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.bfloat16)

    def take(self, rows: int, columns: int) -> Tensor:
        if self._memory.numel() < rows * columns:
            self._memory = fresh_memory(rows * columns * 2, torch.bfloat16)
        return self._memory[: rows * columns].view(rows, columns)


class QuantisedLinear(Linear):
    """A quantised linear layer, x @ weight.T + bias. `rows`: the stored bytes, [out, in * bits / 8]."""

    __slots__ = ("_library", "_scratch", "matrix", "scales")

    def __init__(
        self, library: ctypes.CDLL, linear: Linear, bits: int, scratch: Scratch, pages: Pages | None = None
    ) -> None:
        """`linear`: plain bfloat16, [out, in]; `in` is a multiple of 128. If it is mapped (`pages`), its pages are
        dropped chunk by chunk. `scratch`: shared with layers that compute at other times."""
        self._library, self._scratch = library, scratch
        out, width = sum(len(part) for part in linear.rows), linear.rows[0].shape[1]
        codes = fresh_memory(out * width * bits // 8, torch.uint8).view(out, -1)
        self.scales = torch.empty(out, width // native.GROUP)  # float32
        at, threads = 0, torch.get_num_threads()
        for piece in (piece for rows in linear.rows for piece in rows.split(max(1, _PIECE // (2 * width)))):
            to = (codes[at:].data_ptr(), self.scales[at:].data_ptr())
            library.ember_quantise(native.matrix((piece,)), bits, *to, threads)
            if pages is not None:
                pages.let_go(piece.data_ptr(), piece.nbytes)
            at += len(piece)
        super().__init__(codes, bias=linear.bias)
        self.matrix = native.quantised_matrix(codes, self.scales, bits, self.bias)

    @property
    def weight(self) -> Tensor:
        """The dequantised weight, [out, in] bfloat16, a copy."""
        return self._restore(torch.empty(len(self.rows[0]), self.matrix.columns, dtype=torch.bfloat16))

    @property
    def nbytes(self) -> int:
        return self.rows[0].nbytes + self.scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        weight = self._scratch.take(len(self.rows[0]), self.matrix.columns)
        return F.linear(x, self._restore(weight), self.bias)

    def look_up(self, ids: Tensor) -> Tensor:
        """Rows of the weight: [T] -> [T, in] bfloat16."""
        codes, scales = self.rows[0][ids], self.scales[ids]
        found = torch.empty(len(ids), self.matrix.columns, dtype=torch.bfloat16)
        matrix = native.quantised_matrix(codes, scales, self.matrix.bits)
        self._library.ember_restore(matrix, found.data_ptr(), torch.get_num_threads())
        return found

    def _restore(self, weight: Tensor) -> Tensor:
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
    made, scratch = [], Scratch()

    def small(linear: Linear, bits: int = BITS[weights]) -> QuantisedLinear:
        made.append(QuantisedLinear(library, linear, bits, scratch, pages))
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
    parts.embedding.tokens = head if is_tied else QuantisedLinear(library, Linear(tokens), 8, scratch, pages)
    return sum(linear.nbytes for linear in made)
