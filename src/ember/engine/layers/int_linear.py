"""Linear layers with integers of 4 or 8 bits, and a scale for each group of inputs: GPTQ, AWQ, compressed-tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from ember.engine.description import layouts
from ember.engine.layers.restored import RestoredLinear


class IntLinear(RestoredLinear):
    """weight[i, order[k]] = (codes[i, k] - zeros[i, k // group]) * scales[i, k // group], rounded once to the model's
    dtype."""

    __slots__ = ("bits", "codes", "group", "order", "scales", "zeros")

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        bits: int,
        dtype: torch.dtype,
        zeros: Tensor | None = None,
        order: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        """`codes`: uint8 [out, in * bits / 8], of `bits` 4 the input that comes first in the low ones. `scales`: floats
        [out, in / group]. `zeros`: uint8 of the same shape; None: 8 or 128, the middle. `order`: int32 [in]; None: the
        inputs' own."""
        super().__init__(dtype, bias)
        self.codes, self.scales, self.bits, self.zeros, self.order = codes, scales, bits, zeros, order
        self.group = codes.shape[1] * 8 // bits // scales.shape[1]

    @property
    def layout(self) -> str:
        return layouts.integers(self.group, self.order is not None)

    @property
    def out_features(self) -> int:
        return len(self.codes)

    @property
    def in_features(self) -> int:
        return self.codes.shape[1] * 8 // self.bits

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.codes, self.scales)
        yield from (tensor for tensor in (self.zeros, self.order, self.bias) if tensor is not None)

    def select(self, rows: slice | Tensor) -> Self:
        zeros = None if self.zeros is None else self.zeros[rows]
        return type(self)(self.codes[rows], self.scales[rows], self.bits, self.dtype, zeros, self.order)

    def restored(self) -> Tensor:
        grouped = unpack(self.codes, self.bits).unflatten(1, (-1, self.group)).float()
        zeros = 1 << (self.bits - 1) if self.zeros is None else self.zeros.float()[..., None]
        weight = ((grouped - zeros) * self.scales.float()[..., None]).flatten(1).to(self.dtype)
        if self.order is None:
            return weight
        return torch.empty_like(weight).index_copy_(1, self.order.long(), weight)


def unpack(codes: Tensor, bits: int) -> Tensor:
    """Integers of 2, 3, 4 or 8 bits, which follow each other from the lowest bit of a row on: uint8 [rows, columns *
    bits / 8] -> uint8 [rows, columns]. A row of 3 bits has a multiple of 3 bytes."""
    if bits == 8:
        return codes
    if bits == 4:
        return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
    if bits == 2:
        return torch.stack([codes >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1).flatten(1)
    low, middle, high = codes.unflatten(1, (-1, 3)).int().unbind(-1)
    words = low | middle << 8 | high << 16
    return torch.stack([(words >> 3 * i & 7).byte() for i in range(8)], dim=-1).flatten(1)


def pack(values: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack`, for 4 and 8 bits."""
    return values if bits == 8 else values[:, 0::2] | values[:, 1::2] << 4
