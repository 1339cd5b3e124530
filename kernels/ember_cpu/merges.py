"""The merges of a SentencePiece vocabulary in C (`text/merges.c`), which Python finds in ten times the time. No torch
is imported."""

from __future__ import annotations

import ctypes
import hashlib
from array import array
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

from ember_cpu.variants import HERE, fault_of

SOURCE = HERE / "text" / "merges.c"
OPTIONS = ("-O3", "-shared", "-fPIC")
_END = "\0"  # between two tokens


def library_file(folder: Path = HERE) -> Path:
    return folder / "text_merges.so"


def build() -> str:
    """The build fingerprint that an up-to-date library contains: a digest of source and compiler options."""
    return hashlib.sha256(SOURCE.read_bytes() + " ".join(OPTIONS).encode()).hexdigest()[:32]


def merges_of(tokens: Sequence[str], order: Sequence[int]) -> list[tuple[str, str]] | None:
    """Every pair of tokens that together are one of the tokens `order`, which are taken in this order, the pair with
    the shortest beginning first. None if the library is missing, or cannot do it."""
    library = _library()
    text = _END.join(tokens)
    if library is None or text.count(_END) != len(tokens) - 1:
        return None
    content = text.encode("utf-8", "surrogatepass")
    pieces = content.split(b"\0")
    starts = array("q", accumulate((len(piece) + 1 for piece in pieces), initial=0))
    capacity = len(text)
    pairs, chosen = array("i", bytes(8 * capacity)), array("i", order)
    count = library.ember_merges(
        content,
        starts.buffer_info()[0],
        len(tokens),
        chosen.buffer_info()[0],
        len(chosen),
        pairs.buffer_info()[0],
        capacity,
    )
    if count < 0:
        return None
    token = tokens.__getitem__
    found = pairs[: 2 * count]
    return list(zip(map(token, found[::2]), map(token, found[1::2]), strict=True))


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
    library.ember_merges.argtypes = (ctypes.c_char_p, pointer, number, pointer, number, pointer, number)
    library.ember_merges.restype = number
    return library
