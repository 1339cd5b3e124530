"""Normalisation: RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_rows(x: Tensor) -> Tensor:
    """[rows, size] with each row at the length 1, as `F.normalize` computes it, which would import all of torch."""
    return x / torch.ops.aten.linalg_vector_norm(x, 2.0, [1], True).clamp_min(1e-12)


@dataclass(slots=True)
class RMSNorm:
    """x / rms(x) * weight over the last dimension, summed in float32."""

    weight: (
        Tensor | None
    )  # [size], or any shape that broadcasts with x; if it is wider than x, the result is rounded once
    size: int
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """[..., size] -> the same shape."""
        if self.weight is not None and self.weight.dtype != x.dtype:
            return (F.rms_norm(x.float(), (self.size,), None, self.eps) * self.weight).to(x.dtype)
        if self.weight is None or self.weight.dim() == 1:
            return F.rms_norm(x, (self.size,), self.weight, self.eps)
        return F.rms_norm(x, (self.size,), None, self.eps) * self.weight


@dataclass(slots=True)
class LayerNorm:
    """(x - mean) / deviation * weight + bias over the last dimension."""

    weight: Tensor | None  # [size], or any shape that broadcasts with x
    bias: Tensor | None  # the same shape
    size: int
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """[..., size] -> the same shape."""
        if self.weight is None or self.weight.dim() == 1:
            return F.layer_norm(x, (self.size,), self.weight, self.bias, self.eps)
        x = F.layer_norm(x, (self.size,), None, None, self.eps) * self.weight
        return x if self.bias is None else x + self.bias


@dataclass(slots=True)
class JointHeadNorm:
    """RMSNorm over the dimensions of all query heads together, and over those of all key heads together."""

    weight: Tensor  # [heads + kv_heads, head_dim]
    num_heads: int
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """[T, heads + kv_heads, head_dim] -> the same shape."""
        split = (self.num_heads, x.shape[1] - self.num_heads)
        parts = zip(x.split(split, dim=1), self.weight.split(split), strict=True)
        return torch.cat([F.rms_norm(part, weight.shape, weight, self.eps) for part, weight in parts], dim=1)


Norm = RMSNorm | LayerNorm
QkNorm = RMSNorm | LayerNorm | JointHeadNorm
