"""Linear layers, and their packed form on CPU.

oneDNN re-orders a plain weight on every call. A weight that was re-ordered once, at load, is read at memory speed at
small batch and is at least as fast at large batch, in bfloat16 and float32. The operators are private to torch, so they
are tried once on a small case; where they are absent or wrong, layers stay plain.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS_HINT = 32  # rows of input the packed layout is chosen for; one layout serves all row counts


class Linear:
    """x @ weight.T + bias. `rows`: the weight, [out, in], in one piece or in several that follow each other.

    `packed`: the one piece is in oneDNN's own layout, to be used by `__call__` alone.
    """

    __slots__ = ("bias", "packed", "rows")

    def __init__(self, *rows: Tensor, bias: Tensor | None = None, packed: bool = False) -> None:
        self.rows = rows
        self.bias = bias  # [out]
        self.packed = packed

    @property
    def weight(self) -> Tensor:
        """The weight as one tensor; a copy where it lies in several pieces."""
        return self.rows[0] if len(self.rows) == 1 else torch.cat(self.rows)

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.rows[0], self.bias, "none", [], "")
        if len(self.rows) == 1:
            return F.linear(x, self.rows[0], self.bias)
        if self.bias is None:
            return torch.cat([F.linear(x, rows) for rows in self.rows], dim=-1)
        biases = self.bias.split([len(rows) for rows in self.rows])
        return torch.cat([F.linear(x, rows, bias) for rows, bias in zip(self.rows, biases, strict=True)], dim=-1)

    def pack(self, is_mapped: bool = False) -> None:
        """Replace the weight by its packed form where this machine and dtype allow. A mapped weight moves into memory
        of its own in any case."""
        if self.packed:
            return
        if can_pack(self.rows[0].device.type, self.rows[0].dtype):
            self.rows = (torch.ops.mkldnn._reorder_linear_weight(self.weight, _ROWS_HINT),)
            self.packed = True
        elif is_mapped:
            self.rows = (torch.cat(self.rows),)


@cache
def can_pack(device_type: str, dtype: torch.dtype) -> bool:
    """Whether packed linears work here: tried on a small case, for one row and for many."""
    if device_type != "cpu" or dtype not in (torch.bfloat16, torch.float32) or not torch.backends.mkldnn.is_available():
        return False
    try:
        weight = (torch.arange(64 * 96, dtype=torch.float32).reshape(64, 96) % 7 - 3).to(dtype)
        packed = Linear(torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT), packed=True)
        for rows in (1, 65):
            x = (torch.arange(rows * 96, dtype=torch.float32).reshape(rows, 96) % 5 - 2).to(dtype)
            if not torch.equal(packed(x), F.linear(x, weight)):  # small integers: sums are exact in either order
                return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True
