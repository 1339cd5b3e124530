"""Writing of safetensors files, whose format `safetensors_header` describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ember.engine.loading.plan import DTYPES

_NAMES = {torch_name: name for name, torch_name in DTYPES.items()}
_ALIGNMENT = 8  # of the data's start, in bytes


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write tensors to a file. Returns their size in bytes. The file appears when it is complete."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    # The largest elements first, so that every tensor is aligned to its elements.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    end = 0
    for name, tensor in ordered:
        dtype = _NAMES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, tensor in ordered:
            file.write(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    unfinished.rename(path)
    return end
