"""Integers of quantized checkpoints in numpy: rounding to nearest, packing in words, and what they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def words(values: Array, bits: int) -> Tensor:
    """Integers [rows, columns] as int32 [rows, columns * bits / 32]: one stream of bits, each number's lowest first."""
    stream = (values.astype(np.uint8)[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    packed = np.packbits(stream.reshape(len(values), -1).astype(np.uint8), axis=1, bitorder="little")
    return torch.from_numpy(packed.view("<i4").astype(np.int32))


def integers(
    weight: Tensor, bits: int, group: int, symmetric: bool, groups: Array | None = None, dtype: str = "float16"
) -> tuple[Array, Array, Array]:
    """Integers [out, in], zero points and scales [out, in / group], by rounding to nearest. `groups`: each input's
    group. `dtype`: numpy's, of the scales."""
    numbers = weight.double().numpy()
    groups = np.arange(numbers.shape[1]) // group if groups is None else groups
    order = np.argsort(groups, kind="stable")
    grouped = numbers[:, order].reshape(len(numbers), -1, group)
    most = 2**bits - 1
    if symmetric:
        scales = np.abs(grouped).max(-1) / (most // 2)
        zeros = np.full(scales.shape, 2 ** (bits - 1))
    else:
        low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
        scales = (high - low) / most
        zeros = np.round(-low / np.maximum(scales, 1e-9))
    scales = scales.astype(dtype)
    zeros = np.clip(zeros, 0, most).astype(np.int64)
    whole = np.round(numbers / scales.astype(np.float64)[:, groups]) + zeros[:, groups]
    return np.clip(whole, 0, most).astype(np.int64), zeros, scales


def restore(whole: Array, zeros: Array, scales: Array, groups: Array) -> Tensor:
    """(q - z) * s in float32."""
    restored = (whole - zeros[:, groups]).astype(np.float32) * scales.astype(np.float32)[:, groups]
    return torch.from_numpy(restored)
