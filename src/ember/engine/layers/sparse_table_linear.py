"""Linear layers with codes of 4 bits, a table of each row, and single numbers beside them: dense and sparse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from ember.engine.layers.restored import RestoredLinear
from ember.engine.layers.table_linear import TableLinear


class SparseTableLinear(RestoredLinear):
    """The weight of a `TableLinear`, to which `values` are added: row i has `counts[i]` of them, from `starts[i]` on,
    in the columns `columns`."""

    __slots__ = ("columns", "counts", "starts", "table", "values")

    def __init__(self, table: TableLinear, starts: Tensor, counts: Tensor, columns: Tensor, values: Tensor) -> None:
        """`starts`, `counts`: int32 [out]. `columns`: int32, `values`: float32, of all rows."""
        super().__init__(table.dtype)
        self.table, self.starts, self.counts, self.columns, self.values = table, starts, counts, columns, values

    @property
    def out_features(self) -> int:
        return self.table.out_features

    @property
    def in_features(self) -> int:
        return self.table.in_features

    def tensors(self) -> Iterator[Tensor]:
        yield from self.table.tensors()
        yield from (self.starts, self.counts, self.columns, self.values)
        if self.bias is not None:
            yield self.bias

    def select(self, rows: slice | Tensor) -> Self:
        return type(self)(self.table.select(rows), self.starts[rows], self.counts[rows], self.columns, self.values)

    def restored(self) -> Tensor:
        counts = self.counts.long()
        rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        before = counts.cumsum(0) - counts  # of the values taken for earlier rows
        at = torch.arange(len(rows), device=counts.device) - before[rows] + self.starts.long()[rows]
        weight = self.table.restored().float()
        weight.index_put_((rows, self.columns[at].long()), self.values[at], accumulate=True)
        return weight.to(self.dtype)
