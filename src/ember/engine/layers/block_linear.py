"""Weights as GGUF's quantised blocks, as they lie in the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from ember.engine.layers.block_values import restore
from ember.engine.layers.linear import Linear, cut
from ember.engine.layers.restored import RestoredLinear
from ember.gguf.types import BLOCKS


class BlockLinear(RestoredLinear):
    """A linear layer of GGUF blocks. `rows`: the weight, uint8 [out, bytes of a row], in one or more consecutive
    tensors. `type`: a name in `ember.gguf.types.BLOCKS`, such as Q4_K, that all rows have."""

    __slots__ = ("type",)

    def __init__(self, *rows: Tensor, type: str, dtype: torch.dtype, bias: Tensor | None = None) -> None:
        super().__init__(dtype, bias)
        self.rows = rows
        self.type = type

    @property
    def out_features(self) -> int:
        return sum(map(len, self.rows))

    @property
    def in_features(self) -> int:
        kind = BLOCKS[self.type]
        return self.rows[0].shape[1] // kind.size * kind.elements

    def tensors(self) -> Iterator[Tensor]:
        yield from self.rows
        if self.bias is not None:
            yield self.bias

    def select(self, rows: slice | Tensor) -> Self:
        if len(self.rows) == 1:
            return self._of(self.rows[0][rows])
        if isinstance(rows, Tensor):
            return self._of(torch.cat(self.rows)[rows])
        first, last, _ = rows.indices(self.out_features)
        found, start = [], 0
        for piece in self.rows:
            found.append(piece[max(first - start, 0) : max(last - start, 0)])
            start += len(piece)
        return self._of(*(piece for piece in found if len(piece)))

    def restored(self) -> Tensor:
        return self.weight

    def restore_into(self, weight: Tensor) -> Tensor:
        first = 0
        for piece in self.rows:
            restore(piece, self.type, self.dtype, weight[first : first + len(piece)])
            first += len(piece)
        return weight

    def split(self, count: int) -> list[Linear]:
        size = self.out_features // count
        parts: list[Linear] = [
            self._of(*(self.rows[i][first:last] for i, first, last in spans))
            for spans in cut(map(len, self.rows), size)
        ]
        for part, bias in zip(parts, [] if self.bias is None else self.bias.view(count, size).unbind(), strict=False):
            part.bias = bias
        return parts

    def _of(self, *rows: Tensor) -> Self:
        return type(self)(*rows, type=self.type, dtype=self.dtype)
