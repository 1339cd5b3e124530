"""The weights of a model by name. Each part that is made takes its weights out of the dict."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.layers.linear import Linear
from ember.engine.layers.norm import LayerNorm, Norm, RMSNorm

Weights = dict[str, Linear | Tensor]
"""Weights by the names of `description.weight_specs.weight_specs`: linear layers, and vectors and tables."""


def tensors_of(weights: Weights) -> Iterator[Tensor]:
    """Every tensor of the weights."""
    for weight in weights.values():
        if isinstance(weight, Tensor):
            yield weight
        else:
            yield from weight.tensors()


def pop_linear(weights: Weights, name: str) -> Linear:
    """Take a linear layer out of the weights."""
    weight = weights.pop(name)
    assert isinstance(weight, Linear)
    return weight


def pop_tensor(weights: Weights, name: str) -> Tensor:
    """Take a vector or a table out of the weights."""
    weight = weights.pop(name)
    assert isinstance(weight, Tensor)
    return weight


def pop_norm(config: DecoderConfig, weights: Weights, name: str, size: int | None = None) -> Norm:
    """Take the weights of a norm, which is of hidden states, or of vectors of another `size`."""
    size = size or config.hidden_size
    weight = pop_tensor(weights, f"{name}.weight") if config.norm_affine else None
    if config.norm == "rms":
        return RMSNorm(weight, size, config.norm_eps)
    bias = pop_tensor(weights, f"{name}.bias") if config.norm_bias else None
    return LayerNorm(weight, bias, size, config.norm_eps)
