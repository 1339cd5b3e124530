"""The buffer in which one weight at a time is restored to be multiplied, one for each device and dtype.

A GPU's graphs hold its address, so it is reserved for the largest weight before any step (`reserve`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ember.engine.layers.linear import fresh_memory

_buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def scratch(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised matrix. It is valid until the next call for the same device and dtype."""
    return reserve(rows * columns, dtype, device)[: rows * columns].view(rows, columns)


def reserve(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make the buffer at least so large. Returns all of it."""
    buffer = _buffers.get((device, dtype))
    if buffer is None or buffer.numel() < elements:
        _buffers.pop((device, dtype), None)  # the smaller one is freed first
        with torch.inference_mode(False):  # so that it can be written in any mode
            if device.type == "cpu":
                buffer = fresh_memory(elements * dtype.itemsize, dtype)
            else:
                buffer = torch.empty(elements, dtype=dtype, device=device)
        _buffers[device, dtype] = buffer
    return buffer
