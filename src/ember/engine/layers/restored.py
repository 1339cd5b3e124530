"""The base of the layouts whose weight is not stored as it is multiplied: quantised ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.linear import Linear, Pages
from ember.engine.layers.scratch import scratch

_PIECE_ELEMENTS = 1 << 21  # restored at a time, which bounds the memory of what is computed on the way


class RestoredLinear(Linear):
    """A linear layer that torch restores, to the model's dtype, and then multiplies: on every device, for any rows.

    A subclass implements the abstract methods. Operator sets that declare it multiply it as it is stored.
    """

    __slots__ = ("_dtype",)

    def __init__(self, dtype: torch.dtype, bias: Tensor | None = None) -> None:
        """`dtype`: the model's, which inputs and outputs have. `bias`: [out]."""
        super().__init__(bias=bias)
        self._dtype = dtype

    @property
    @abstractmethod
    def out_features(self) -> int: ...

    @property
    @abstractmethod
    def in_features(self) -> int: ...

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]: ...

    @abstractmethod
    def select(self, rows: slice | Tensor) -> Self:
        """Rows of the weight as a layer of the same layout, without a bias. A slice copies nothing. Ids may be in any
        order and repeat."""

    @abstractmethod
    def restored(self) -> Tensor:
        """The whole weight, [out, in] in `dtype`."""

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def weight(self) -> Tensor:
        return self.restore_into(torch.empty(self.out_features, self.in_features, dtype=self.dtype, device=self.device))

    @property
    def scratch_elements(self) -> int:
        return self.out_features * self.in_features

    def restore_into(self, weight: Tensor) -> Tensor:
        """Write the weight to a tensor of its shape, which is returned."""
        step = max(1, _PIECE_ELEMENTS // self.in_features)
        for first in range(0, self.out_features, step):
            weight[first : first + step] = self.select(slice(first, first + step)).restored()
        return weight

    def __call__(self, x: Tensor) -> Tensor:
        weight = scratch(self.out_features, self.in_features, self.dtype, x.device)
        return F.linear(x, self.restore_into(weight), self.bias)

    def look_up(self, ids: Tensor) -> Tensor:
        return self.select(ids).restored()

    def split(self, count: int) -> list[Linear]:
        size = self.out_features // count
        parts: list[Linear] = [self.select(slice(first, first + size)) for first in range(0, count * size, size)]
        if self.bias is not None:
            for part, bias in zip(parts, self.bias.view(count, size).unbind(), strict=True):
                part.bias = bias
        return parts

    def settle(self, packs: bool, pages: Pages | None) -> Iterator[None]:
        """Nothing: the stored tensors stay where they are."""
        return iter(())
