"""Linear layers, and their packed form on CPU.

oneDNN re-orders a plain weight on every call. A weight that was re-ordered once, at load, is read at memory speed at
small batch and is at least as fast at large batch, in bfloat16 and float32. The operators are private to torch, so they
are tried once on a small case; where they are absent or wrong, layers stay plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS_HINT = 32  # rows of input the packed layout is chosen for; one layout serves all row counts


@dataclass(slots=True)
class Linear:
    """x @ weight.T + bias. `packed`: the weight is in oneDNN's own layout, to be used by `__call__` alone."""

    weight: Tensor  # [out, in]
    bias: Tensor | None = None  # [out]
    packed: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def pack(self) -> bool:
        """Replace the weight by its packed form where this machine and dtype allow; True when it was packed."""
        if not self.packed and can_pack(self.weight.device.type, self.weight.dtype):
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, _ROWS_HINT)
            self.packed = True
        return self.packed


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
