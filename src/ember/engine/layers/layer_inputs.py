"""Inputs of single layers: each layer gets a vector for every token, besides the hidden states (Gemma 3n, Gemma 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ember.engine.layers.linear import Linear
from ember.engine.layers.mlp import MLP
from ember.engine.layers.norm import Norm


@dataclass(slots=True)
class LayerInputs:
    """The vectors of all layers: (norm(projection(embedding) * projection_scale) + table[token] * scale) / sqrt(2)."""

    table: Tensor | Linear  # [rows, layers * size]; quantised: the layout
    scale: float
    projection: Linear  # [layers * size, hidden]
    projection_scale: float
    norm: Norm  # of [..., size]
    size: int


@dataclass(slots=True)
class LayerInput:
    """What a layer makes of its vector: norm(mlp.down(act(mlp.up(x)) * vector)), which it adds to its output x."""

    index: int  # of the layer
    mlp: MLP  # gated, but `up` has gate's rows alone: [size, hidden]; `down` is [hidden, size]
    norm: Norm
