"""Layouts of weights as matrices of the C library for CPUs: those that `description.operator_sets` declares, and joined
layers of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.joined import parts_of
from ember.engine.layers.linear import Linear
from ember.gguf.types import NUMBERS
from ember_cpu import library as native

_GROUP = 32  # weights: groups of integers are multiples of it
_INTEGERS = {
    (4, False): native.INT4,
    (8, False): native.INT8,
    (4, True): native.INT4_ZEROS,
    (8, True): native.INT8_ZEROS,
}


def matrix_of(linear: Linear, floats: bool) -> native.Matrix | None:
    """The layer as a matrix, which the layer must outlive; None if the library does not multiply it as it is stored.

    `floats`: whether quantised weights are restored and multiplied with activations in bfloat16, instead of 8 bits.
    """
    pieces: list[native.Piece] = []
    orders: list[Tensor | None] = []
    for part in parts_of(linear):
        if type(part) is Linear:
            pieces += [native.piece(rows, native.BFLOAT16) for rows in part.rows]
        elif isinstance(part, BlockLinear):
            pieces += [native.piece(rows, NUMBERS[part.type]) for rows in part.rows]
        elif isinstance(part, IntLinear) and part.group % _GROUP == 0:
            kind = _INTEGERS[part.bits, part.zeros is not None]
            pieces.append(native.piece(part.codes, kind, part.scales, part.zeros))
        else:
            return None
        orders.append(part.order if isinstance(part, IntLinear) else None)
    order = orders[0]
    if len(pieces) > native.MAX_PIECES or not all(_is_same(order, other) for other in orders):
        return None
    if order is not None and floats:
        return None
    return native.matrix(pieces, linear.in_features, linear.bias, floats, order)


def is_quantised(linear: Linear) -> bool:
    """Whether some part of the layer is not plain."""
    return any(type(part) is not Linear for part in parts_of(linear))


def _is_same(order: Tensor | None, other: Tensor | None) -> bool:
    return order is other or (order is not None and other is not None and torch.equal(order, other))
