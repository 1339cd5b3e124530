"""Normalisation: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(slots=True)
class RMSNorm:
    """x / rms(x) * weight over the last dimension, summed in float32."""

    weight: Tensor | None  # [size], or any shape that broadcasts with x
    size: int
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """[..., size] -> the same shape."""
        if self.weight is None or self.weight.dim() == 1:
            return F.rms_norm(x, (self.size,), self.weight, self.eps)
        return F.rms_norm(x, (self.size,), None, self.eps) * self.weight


@dataclass(slots=True)
class LayerNorm:
    """(x - mean) / deviation * weight + bias over the last dimension."""

    weight: Tensor | None  # [size]
    bias: Tensor | None  # [size]
    size: int
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """[..., size] -> the same shape."""
        return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)


Norm = RMSNorm | LayerNorm
