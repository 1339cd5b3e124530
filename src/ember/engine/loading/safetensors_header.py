"""The header of a safetensors file, which has the position of each tensor. This module does not import torch.

Format (huggingface/safetensors): 8 bytes with the header's length (little endian), the header as a JSON object of
`name -> {"dtype", "shape", "data_offsets": [begin, end]}` plus `__metadata__`, then the data; offsets count from there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ember import untrusted_json
from ember.engine.errors import ModelError
from ember.regular_file import open_regular
from ember.untrusted_json import UntrustedJsonError

ITEM_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
MAX_HEADER = 100_000_000  # bytes; the format's own limit
_MAX_DIMENSIONS = 32  # of a tensor
_MAX_NAME = 200  # characters of a name in a message
AGAIN = "the file is damaged or its download was cut off: delete it and download it again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file. `offset`: in bytes from the file's start."""

    name: str
    file: Path
    offset: int
    nbytes: int
    dtype: str  # in the format's spelling: BF16, F32, ...
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file by name. Raises ModelError for a truncated or invalid file."""
    try:
        with os.fdopen(open_regular(file), "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            length = int.from_bytes(handle.read(8), "little")
            if size < 8:
                raise ModelError(f"{file} has {size} bytes, too few for a header: {AGAIN}")
            if length > size - 8:
                raise ModelError(f"{file} has {size} bytes but its header alone says {length}: {AGAIN}")
            if length > MAX_HEADER:
                raise ModelError(
                    f"{file} says that its header has {length} bytes, over the limit of {MAX_HEADER}: {AGAIN}"
                )
            header = untrusted_json.loads(handle.read(length))
    except FileNotFoundError:
        raise ModelError(f"{file} is missing: download the model again") from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from None
    except UntrustedJsonError as error:
        raise ModelError(f"{file} has a header that is not JSON ({error}): {AGAIN}") from None
    if not isinstance(header, dict):
        raise ModelError(f"{file} has a header that is not a JSON object: {AGAIN}")
    header.pop("__metadata__", None)
    return checked_entries(file, header, 8 + length, size)


def checked_entries(file: Path, header: Mapping[str, Any], start: int, size: int) -> dict[str, TensorEntry]:
    """The tensors that a header describes. `start`: where its offsets begin; `size`: of the file. Raises ModelError."""
    entries = {name: _entry(file, name, value, start, size) for name, value in header.items()}
    _refuse_overlaps(entries.values())
    return entries


def _refuse_overlaps(entries: Iterable[TensorEntry]) -> None:
    """Raise ModelError if two tensors overlap, which the format forbids."""
    placed = sorted((entry for entry in entries if entry.nbytes), key=lambda entry: entry.offset)
    for one, other in pairwise(placed):
        if one.offset + one.nbytes > other.offset:
            names = f"{_shown(one.name)} and {_shown(other.name)}"
            raise ModelError(f"{one.file}: the tensors {names} overlap: {AGAIN}")


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= _MAX_NAME else ascii(name)[:_MAX_NAME]


def _entry(file: Path, name: str, value: Any, start: int, size: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        numbers = (*shape, begin, end)
        sound = isinstance(dtype, str) and len(shape) <= _MAX_DIMENSIONS
        sound = sound and all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    except (KeyError, TypeError, ValueError):
        sound = False
    shown = _shown(name)
    if not sound:
        raise ModelError(f"{file}: the header's entry for {shown} makes no sense: {AGAIN}")
    if dtype not in ITEM_SIZES:
        known = ", ".join(ITEM_SIZES)
        given = ascii(dtype)[:_MAX_NAME]
        raise ModelError(f"{file}: tensor {shown} has the unknown dtype {given} (known: {known}): convert the model")
    if end - begin != math.prod(shape) * ITEM_SIZES[dtype]:
        raise ModelError(f"{file}: tensor {shown} {dtype} {list(shape)} does not fill its {end - begin} bytes: {AGAIN}")
    if start + end > size:
        raise ModelError(f"{file} ends at byte {size}, but tensor {shown} reaches byte {start + end}: {AGAIN}")
    return TensorEntry(name, file, start + begin, end - begin, dtype, shape)
