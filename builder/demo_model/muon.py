"""The Muon optimiser for weight matrices: momentum whose update is made orthogonal before it is applied.

It learns more from every token than AdamW, which counts when the whole budget is minutes on a processor. All
matrices of one shape are updated as one stack, so that the Newton-Schulz steps are a few batched products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(updates: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly, of a stack of matrices."""
    wide = updates.size(-2) > updates.size(-1)
    x = updates.bfloat16()
    x = x.mT if wide else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if wide else x).to(updates.dtype)


class Muon:
    """Nesterov momentum with orthogonal updates and decoupled weight decay."""

    def __init__(self, matrices: list[nn.Parameter], momentum: float = 0.95, decay: float = 0.01) -> None:
        self.momentum, self.decay = momentum, decay
        self.groups: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            self.groups.setdefault(matrix.shape, []).append(matrix)
        self.buffers = {
            shape: torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update of all matrices with this learning rate."""
        for shape, group in self.groups.items():
            gradients = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            buffer = self.buffers[shape]
            buffer.lerp_(gradients, 1 - self.momentum)
            updates = orthogonal(gradients.lerp(buffer, self.momentum))
            size = max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, update in zip(group, updates, strict=True):
                matrix.mul_(1 - rate * self.decay).add_(update, alpha=-rate * size)
                matrix.grad = None
