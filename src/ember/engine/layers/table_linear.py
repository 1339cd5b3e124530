"""Linear layers with codes of 4 bits, each of which stands for a number of a table, times the scale of its block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from ember.engine.description import layouts
from ember.engine.layers.restored import RestoredLinear

# The 16 numbers of each code. e2m1: OCP Microscaling Formats 1.0. nf4: arXiv 2305.14314, appendix E. fp4: bitsandbytes'
# own, whose first bit is the sign.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4 = (0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25)
FP4 = (*_FP4, *(-value for value in _FP4))


class TableLinear(RestoredLinear):
    """weight[i, j] = table[codes[i, j]] * scales[i, j // block] * factors[i], rounded once to the model's dtype."""

    __slots__ = ("block", "codes", "factors", "is_e2m1", "scales", "table")

    def __init__(
        self,
        codes: Tensor,
        table: Tensor,
        scales: Tensor,
        dtype: torch.dtype,
        factors: Tensor | None = None,
        bias: Tensor | None = None,
        is_e2m1: bool = False,
    ) -> None:
        """`codes`: uint8 [out, in / 2]; of two inputs the first is in the low bits. `table`: float32 [16], or
        [out, 16]. `scales`: [out, in / block] in float32, float8_e4m3fn (nvfp4) or float8_e8m0fnu (mxfp4). `factors`:
        float32 [out], or None. `is_e2m1`: whether the table is that of `E2M1`, which kernels need not read."""
        super().__init__(dtype, bias)
        self.codes, self.table, self.scales, self.factors = codes, table, scales, factors
        self.is_e2m1 = is_e2m1
        self.block = 2 * codes.shape[1] // scales.shape[1]

    @property
    def layout(self) -> str:
        return layouts.table(self.in_features, self.block)

    @property
    def out_features(self) -> int:
        return len(self.codes)

    @property
    def in_features(self) -> int:
        return 2 * self.codes.shape[1]

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.codes, self.table, self.scales)
        yield from (tensor for tensor in (self.factors, self.bias) if tensor is not None)

    def select(self, rows: slice | Tensor) -> Self:
        scales = self.scales
        if isinstance(rows, Tensor) and scales.dtype.itemsize == 1:  # torch lacks the operator for float8
            scales = scales.view(torch.uint8)[rows].view(scales.dtype)
        else:
            scales = scales[rows]
        table = self.table if self.table.dim() == 1 else self.table[rows]
        factors = None if self.factors is None else self.factors[rows]
        return type(self)(self.codes[rows], table, scales, self.dtype, factors, None, self.is_e2m1)

    def restored(self) -> Tensor:
        scales = self.scales.float()
        if self.factors is not None:
            scales = scales * self.factors[:, None]
        numbers = torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(1).int()
        values = self.table[numbers] if self.table.dim() == 1 else self.table.gather(1, numbers.long())
        return (values.unflatten(1, (-1, self.block)) * scales[..., None]).flatten(1).to(self.dtype)
