"""Linear layers with a weight in float8_e4m3fn and scales for its rows or blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from ember.engine.description import layouts
from ember.engine.layers.restored import RestoredLinear


class Float8Linear(RestoredLinear):
    """weight[i, j] = codes[i, j] * scales[i // block[0], j // block[1]], rounded once to the model's dtype."""

    __slots__ = ("block", "codes", "quantises_inputs", "scales")

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        block: tuple[int, int],
        dtype: torch.dtype,
        bias: Tensor | None = None,
        quantises_inputs: bool = False,
    ) -> None:
        """`codes`: float8_e4m3fn [out, in]. `scales`: float32, one for each block of `block` rows and columns; the last
        blocks may be smaller. `quantises_inputs`: whether the checkpoint is made for inputs in float8 too, so that
        operators may round them."""
        super().__init__(dtype, bias)
        self.codes, self.scales, self.block = codes, scales, block
        self.quantises_inputs = quantises_inputs

    @property
    def layout(self) -> str:
        return layouts.float8(self.in_features, self.block[1])

    @property
    def out_features(self) -> int:
        return len(self.codes)

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.codes, self.scales)
        if self.bias is not None:
            yield self.bias

    def select(self, rows: slice | Tensor) -> Self:
        height, width = self.block
        if isinstance(rows, slice):
            first, last, _ = rows.indices(self.out_features)
            codes = self.codes[first:last]
            if height == 1 or first % height == 0:
                scales, block = self.scales[first // height : -(-last // height)], self.block
            else:
                numbers = torch.arange(first, last, device=self.scales.device) // height
                scales, block = self.scales[numbers], (1, width)
        else:
            codes = self.codes.view(torch.uint8)[rows].view(self.codes.dtype)
            scales, block = self.scales[rows // height], (1, width)
        return type(self)(codes, scales, block, self.dtype, None, self.quantises_inputs)

    def restored(self) -> Tensor:
        height, width = self.block
        scales = self.scales
        if height > 1:
            scales = scales.repeat_interleave(height, dim=0)[: self.out_features]
        if scales.shape[1] > 1:
            scales = scales.repeat_interleave(width, dim=1)[:, : self.in_features]
        return (self.codes.float() * scales).to(self.dtype)


def spread(scales: Tensor, rows: Tensor, height: int, width: int) -> tuple[Tensor, tuple[int, int]]:
    """The scales of a weight whose row i has the scales number rows[i], and the size of their blocks: `height` rows if
    every block of rows has the same ones, otherwise one row."""
    if height > 1:
        firsts = rows[::height]
        if torch.equal(firsts.repeat_interleave(height)[: len(rows)], rows):
            return scales[firsts], (height, width)
    return scales[rows], (1, width)
