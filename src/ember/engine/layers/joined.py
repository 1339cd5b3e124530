"""Several linear layers of the same input as one: query, key and value of different layouts, scales or input orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ember.engine.layers.linear import Linear, Pages, cut
from ember.engine.layers.restored import RestoredLinear


class JoinedLinear(Linear):
    """Linear layers of any layouts, whose outputs are side by side. `parts`: they are not joined themselves."""

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Linear], bias: Tensor | None = None) -> None:
        """`bias`: [out] of all parts, each of which gets its own; None: it consists of what they have."""
        if bias is None and any(part.bias is not None for part in parts):
            bias = torch.cat([_bias_of(part) for part in parts])
        super().__init__(bias=bias)
        self.parts = tuple(parts)
        if bias is not None:
            for part, its in zip(self.parts, bias.split([part.out_features for part in parts]), strict=True):
                part.bias = its

    @property
    def out_features(self) -> int:
        return sum(part.out_features for part in self.parts)

    @property
    def in_features(self) -> int:
        return self.parts[0].in_features

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def weight(self) -> Tensor:
        return torch.cat([part.weight for part in self.parts])

    @property
    def scratch_elements(self) -> int:
        return max(part.scratch_elements for part in self.parts)

    def tensors(self) -> Iterator[Tensor]:
        for part in self.parts:
            yield from part.tensors()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)

    def split(self, count: int) -> list[Linear]:
        """Parts that are cut lose no layout. Raises ValueError if a layer of several tensors would be cut."""
        made: list[Linear] = []
        for spans in cut((part.out_features for part in self.parts), self.out_features // count):
            pieces = [_rows(self.parts[i], first, last) for i, first, last in spans]
            made.append(pieces[0] if len(pieces) == 1 else JoinedLinear(pieces))
        return made

    def settle(self, packs: bool, pages: Pages | None) -> Iterator[None]:
        for part in self.parts:
            yield from part.settle(packs, pages)


def joined(parts: Sequence[Linear], bias: Tensor | None = None) -> Linear:
    """The parts as one layer: the only part itself, or `JoinedLinear`. `bias`: [out] of all parts, which may be joined
    themselves."""
    parts = [inner for part in parts for inner in parts_of(part)]
    if len(parts) > 1:
        return JoinedLinear(parts, bias)
    if bias is not None:
        parts[0].bias = bias
    return parts[0]


def parts_of(linear: Linear) -> tuple[Linear, ...]:
    """The layers that a layer consists of: itself, if it is not joined."""
    return linear.parts if isinstance(linear, JoinedLinear) else (linear,)


def _bias_of(linear: Linear) -> Tensor:
    if linear.bias is not None:
        return linear.bias
    return torch.zeros(linear.out_features, dtype=linear.dtype, device=linear.device)


def _rows(linear: Linear, first: int, last: int) -> Linear:
    """The rows of a layer from `first` up to `last`, with their bias. Nothing is copied."""
    if (first, last) == (0, linear.out_features):
        return linear
    bias = None if linear.bias is None else linear.bias[first:last]
    if isinstance(linear, RestoredLinear):
        made: Linear = linear.select(slice(first, last))
        made.bias = bias
        return made
    if len(linear.rows) != 1:
        raise ValueError(f"a layer of {len(linear.rows)} tensors cannot be cut at row {first}")
    return Linear(linear.rows[0][first:last], bias=bias)
