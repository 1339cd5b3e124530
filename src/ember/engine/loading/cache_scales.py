"""The scales of a float8 KV cache in a checkpoint: a number for the keys and one for the values of each layer.

This module does not import torch.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping

from ember.engine.description.config import DecoderConfig
from ember.engine.errors import ModelError
from ember.engine.loading.safetensors_header import AGAIN, ITEM_SIZES, TensorEntry
from ember.regular_file import open_regular

KEY, VALUE, BOTH = (".k_scale", ".k_proj.output_scale"), (".v_scale", ".v_proj.output_scale"), (".kv_scale",)
UNUSED = (".q_scale", ".prob_scale", ".prob_output_scale", ".q_proj.output_scale")
"""Ends of the names of scales of queries and of attention's weights, which stay in the model's dtype here."""


def is_cache_scale(name: str) -> bool:
    """Whether a tensor of this name is one of those that this module reads, or has no use for."""
    return name.endswith((*KEY, *VALUE, *BOTH, *UNUSED))


def read_cache_scales(config: DecoderConfig, entries: Iterable[TensorEntry]) -> list[tuple[float, float]]:
    """The scales of K and V of each layer, 1 where there are none. `entries`: the checkpoint's tensors by whose names
    `is_cache_scale` is true. Raises ModelError."""
    by_name = {entry.name: entry for entry in entries}
    return [
        (
            _scale(by_name, config.names.layer.format(source), KEY),
            _scale(by_name, config.names.layer.format(source), VALUE),
        )
        for source in config.kv_sources()
    ]


def _scale(entries: Mapping[str, TensorEntry], layer: str, ends: tuple[str, ...]) -> float:
    for entry in entries.values():
        if entry.name.startswith(layer) and entry.name.endswith((*ends, *BOTH)):
            value = _number(entry)
            # Calibration leaves 0, a negative number, or none that is finite where it saw nothing.
            return value if 0.0 < value < math.inf else 1.0
    return 1.0


def _number(entry: TensorEntry) -> float:
    """The only number of a stored tensor."""
    if entry.dtype not in ("F32", "F16", "BF16") or entry.nbytes != ITEM_SIZES[entry.dtype]:
        raise ModelError(
            f"{entry.name} in {entry.file.name} is {list(entry.shape)} of {entry.dtype}, but a scale of the KV cache "
            "is one number for all heads of a layer"
        )
    descriptor = open_regular(entry.file)
    try:
        data = os.pread(descriptor, entry.nbytes, entry.offset)
    finally:
        os.close(descriptor)
    if len(data) < entry.nbytes:
        raise ModelError(f"{entry.file} became shorter while it was read: {AGAIN}")
    if entry.dtype == "BF16":
        data = b"\0\0" + data
    (value,) = struct.unpack("<e" if entry.dtype == "F16" else "<f", data)
    return float(value)
