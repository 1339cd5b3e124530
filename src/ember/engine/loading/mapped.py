"""Weights used where they lie: matrices mapped from their files, small tensors read. No torch here.

A server on a CPU may compute on the page cache itself. A warm boot then copies nothing, and fresh memory, which is
touched for the first time at little more than 1 GB/s on many virtual machines, is not needed before the first answer;
settling the weights afterwards (`core/chores.py`) moves them into memory of their own, matrix by matrix. Threads read
what the page cache lacks, with large requests, so that no page fault has to wait for a disk.

The files must not shrink while they are mapped: reading beyond a file's end kills a process (mmap(2), SIGBUS).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ember.engine.errors import ModelError
from ember.engine.loading.plan import DTYPES, LoadPlan, Parameter, Piece
from ember.engine.loading.reader import Chunk, read_chunk, read_exactly
from ember.engine.loading.safetensors_header import AGAIN
from ember.regular_file import open_regular

SMALL_BYTES = 1 << 20  # below, a parameter is read into memory of its own; so are vectors and what is not aligned
_PROBE_BYTES = 1 << 20  # the page cache is asked about one page in so many bytes
_SCRATCH_BYTES = 1 << 20  # what is read only to be in the page cache lands here; it fits a core's own cache
_MAX_WASTE = 1.25  # of a mapping that several tensors share: its size over theirs
_MADV_POPULATE_READ = 22  # Linux 5.14 (asm-generic/mman-common.h); the mmap module has no name for it

Place = tuple[mmap.mmap | bytearray, int]  # memory, and the offset in bytes


def lies_ready(parameter: Parameter) -> bool:
    """Whether the parameter's bytes are in the files as they are needed: in its dtype, in one stretch for each piece if
    it is to be mapped, or small enough to be read stretch by stretch."""
    pieces = parameter.pieces
    if not all(piece.is_flat and DTYPES[piece.entry.dtype] == parameter.dtype for piece in pieces):
        return False
    return _is_read(parameter) or all(piece.is_one_span for piece in pieces)


class Mapped:
    """The parameters of a plan, all of which lie ready, at their places.

    Raises ModelError when a file is shorter than its header says, OSError where a file system does not map files.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self.places: dict[str, list[Place]] = {}  # parameter -> where it is: one place, or one for each of its pieces
        self.nbytes = 0  # of what is mapped
        self._small: dict[str, bytearray] = {}
        self._advise = _madvise()
        groups: dict[tuple[Path, str], list[Piece]] = defaultdict(list)
        for parameter in plan.parameters:
            if _is_read(parameter):
                memory = self._small[parameter.name] = bytearray(parameter.nbytes)
                self.places[parameter.name] = [(memory, 0)]
                continue
            self.nbytes += parameter.nbytes
            for piece in parameter.pieces:
                groups[piece.entry.file, parameter.spec.rpartition(".")[0]].append(piece)
        placed: dict[tuple[Path, int], Place] = {}
        for (file, _), pieces in groups.items():
            placed |= {(file, offset): place for offset, place in _map(file, pieces).items()}
        for parameter in plan.parameters:
            if parameter.name not in self._small:
                self.places[parameter.name] = [placed[piece.entry.file, piece.offset] for piece in parameter.pieces]

    def pages(self) -> Pages:
        """A handle that can drop the page-cache pages of every current mapping."""
        places = (place for places in self.places.values() for place in places)
        return Pages({id(memory): memory for memory, _ in places if isinstance(memory, mmap.mmap)}.values())

    def small(self, chunk: Chunk) -> memoryview | None:
        """The memory of a chunk of a small parameter; None for the others, which are mapped."""
        memory = self._small.get(chunk.parameter.name)
        if memory is None:
            return None
        start = chunk.first * chunk.piece.item_size
        return memoryview(memory)[start : start + chunk.nbytes]

    def map_ahead(self, chunk: Chunk) -> None:
        """Map a chunk that the page cache holds into this process. Otherwise the first step takes a page fault for
        every few pages, at three times the cost. Does nothing if the system cannot."""
        pieces = zip(chunk.parameter.pieces, self.places[chunk.parameter.name], strict=True)
        memory, place = next(place for piece, place in pieces if piece is chunk.piece)
        if self._advise is None or not isinstance(memory, mmap.mmap):
            return
        for offset, nbytes in chunk.spans:
            start = place + offset - chunk.piece.offset
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory, first))
            self._advise(address, start + nbytes - first, _MADV_POPULATE_READ)


def _is_read(parameter: Parameter) -> bool:
    """Whether a parameter is too small to be mapped, or does not lie at a multiple of its elements' size."""
    is_aligned = all(piece.offset % piece.item_size == 0 for piece in parameter.pieces)
    return parameter.nbytes < SMALL_BYTES or parameter.width is None or not is_aligned


class Pages:
    """Gives back the pages of what was copied out of mappings, which live on as long as their tensors do."""

    def __init__(self, mappings: Iterable[mmap.mmap]) -> None:
        self._mappings = [
            (ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory), weakref.ref(memory))
            for memory in mappings
        ]

    def hold(self, address: int) -> bool:
        """Whether the address is in one of the mappings."""
        return any(base <= address < base + size and of() is not None for base, size, of in self._mappings)

    def let_go(self, address: int, nbytes: int) -> None:
        """They are read from the file again if somebody asks, as they are there. What is no part of a mapping stays."""
        for base, size, reference in self._mappings:
            memory = reference()
            if memory is None or not base <= address < base + size:
                continue
            start = -(-(address - base) // mmap.PAGESIZE) * mmap.PAGESIZE
            stop = (address - base + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if stop > start and hasattr(mmap, "MADV_DONTNEED"):
                with suppress(OSError):  # locked pages stay
                    memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


class Warming:
    """One thread's sink: reads small tensors to their places, and of mapped ones what the page cache lacks."""

    def __init__(self, mapped: Mapped) -> None:
        self._mapped = mapped
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))

    def fill(self, chunk: Chunk, descriptor: int) -> int:
        small = self._mapped.small(chunk)
        if small is not None:
            read_chunk(descriptor, small, chunk)
            return chunk.nbytes
        nbytes = 0 if _is_cached(descriptor, chunk) else self._read(chunk, descriptor)
        self._mapped.map_ahead(chunk)
        return nbytes

    def _read(self, chunk: Chunk, descriptor: int) -> int:
        for offset, nbytes in chunk.spans:
            for done in range(0, nbytes, _SCRATCH_BYTES):
                part = self._scratch[: min(_SCRATCH_BYTES, nbytes - done)]
                read_exactly(descriptor, part, chunk.file, offset + done)
        return chunk.nbytes

    def close(self) -> None:
        pass


def _map(file: Path, pieces: list[Piece]) -> dict[int, Place]:
    """Map pieces of one layer in one file, together where they lie close to each other, which is the rule. Returns
    their places by their offsets in the file."""
    first = min(piece.offset for piece in pieces)
    last = max(piece.offset + piece.nbytes for piece in pieces)
    if last - first > _MAX_WASTE * sum(piece.nbytes for piece in pieces) and len(pieces) > 1:
        placed: dict[int, Place] = {}
        for piece in pieces:
            placed |= _map(file, [piece])
        return placed
    base = first // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    descriptor = open_regular(file)
    try:
        if os.fstat(descriptor).st_size < last:
            raise ModelError(f"{file} became shorter while it was read: {AGAIN}")
        # Private and writable, as torch wants it. Nothing writes; if something did, the file would not change.
        memory = mmap.mmap(descriptor, last - base, access=mmap.ACCESS_COPY, offset=base)
    finally:
        os.close(descriptor)
    return {piece.offset: (memory, piece.offset - base) for piece in pieces}


def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's own, which the interpreter's lock is released for, unlike mmap.madvise."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function  # type: ignore[no-any-return]


def _is_cached(descriptor: int, chunk: Chunk) -> bool:
    """Whether the page cache seems to hold a chunk, by samples; False where the system cannot tell."""
    byte = bytearray(1)
    first, last = chunk.spans[0][0], sum(chunk.spans[-1]) - 1
    try:
        for offset in (*range(first, last, _PROBE_BYTES), last):
            if os.preadv(descriptor, [byte], offset, os.RWF_NOWAIT) == 0:
                return False
    except (OSError, AttributeError):
        return False
    return True
