"""The tensors of a file that torch.save wrote (.bin, .pt), without torch and without running code of the file.

Since torch 1.6 such a file is a zip archive without compression: `data.pkl` describes the tensors, and `data/KEY` has
the bytes of each storage, so that they can be read or mapped like those of safetensors. The unpickler accepts only the
names that a dict of tensors needs, as `torch.load(weights_only=True)` does.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ember.engine.errors import ModelError
from ember.engine.loading.safetensors_header import AGAIN, ITEM_SIZES, TensorEntry
from ember.regular_file import open_regular

MAX_PICKLE = 100_000_000  # bytes; the limit of a safetensors header
_STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # torch's classes -> safetensors' names


class _Storage(NamedTuple):
    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int  # in elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def is_contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> _Tensor:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor that makes no sense")
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


class _StorageType(NamedTuple):
    dtype: str


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes descriptions of tensors, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ModelError(f"it needs {ascii(f'{module}.{name}')[1:-1][:100]}, which is not one of a dict of tensors")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key = pid[:3]
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage that makes no sense")
        return _Storage(key, storage_type.dtype)


def read_torch_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file by name. Raises ModelError."""
    try:
        with open(open_regular(file), "rb") as handle:
            if not zipfile.is_zipfile(handle):
                raise ModelError("it is no zip archive, which torch writes since version 1.6: save it again")
            with zipfile.ZipFile(handle) as archive:
                return _entries(file, handle, archive)
    except ModelError as error:
        raise ModelError(f"{file} cannot be used: {error}") from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # unpicklers raise nearly every kind for damaged bytes
        reason = f"{type(error).__name__}: {ascii(str(error))[1:-1][:100]}"
        raise ModelError(f"{file} is not a file of tensors ({reason}): {AGAIN}") from None


def _entries(file: Path, handle: io.BufferedReader, archive: zipfile.ZipFile) -> dict[str, TensorEntry]:
    members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    described = members["data.pkl"]
    if described.file_size > MAX_PICKLE:
        raise ModelError(f"its data.pkl has {described.file_size} bytes, over the limit of {MAX_PICKLE}")
    if "byteorder" in members:
        with archive.open(members["byteorder"]) as order:
            if order.read(10).strip() != b"little":
                raise ModelError("its numbers are big-endian: save it again on another machine")
    data = archive.read(described)
    _check_memo(data)
    tensors = _Unpickler(io.BytesIO(data)).load()
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise ModelError("it has no dict of tensors")
    return {
        name: _entry(file, handle, members, name, tensor)
        for name, tensor in tensors.items()
        if isinstance(tensor, _Tensor)
    }


def _check_memo(data: bytes) -> None:
    """Raise ModelError for a place in the unpickler's memo that is beyond the number of bytes. The unpickler allocates
    all places before it, which may be many gigabytes."""
    for opcode, place, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(place or 0) > len(data):
            raise ModelError(f"its data.pkl stores an object at the place {place}, in {len(data)} bytes: {AGAIN}")


def _entry(
    file: Path, handle: io.BufferedReader, members: Mapping[str, zipfile.ZipInfo], name: str, tensor: _Tensor
) -> TensorEntry:
    shown = name if name.isprintable() and len(name) <= 200 else ascii(name)[:200]
    info, size = members.get(f"data/{tensor.storage.key}"), ITEM_SIZES[tensor.storage.dtype]
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        raise ModelError(f"the bytes of {shown} are missing or compressed: {AGAIN}")
    if not tensor.is_contiguous():
        raise ModelError(f"{shown} is not contiguous: save it again")
    nbytes, offset = math.prod(tensor.shape) * size, tensor.offset * size
    if offset + nbytes > info.file_size:
        raise ModelError(f"{shown} has {offset + nbytes} bytes, but there are {info.file_size}: {AGAIN}")
    handle.seek(info.header_offset)
    local = handle.read(30)  # the archive's directory does not have the length of this header
    lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    start = info.header_offset + 30 + lengths
    return TensorEntry(name, file, start + offset, nbytes, tensor.storage.dtype, tensor.shape)
