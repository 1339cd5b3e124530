"""Layouts of weights as matrices of the C library for CPUs: those that `description.operator_sets` declares, and joined
layers of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.joined import parts_of
from ember.engine.layers.linear import Linear
from ember.engine.layers.sparse_table_linear import SparseTableLinear
from ember.engine.layers.table_linear import TableLinear
from ember.gguf.types import NUMBERS
from ember_cpu import library as native

_GROUP = 32  # weights: groups are multiples of it, those of codes with a table also half of it
_INTEGERS = {
    (4, False): native.INT4,
    (8, False): native.INT8,
    (4, True): native.INT4_ZEROS,
    (8, True): native.INT8_ZEROS,
}


def matrix_of(linear: Linear, floats: bool) -> native.Matrix | None:
    """The layer as a matrix, which the layer must outlive; None if the library does not multiply it as it is stored.

    `floats`: whether integers and blocks are multiplied with activations in bfloat16, instead of 8 bits.
    """
    pieces: list[native.Piece] = []
    orders: list[Tensor | None] = []
    for part in parts_of(linear):
        made = _pieces(part)
        if not made:
            return None
        pieces += made
        orders.append(part.order if isinstance(part, IntLinear) else None)
    order = orders[0]
    if len(pieces) > native.MAX_PIECES or not all(_is_same(order, other) for other in orders):
        return None
    if order is not None and floats:
        return None
    return native.matrix(pieces, linear.in_features, linear.bias, floats, order)


def _pieces(part: Linear) -> list[native.Piece]:
    """The pieces of a layer that is not joined; none if the library does not multiply it as it is stored."""
    if type(part) is Linear:
        return [native.piece(rows, native.BFLOAT16) for rows in part.rows]
    if isinstance(part, BlockLinear):
        return [native.piece(rows, NUMBERS[part.type]) for rows in part.rows]
    if isinstance(part, IntLinear) and _fits(part, part.group):
        kind = _INTEGERS[part.bits, part.zeros is not None]
        return [native.scaled_piece(part.codes, kind, part.scales, part.group, zeros=part.zeros)]
    if isinstance(part, Float8Linear) and _fits(part, part.block[1]):
        height, width = part.block
        width = min(width, part.in_features)
        return [native.scaled_piece(part.codes, native.FLOAT8, part.scales, width, height)]
    if isinstance(part, TableLinear) and (_fits(part, part.block) or _is_half(part)):
        kind = native.E2M1 if part.is_e2m1 else native.TABLE4
        scaled = native.scaled_piece(part.codes, kind, part.scales, part.block, factors=part.factors, table=part.table)
        return [scaled]
    if isinstance(part, SparseTableLinear):
        singles = (part.starts, part.counts, part.columns, part.values)
        return [native.add_singles(made, *singles) for made in _pieces(part.table)]
    return []


def _fits(part: Linear, group: int) -> bool:
    """Whether rows are whole registers, and so are groups but for the last one of a row."""
    return part.in_features % _GROUP == 0 and (group % _GROUP == 0 or group >= part.in_features)


def _is_half(part: TableLinear) -> bool:
    return part.in_features % _GROUP == 0 and part.block == _GROUP // 2


def takes_bfloat16(linear: Linear) -> bool:
    """Whether some part is multiplied with activations in bfloat16 alone, after decoding to float32."""
    return any(
        isinstance(part, Float8Linear | SparseTableLinear)
        or (isinstance(part, TableLinear) and not (part.is_e2m1 and part.block % _GROUP == 0))
        for part in parts_of(linear)
    )


def is_quantised(linear: Linear) -> bool:
    """Whether some part of the layer is not plain."""
    return any(type(part) is not Linear for part in parts_of(linear))


def _is_same(order: Tensor | None, other: Tensor | None) -> bool:
    return order is other or (order is not None and other is not None and torch.equal(order, other))
