"""Which weights of a decoder are not finite numbers: the question after a first output that is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.joined import parts_of
from ember.engine.layers.linear import Linear
from ember.engine.models.decoder import Decoder

NAMED = 3  # weights that are named; the search ends with them


def broken_weights(model: Any) -> list[str]:
    """The names of the first weights that have NaN or an infinity, such as blocks.0.mixer.qkv; none of a model that is
    not a decoder of ours. It reads all weights: some seconds for a large model on a CPU."""
    if not isinstance(model, Decoder):
        return []
    return list(islice((name for name, weight in _weights(model.parts) if not _is_finite(weight)), NAMED))


def _weights(value: Any, name: str = "") -> Iterator[tuple[str, Tensor | Linear]]:
    """Every weight in a part of the decoder with its name, a path of attributes."""
    if isinstance(value, Tensor | Linear):
        yield name, value
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _weights(each, f"{name}.{index}")
    elif is_dataclass(value):
        for field in fields(value):
            yield from _weights(getattr(value, field.name), f"{name}.{field.name}".removeprefix("."))


def _is_finite(weight: Tensor | Linear) -> bool:
    if isinstance(weight, Tensor):
        return _has_finite(weight)
    for part in parts_of(weight):
        # Numbers in GGUF's blocks lie between codes; a packed tensor is oneDNN's own.
        tensors = [part.weight] if isinstance(part, BlockLinear) else [] if part.packed else part.tensors()
        if not all(map(_has_finite, tensors)):
            return False
    return True


def _has_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    return bool(torch.isfinite(wide).all())
