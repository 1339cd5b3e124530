"""Plain weights rounded to the layouts of quantised ones: while they load, and by `ember quantize`."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.linear import Linear
from ember.engine.layers.table_linear import NF4, TableLinear

FLOAT8_MAX = 448.0  # the largest number of float8_e4m3fn
_PIECE_ELEMENTS = 1 << 22  # rounded at a time


def float8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, in] as float8_e4m3fn [out, in] and float32 scales [out, 1]."""
    codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
    for first in range(0, len(weight), step := max(1, _PIECE_ELEMENTS // weight.shape[1])):
        piece = weight[first : first + step].float()
        scale = piece.abs().amax(1, keepdim=True).clamp_min_(1e-12) / FLOAT8_MAX
        scales[first : first + step] = scale
        codes[first : first + step] = (piece / scale).clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(codes.dtype)
    return codes, scales


def float8_linear(linear: Linear) -> Float8Linear:
    """A plain layer with its weight in float8, and a scale for each row."""
    pairs = [float8_rows(rows) for rows in linear.rows]
    codes, scales = (held[0] if len(held) == 1 else torch.cat(held) for held in zip(*pairs, strict=True))
    return Float8Linear(codes, scales, (1, codes.shape[1]), linear.dtype, linear.bias, quantises_inputs=True)


def nearest_codes(values: Tensor, table: Tensor) -> Tensor:
    """The number of the entry of an ascending table that is nearest to each value: uint8."""
    middles = (table[1:] + table[:-1]) / 2
    return torch.bucketize(values, middles).to(torch.uint8)


def nf4_linear(linear: Linear, block: int = 64) -> TableLinear:
    """A plain layer with its weight in nf4, and a float32 scale for each `block` numbers of a row."""
    width = gcd(linear.in_features, block)
    table = torch.tensor(NF4, device=linear.device)
    codes, scales = [], []
    for rows in linear.rows:
        for piece in rows.split(max(1, _PIECE_ELEMENTS // linear.in_features)):
            blocks = piece.float().unflatten(1, (-1, width))
            largest = blocks.abs().amax(-1, keepdim=True)
            found = nearest_codes(blocks / largest.clamp(min=1e-12), table).flatten(1)
            codes.append(found[:, 0::2] | found[:, 1::2] << 4)
            scales.append(largest[..., 0])
    return TableLinear(torch.cat(codes), table, torch.cat(scales), linear.dtype, None, linear.bias)
