"""The feed-forward layer: plain, or gated (GLU variants, arXiv 2002.05202)."""

from __future__ import annotations

from dataclasses import dataclass

from ember.engine.description.config import Activation
from ember.engine.layers.linear import Linear


@dataclass(slots=True)
class MLP:
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)) with gate and up as one matrix, gate's rows first."""

    up: Linear  # [intermediate, hidden]; gated: [2 * intermediate, hidden]
    down: Linear  # [hidden, intermediate]
    activation: Activation
    gated: bool
