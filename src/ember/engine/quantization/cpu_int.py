"""Weights quantised to 8 or 4 bits at load, for the C library on CPUs (CPU_WEIGHTS): blocks as in GGUF files.

int8 is Q8_0 and int4 is Q4_0: 32 integers with a scale in float16. The library multiplies blocks as they lie.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.block import DecoderParts
from ember.engine.layers.linear import Linear, Pages, fresh_memory
from ember.engine.layers.restored import RestoredLinear
from ember_cpu import library as native

TYPES = {"int8": 8, "int4": 2}
"""For each form of CPU_WEIGHTS the type of blocks (`ember_cpu.library.BLOCKS`)."""
_PIECE = 32 << 20  # bytes quantised at a time


class QuantisedLinear(RestoredLinear):
    """A linear layer of blocks, x @ weight.T + bias. `blocks`: uint8 [out, bytes of a row]. `type`: that of the blocks,
    a number in `ember_cpu.library.BLOCKS`."""

    __slots__ = ("_library", "blocks", "type")

    def __init__(self, library: ctypes.CDLL, blocks: Tensor, type: int, bias: Tensor | None = None) -> None:
        super().__init__(torch.bfloat16, bias)
        self._library, self.blocks, self.type = library, blocks, type

    @property
    def out_features(self) -> int:
        return len(self.blocks)

    @property
    def in_features(self) -> int:
        _, elements, nbytes = native.BLOCKS[self.type]
        return self.blocks.shape[1] // nbytes * elements

    def tensors(self) -> Iterator[Tensor]:
        yield self.blocks
        if self.bias is not None:
            yield self.bias

    def select(self, rows: slice | Tensor) -> Self:
        return type(self)(self._library, self.blocks[rows], self.type)

    def restored(self) -> Tensor:
        return self.restore_into(torch.empty(self.out_features, self.in_features, dtype=torch.bfloat16))

    def restore_into(self, weight: Tensor) -> Tensor:
        matrix = native.block_matrix(((self.blocks, self.type),), self.in_features)
        native.restore_into(self._library, matrix, None, weight, torch.get_num_threads())
        return weight


def to_blocks(library: ctypes.CDLL, linear: Linear, type: int, pages: Pages | None = None) -> QuantisedLinear:
    """A plain bfloat16 layer in blocks. If it is mapped (`pages`), its pages are dropped chunk by chunk."""
    out, width = linear.out_features, linear.in_features
    _, elements, nbytes = native.BLOCKS[type]
    blocks = fresh_memory(out * width // elements * nbytes, torch.uint8).view(out, -1)
    at, threads = 0, torch.get_num_threads()
    for piece in (piece for rows in linear.rows for piece in rows.split(max(1, _PIECE // (2 * width)))):
        library.ember_quantise(piece.data_ptr(), len(piece), width, type, blocks[at:].data_ptr(), threads)
        if pages is not None:
            pages.let_go(piece.data_ptr(), piece.nbytes)
        at += len(piece)
    return QuantisedLinear(library, blocks, type, linear.bias)


def quantise(parts: DecoderParts, weights: str, pages: Pages | None) -> int:
    """Quantise the matrices of the blocks to int8 or int4 (`weights`), and the embedding and the head, in which one row
    has all of a token, to int8. Returns the bytes that a step reads.

    Mapped weights (`pages`) are dropped from memory chunk by chunk. Raises ModelError if the C library is missing.
    """
    library = native.load()
    if library is None:
        raise ModelError("CPU_WEIGHTS: the C library for CPUs cannot be used; the log says why")
    made = []

    def small(linear: Linear, weights: str = weights) -> QuantisedLinear:
        made.append(to_blocks(library, linear, TYPES[weights], pages))
        return made[-1]

    for block in parts.blocks:
        attention = block.attention
        attention.qkv, attention.output = small(attention.qkv), small(attention.output)
        for mlp in block.mlps():
            mlp.up, mlp.down = small(mlp.up), small(mlp.down)
    tokens = parts.embedding.tokens
    assert isinstance(tokens, Tensor)
    is_tied = parts.head.rows[0] is tokens
    parts.head = head = small(parts.head, "int8")
    parts.embedding.tokens = head if is_tied else to_blocks(library, Linear(tokens), TYPES["int8"], pages)
    return sum(linear.nbytes for linear in made)
