"""The header of a GGUF file: its metadata, and the type, shape and position of each tensor.

Format (ggml's docs/gguf.md), little endian: "GGUF", the version, the numbers of tensors and of metadata entries; each
entry is a key, a type and a value; each tensor a name, its sizes (the innermost first), a type and an offset, which
counts from the first multiple of `general.alignment` after the header. Lengths and counts have 64 bits.

The file comes from outside: every count is compared with the bytes that are left before anything is made of it.
Arrays, of which a tokenizer has some with several hundred thousand strings, are decoded when they are needed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from ember.gguf.types import OTHER_TYPES, TYPES, GgmlType
from ember.regular_file import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER = 256 << 20  # bytes; 262,000 tokens with their merges have 15 MB
MAX_TENSORS = 1 << 16  # of one file; large models have some thousand, since the experts of a layer are one tensor
MAX_ENTRIES = 1 << 16  # of the metadata
MAX_TEXT = 16 << 20  # bytes of one string, such as a template
_MAX_NAME = 1000  # bytes of a key or a tensor's name
_MAX_DIMENSIONS = 4  # of a tensor
_MAX_ALIGNMENT = 1 << 20
_STRETCH = 4 << 20  # bytes read at a time
_SHOWN = 100  # characters of a name in a message
AGAIN = "the file is damaged or its download was cut off: delete it and download it again"

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q").unpack_from


class GgufError(ValueError):
    """The file cannot be used. The message is one line that names the file."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array of the metadata that is not decoded yet. `kind`: the type of its elements."""

    kind: int
    count: int
    data: memoryview

    def texts(self) -> list[str]:
        """The strings of an array of strings. Bytes that are not UTF-8 become U+FFFD."""
        from ember_cpu.vocabulary import joined  # not with every boot: few models are in GGUF

        if (text := joined(self.data, self.count)) is not None:
            return text.decode("utf-8", "replace").split("\0")[:-1]
        data, at, found = bytes(self.data), 0, []
        for _ in range(self.count):
            (length,) = _LENGTH(data, at)
            at += 8
            found.append(data[at : at + length].decode("utf-8", "replace"))
            at += length
        return found

    def texts_at(self, indices: Collection[int]) -> dict[int, str]:
        """Some strings by their indices: the others are passed over without decoding them."""
        wanted, data, at, found = set(indices), bytes(self.data), 0, {}
        for index in range(min(self.count, max(wanted, default=-1) + 1)):
            (length,) = _LENGTH(data, at)
            at += 8
            if index in wanted:
                found[index] = data[at : at + length].decode("utf-8", "replace")
            at += length
        return found

    def numbers(self) -> list[Any]:
        """The numbers of an array of numbers or flags."""
        return list(struct.unpack(f"<{self.count}{_NUMBERS[self.kind]}", self.data))

    @property
    def is_texts(self) -> bool:
        return self.kind == _STRING


Value = int | float | bool | str | Array


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file. `offset`: in bytes from the file's start. `shape`: the outermost size first."""

    name: str
    file: Path
    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Metadata:
    """The entries of a file's metadata by key. The methods raise GgufError for a value of another type."""

    def __init__(self, file: Path, values: Mapping[str, Value]) -> None:
        self.file = file
        self.values = values

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self.error(key, "text")

    def flag(self, key: str) -> bool | None:
        value = self.values.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self.error(key, "true or false")

    def integer(self, key: str) -> int | None:
        value = self.values.get(key)
        if value is None or type(value) is int:
            return value
        raise self.error(key, "an integer")

    def texts(self, key: str, at_most: int = MAX_ENTRIES) -> list[str] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Array) or (value.count and not value.is_texts):
            raise self.error(key, "an array of strings")
        if value.count > at_most:  # they are counted before they are decoded, which takes a multiple of their bytes
            raise self.error(key, f"an array of at most {at_most} strings")
        return value.texts()

    def numbers(self, key: str) -> list[Any] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, Array) and (value.kind in _NUMBERS or not value.count):
            return value.numbers() if value.count else []
        raise self.error(key, "an array of numbers")

    def error(self, key: str, allowed: str) -> GgufError:
        value = self.values.get(key)
        given = f"an array of {value.count}" if isinstance(value, Array) else ascii(value)[:_SHOWN]
        return GgufError(f"{self.file}: the metadata's {key} must be {allowed}, not {given}")


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one file."""

    file: Path
    metadata: Metadata
    tensors: dict[str, Tensor]


def is_gguf(file: Path) -> bool:
    """Whether a file begins as a GGUF file does; False if it cannot be read."""
    try:
        with os.fdopen(open_regular(file), "rb") as handle:
            return handle.read(4) == MAGIC
    except OSError:
        return False


def read_header(file: Path) -> Header:
    """Read the header of one file. Raises GgufError."""
    try:
        with os.fdopen(open_regular(file), "rb", buffering=0) as handle:
            return _Reader(file, handle).header()
    except FileNotFoundError:
        raise GgufError(f"{file} is missing: download the model again") from None
    except OSError as error:
        raise GgufError(f"{file} cannot be read: {error.strerror or error}") from None


class _Reader:
    """Reads a header from its beginning. `_data`: the bytes that were read so far; `_at`: the position in them."""

    def __init__(self, file: Path, handle: BinaryIO) -> None:
        self._file, self._handle = file, handle
        self._size = os.fstat(handle.fileno()).st_size
        self._data = bytearray()
        self._at = 0

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            raise self._error("does not begin with GGUF: it is no GGUF file")
        (version,) = struct.unpack("<I", self._take(4))
        if version not in VERSIONS:
            if version & 0xFFFF == 0:
                raise GgufError(f"{self._file} is big-endian, which is not supported: convert it again")
            raise GgufError(
                f"{self._file} has version {version} of the format, and only 2 and 3 are read: convert it again"
            )
        num_tensors, num_entries = self._length(), self._length()
        self._limit("tensors", num_tensors, MAX_TENSORS, 24)
        self._limit("entries of metadata", num_entries, MAX_ENTRIES, 13)
        values: dict[str, Value] = {}
        arrays: list[tuple[str, int, int, int, int]] = []
        for _ in range(num_entries):
            key = self._text(_MAX_NAME, "a key of the metadata")
            if key in values:
                raise self._error(f"has the key {_shown(key)} twice")
            (kind,) = struct.unpack("<I", self._take(4))
            if kind != _ARRAY:
                values[key] = self._value(key, kind)
                continue
            (kind,), count = struct.unpack("<I", self._take(4)), self._length()
            start = self._at
            self._skip_array(key, kind, count)
            arrays.append((key, kind, count, start, self._at))
            values[key] = 0  # its place in the order
        stored = [self._tensor() for _ in range(num_tensors)]
        data = memoryview(self._data).toreadonly()  # arrays refer to it
        for key, kind, count, start, stop in arrays:
            values[key] = Array(kind, count, data[start:stop])
        metadata = Metadata(self._file, values)
        return Header(self._file, metadata, self._placed(stored, metadata))

    def _placed(
        self, stored: list[tuple[str, GgmlType, tuple[int, ...], int]], metadata: Metadata
    ) -> dict[str, Tensor]:
        """The tensors with their positions in the file. Raises GgufError if one is outside it, or two overlap."""
        alignment = metadata.integer("general.alignment")
        alignment = 32 if alignment is None else alignment
        if not 0 < alignment <= _MAX_ALIGNMENT or alignment % 8:
            raise metadata.error("general.alignment", f"a multiple of 8 up to {_MAX_ALIGNMENT}")
        start = -(-self._at // alignment) * alignment
        found: dict[str, Tensor] = {}
        for name, kind, shape, offset in stored:
            nbytes = prod(shape) // kind.elements * kind.size
            if name in found:
                raise self._error(f"has the tensor {_shown(name)} twice")
            if offset % alignment:
                raise self._error(f"has the tensor {_shown(name)} at {offset}, which is no multiple of {alignment}")
            if start + offset + nbytes > self._size:
                raise self._error(
                    f"ends at byte {self._size}, but the tensor {_shown(name)} reaches byte {start + offset + nbytes}"
                )
            found[name] = Tensor(name, self._file, kind, shape, start + offset, nbytes)
        self._refuse_overlaps(found.values())
        return found

    def _refuse_overlaps(self, tensors: Iterable[Tensor]) -> None:
        placed = sorted((tensor for tensor in tensors if tensor.nbytes), key=lambda tensor: tensor.offset)
        for one, other in pairwise(placed):
            if one.offset + one.nbytes > other.offset:
                raise self._error(f"has tensors that overlap: {_shown(one.name)} and {_shown(other.name)}")

    def _tensor(self) -> tuple[str, GgmlType, tuple[int, ...], int]:
        name = self._text(_MAX_NAME, "a tensor's name")
        (dimensions,) = struct.unpack("<I", self._take(4))
        if dimensions > _MAX_DIMENSIONS:
            raise self._error(
                f"has a tensor, {_shown(name)}, of {dimensions} dimensions; {_MAX_DIMENSIONS} are allowed"
            )
        shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))[::-1]
        number, offset = struct.unpack("<IQ", self._take(12))
        kind = TYPES.get(number)
        if kind is None:
            given = OTHER_TYPES.get(number, f"number {number}")
            served = ", ".join(each.name for each in TYPES.values())
            raise GgufError(
                f"{self._file}: the tensor {_shown(name)} has the type {given}, which is not supported; supported are "
                f"{served}: choose a file of another quantization"
            )
        if max(shape, default=0) >= 2**48 or prod(shape) >= 2**62:
            raise self._error(f"has a tensor, {_shown(name)}, of the impossible shape {list(shape)}")
        columns = shape[-1] if shape else 1
        if columns % kind.elements:
            raise self._error(
                f"has the tensor {_shown(name)} with rows of {columns} elements, no multiple of the {kind.elements} of "
                f"{kind.name}"
            )
        return name, kind, shape, offset

    def _value(self, key: str, kind: int) -> Value:
        if kind == _STRING:
            return self._text(MAX_TEXT, f"the metadata's {_shown(key)}")
        if kind not in _NUMBERS:
            raise self._error(f"has the key {_shown(key)} with the unknown type {kind}")
        code = f"<{_NUMBERS[kind]}"
        value: Value = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def _skip_array(self, key: str, kind: int, count: int) -> None:
        if kind in _NUMBERS:
            size = struct.calcsize(f"<{_NUMBERS[kind]}")
            self._limit(f"elements in {_shown(key)}", count, MAX_HEADER, size)
            self._need(size * count)
            self._at += size * count
            return
        if kind != _STRING:
            what = "arrays" if kind == _ARRAY else f"elements of the unknown type {kind}"
            raise self._error(f"has the key {_shown(key)} with an array of {what}, which is not supported")
        self._limit(f"strings in {_shown(key)}", count, MAX_HEADER, 8)
        from ember_cpu.vocabulary import skip

        left = count
        while left:
            passed, self._at = skip(self._data, self._at, left)
            left -= passed
            if left:  # the next one is not read whole
                length = self._length()
                if length > MAX_HEADER:
                    raise self._error(
                        f"has a string of {length} bytes in {_shown(key)}, beyond the limit of its header"
                    )
                self._need(length)
                self._at += length
                left -= 1

    def _text(self, limit: int, what: str) -> str:
        length = self._length()
        if length > limit:
            raise self._error(f"has {length} bytes as {what}; {limit} are allowed")
        return self._take(length).decode("utf-8", "replace")

    def _length(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _take(self, count: int) -> bytes:
        self._need(count)
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def _need(self, count: int) -> None:
        """Read on until `count` bytes after the position are there. Raises GgufError at the file's end or the limit."""
        stop = self._at + count
        while stop > len(self._data):
            if stop > MAX_HEADER:
                raise self._error(f"has a header of more than {MAX_HEADER} bytes, which is the limit")
            piece = self._handle.read(min(max(stop - len(self._data), _STRETCH), MAX_HEADER - len(self._data)))
            if not piece:
                raise self._error(f"ends at byte {len(self._data)}, within its header")
            self._data += piece

    def _limit(self, what: str, count: int, limit: int, size: int) -> None:
        """Raise GgufError if there are more than `limit` elements, or more than the file has room for (`size` bytes
        each, at the least)."""
        if count > limit or count * size > self._size - self._at:
            raise self._error(f"says that it has {count} {what}, more than fit into its {self._size} bytes")

    def _error(self, reason: str) -> GgufError:
        return GgufError(f"{self._file} {reason}: {AGAIN}")


def shortest(value: float) -> float:
    """The number with the fewest decimal digits that is the same in float32: 1e-06 for 9.99999997e-07."""
    try:
        packed = struct.pack("<f", value)
        for digits in range(1, 10):
            short = float(f"{value:.{digits}g}")
            if struct.pack("<f", short) == packed:
                return short
    except OverflowError:
        pass
    return float(value)


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= _SHOWN else ascii(name)[:_SHOWN]
