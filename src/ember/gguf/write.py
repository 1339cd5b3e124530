"""Writing of GGUF files, whose format `header` describes: version 3, little endian."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ember.gguf.header import MAGIC
from ember.gguf.types import BY_NAME, NUMBERS

ALIGNMENT = 32
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
"""Values of general.file_type by the type of most tensors (llama.h's `llama_ftype`)."""

Item = int | float | bool | str
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 5, 6, 7, 8, 9, 10
_FORMS = {_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?", _UINT64: "<Q"}


class NewTensor(NamedTuple):
    """A tensor to be written. `shape`: the outermost size first. `pieces`: yields its bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[bytes | memoryview]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * BY_NAME[self.type].row_bytes(self.shape[-1])


def write_gguf(
    path: Path,
    metadata: Mapping[str, Item | Sequence[Item]],
    tensors: Sequence[NewTensor],
    say: Callable[[str], None] = lambda name: None,
) -> int:
    """Write a file. Returns the bytes of the tensors. `say` is called with the name of each tensor before it is made.
    An integer of the metadata is a uint32; those of an array are int32."""
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + _entry(value))
        end = 0
        for tensor in tensors:
            sizes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
            file.write(_text(tensor.name) + sizes + struct.pack("<IQ", NUMBERS[tensor.type], end))
            end += _aligned(tensor.nbytes)
        file.write(bytes(_aligned(file.tell()) - file.tell()))
        for tensor in tensors:
            say(tensor.name)
            _write_pieces(file, tensor)
    return sum(tensor.nbytes for tensor in tensors)


def _write_pieces(file: BinaryIO, tensor: NewTensor) -> None:
    written = 0
    for piece in tensor.pieces():
        written += file.write(piece)
    if written != tensor.nbytes:
        raise ValueError(f"{tensor.name} has {written} bytes, and should have {tensor.nbytes}")
    file.write(bytes(_aligned(written) - written))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _entry(value: Item | Sequence[Item]) -> bytes:
    """The type and the value of an entry."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, int | float):
        kind = _kind(value)
        return struct.pack("<I", kind) + struct.pack(_FORMS[kind], value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(_text(str(each)) for each in value)
    kind = _kind(value[0]) if value else _INT32
    kind = _INT32 if kind in (_UINT32, _UINT64) else kind
    form = _FORMS[kind][1]
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + struct.pack(f"<{len(value)}{form}", *value)


def _kind(value: Item) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, float):
        return _FLOAT32
    return _UINT32 if isinstance(value, int) and 0 <= value < 2**32 else _UINT64
