"""The feed-forward layer: plain, or gated (GLU variants, arXiv 2002.05202)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.description.config import Activation
from ember.engine.layers.linear import Linear


@dataclass(slots=True)
class Xielu:
    """The activation xIELU (arXiv 2411.13010), whose slopes are weights of the layer. It is computed in float32."""

    alpha_p: Tensor  # [1] float32, of positive values
    alpha_n: Tensor  # [1] float32, of negative values
    beta: Tensor  # float32
    eps: Tensor  # float32

    @classmethod
    def of(cls, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Xielu:
        """`alpha_p` and `alpha_n` as checkpoints have them: before softplus, and without beta."""
        beta = beta.float()
        return cls(F.softplus(alpha_p.float()), beta + F.softplus(alpha_n.float()), beta, eps.float())

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        positive = self.alpha_p * wide * wide
        negative = (torch.expm1(torch.minimum(wide, self.eps)) - wide) * self.alpha_n
        return (torch.where(wide > 0, positive, negative) + self.beta * wide).to(x.dtype)


@dataclass(slots=True)
class MLP:
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)) with gate and up as one matrix, gate's rows first.

    With a `limit` (gpt-oss) gate is clamped from above and up on both sides, and the product is
    (up + 1) * gate * sigmoid(alpha * gate).
    """

    up: Linear  # [intermediate, hidden]; gated: [2 * intermediate, hidden]
    down: Linear  # [hidden, intermediate]
    activation: Activation
    gated: bool
    xielu: Xielu | None = None  # of the activation xielu
    limit: float | None = None
    alpha: float = 1.702
    gate_scale: float = 1.0  # of gate(x)
    output_scale: float = 1.0
