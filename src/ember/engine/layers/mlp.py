"""The feed-forward layer: plain, or gated (GLU variants, arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.linear import Linear

Activation = Callable[[Tensor], Tensor]

_gelu_tanh = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
}


@dataclass(slots=True)
class MLP:
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)) with gate and up as one matrix, gate's rows first."""

    up: Linear  # [intermediate, hidden]; gated: [2 * intermediate, hidden]
    down: Linear  # [hidden, intermediate]
    activation: Activation
    gated: bool

    def __call__(self, hidden: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        inner = self.up(hidden)
        if not self.gated:
            return self.down(self.activation(inner))
        gate, up = inner.chunk(2, dim=-1)
        return self.down(self.activation(gate).mul_(up))
