"""The vocabularies of GGUF files in C (`text/`): their arrays of strings, and the merges of a SentencePiece vocabulary.
No torch is imported."""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ember_cpu.variants import HERE, fault_of

SOURCES = (HERE / "text" / "merges.c", HERE / "text" / "strings.c")
_LENGTH = struct.Struct("<Q").unpack_from
OPTIONS = ("-O3", "-shared", "-fPIC")


def library_file(folder: Path = HERE) -> Path:
    return folder / "text_vocabulary.so"


def build() -> str:
    """The build fingerprint that an up-to-date library contains: a digest of sources and compiler options."""
    sources = b"".join(source.read_bytes() for source in SOURCES)
    return hashlib.sha256(sources + " ".join(OPTIONS).encode()).hexdigest()[:32]


def skip(data: bytearray, start: int, count: int) -> tuple[int, int]:
    """Pass over at most `count` strings of a file that begin at `start`. Returns how many of them `data` has whole, and
    where the next one begins."""
    library = _library()
    if library is not None:
        position = ctypes.c_int64(start)
        passed = library.ember_skip_strings(_address(data), len(data), count, ctypes.byref(position))
        return passed, position.value
    at, size = start, len(data)
    for passed in range(count):
        if at + 8 > size or (after := at + 8 + _LENGTH(data, at)[0]) > size:
            return passed, at
        at = after
    return count, at


def joined(data: memoryview, count: int) -> bytes | None:
    """The strings of an array in a file, with a NUL behind each. None if the library is missing, or if a string has a
    NUL in it."""
    library = _library()
    if library is None:
        return None
    content = bytes(data)
    text = bytearray(len(content))
    size = library.ember_join_strings(content, len(content), count, _address(text))
    return None if size < 0 else bytes(memoryview(text)[:size])


def merges_of(tokens: Sequence[str], order: Sequence[int]) -> list[tuple[str, str]] | None:
    """The merges that BPE applies if it prefers to make the tokens `order`, in this order: two tokens for each. Those
    of a token that BPE never makes are left out. None if the library is missing. The tokens have no surrogates."""
    library = _library()
    if library is None:
        return None
    content = "\udcff".join((*tokens, "")).encode("utf-8", "surrogateescape")  # the byte 0xff behind each
    pairs, chosen = array("i", bytes(8 * len(order))), array("i", order)
    count = library.ember_merges(
        content, len(content), len(tokens), _address(chosen), len(chosen), _address(pairs), _hash_base()
    )
    if count < 0:
        return None
    parts = map(tokens.__getitem__, pairs[: 2 * count])
    return list(zip(parts, parts, strict=True))


def _hash_base() -> int:
    """A random number that is smaller than the prime of the hashes, 2^61 - 1, and larger than a byte."""
    return int.from_bytes(os.urandom(7), "little") + 257


def _address(content: array[int] | bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(content)) if content else 0


@cache
def _library() -> ctypes.CDLL | None:
    file = library_file()
    if fault_of(file, build()) is not None:
        return None
    try:
        library = ctypes.CDLL(str(file))
    except OSError:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.ember_skip_strings.argtypes = (pointer, number, number, pointer)
    library.ember_join_strings.argtypes = (ctypes.c_char_p, number, number, pointer)
    library.ember_merges.argtypes = (ctypes.c_char_p, number, number, pointer, number, pointer, ctypes.c_uint64)
    for function in (library.ember_skip_strings, library.ember_join_strings, library.ember_merges):
        function.restype = number
    return library
