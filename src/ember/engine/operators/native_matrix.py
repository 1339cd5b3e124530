"""Layouts of weights as matrices of the C library for CPUs: those that `description.operator_sets` declares, and joined
layers of them."""

from __future__ import annotations

from torch import Tensor

from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.joined import parts_of
from ember.engine.layers.linear import Linear
from ember.gguf.types import NUMBERS
from ember_cpu import library as native


def matrix_of(linear: Linear, floats: bool) -> native.Matrix | None:
    """The layer as a matrix, which the layer must outlive; None if the library does not multiply it as it is stored.

    `floats`: whether quantised weights are restored and multiplied with activations in bfloat16, instead of 8 bits.
    """
    pieces: list[tuple[Tensor, int]] = []
    for part in parts_of(linear):
        if type(part) is Linear:
            pieces += [(rows, native.BFLOAT16) for rows in part.rows]
        elif isinstance(part, BlockLinear):
            pieces += [(rows, NUMBERS[part.type]) for rows in part.rows]
        else:
            return None
    if len(pieces) > native.MAX_PIECES:
        return None
    return native.block_matrix(pieces, linear.in_features, linear.bias, floats)


def is_quantised(linear: Linear) -> bool:
    """Whether some part of the layer is not plain."""
    return any(type(part) is not Linear for part in parts_of(linear))
