"""Weights mapped from their files; small tensors are read. This module does not import torch.

A server on a CPU can compute on the page cache itself. A warm boot then copies nothing. It also needs no fresh memory
before the first answer, which many virtual machines provide at little more than 1 GB/s. A deferred chore
(`core/chores.py`) copies the weights to memory of their own afterwards, matrix by matrix. Threads read the parts that
are not in the page cache, with large requests, so that no page fault has to wait for a disk.

The files must not shrink while they are mapped: reading beyond a file's end kills a process (mmap(2), SIGBUS).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ember.engine.errors import ModelError
from ember.engine.loading.plan import DTYPES, LoadPlan, Parameter, Piece
from ember.engine.loading.reader import Chunk, read_chunk, read_exactly
from ember.engine.loading.safetensors_header import AGAIN
from ember.regular_file import open_regular

SMALL_BYTES = 1 << 20  # smaller parameters are read; so are vectors and parameters that are not aligned
_PROBE_BYTES = 1 << 20  # distance of the pages that are probed in the page cache
_SCRATCH_BYTES = 1 << 20  # buffer for bytes that are read only into the page cache; it fits a core's L2 cache
_MAX_WASTE = 1.25  # largest ratio of a shared mapping's size to that of its tensors
_AHEAD_BYTES = 8 << 20  # populated in one call: changes of the address space wait for its end
_MADV_POPULATE_READ = 22  # Linux 5.14 (asm-generic/mman-common.h); the mmap module has no name for it

Place = tuple[mmap.mmap | bytearray, int]  # memory, and the offset in bytes


def lies_ready(parameter: Parameter) -> bool:
    """Whether the parameter can be used from the files without conversion: it is stored in its dtype, and its pieces
    are contiguous or the parameter is small enough to be read in ranges."""
    pieces = parameter.pieces
    if not all(piece.is_flat and DTYPES[piece.entry.dtype] == parameter.dtype for piece in pieces):
        return False
    return _is_read(parameter) or all(piece.is_one_span for piece in pieces)


class Mapped:
    """The parameters of a plan, none of which needs conversion, mapped or read.

    Raises ModelError if a file is shorter than its header says, OSError if the file system has no mappings.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self.places: dict[str, list[Place]] = {}  # parameter -> its places: one, or one for each of its pieces
        self.nbytes = 0  # mapped bytes
        self._small: dict[str, bytearray] = {}
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
        """The memory of a chunk of a small parameter; None for mapped parameters."""
        memory = self._small.get(chunk.parameter.name)
        if memory is None:
            return None
        start = chunk.first * chunk.piece.item_size
        return memoryview(memory)[start : start + chunk.nbytes]


def _is_read(parameter: Parameter) -> bool:
    """Whether a parameter is too small to be mapped, or is not aligned to its elements' size."""
    is_aligned = all(piece.offset % piece.item_size == 0 for piece in parameter.pieces)
    return parameter.nbytes < SMALL_BYTES or parameter.width is None or not is_aligned


class Pages:
    """Populates the page table for mappings, and drops the pages of mapped bytes that were copied. The mappings exist
    as long as their tensors."""

    def __init__(self, mappings: Iterable[mmap.mmap]) -> None:
        self._mappings = [
            (ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory), weakref.ref(memory))
            for memory in mappings
        ]

    def map_ahead(self) -> threading.Thread | None:
        """Start a thread that populates the page table for all pages in the page cache. Otherwise the first step has a
        page fault for every few pages, which takes three times as long. None if the system does not support it."""
        if sys.platform != "linux":
            return None
        thread = threading.Thread(target=self._map_ahead, name="map-ahead", daemon=True)
        thread.start()
        return thread

    def _map_ahead(self) -> None:
        advise = ctypes.CDLL(None).madvise  # releases the interpreter lock, unlike mmap.madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for base, size, reference in self._mappings:
            memory = reference()
            for start in range(0, size, _AHEAD_BYTES):
                if memory is None or advise(base + start, min(_AHEAD_BYTES, size - start), _MADV_POPULATE_READ):
                    break  # the kernel is too old, or a file became shorter, which the first access will report

    def hold(self, address: int) -> bool:
        """Whether the address is in one of the mappings."""
        return any(base <= address < base + size and of() is not None for base, size, of in self._mappings)

    def let_go(self, address: int, nbytes: int) -> None:
        """Drop pages of a mapping. A later access reads them from the file again. Other memory is not changed."""
        for base, size, reference in self._mappings:
            memory = reference()
            if memory is None or not base <= address < base + size:
                continue
            start = -(-(address - base) // mmap.PAGESIZE) * mmap.PAGESIZE
            stop = (address - base + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if stop > start and hasattr(mmap, "MADV_DONTNEED"):
                with suppress(OSError):  # locked pages cannot be dropped
                    memory.madvise(mmap.MADV_DONTNEED, start, stop - start)


class Warming:
    """The sink of one thread. It reads small tensors, and the parts of mapped ones that the page cache lacks."""

    def __init__(self, mapped: Mapped) -> None:
        self._mapped = mapped
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))

    def fill(self, chunk: Chunk, descriptor: int) -> int:
        small = self._mapped.small(chunk)
        if small is not None:
            read_chunk(descriptor, small, chunk)
            return chunk.nbytes
        if _is_cached(descriptor, chunk):
            return 0
        for offset, nbytes in chunk.spans:
            for done in range(0, nbytes, _SCRATCH_BYTES):
                part = self._scratch[: min(_SCRATCH_BYTES, nbytes - done)]
                read_exactly(descriptor, part, chunk.file, offset + done)
        return chunk.nbytes

    def close(self) -> None:
        pass


def _map(file: Path, pieces: list[Piece]) -> dict[int, Place]:
    """Map pieces of one layer in one file, together if they are close to each other, as they usually are. Returns their
    places by their offsets in the file."""
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
        # Private and writable, as torch requires. Nothing writes to it; a write would not change the file.
        memory = mmap.mmap(descriptor, last - base, access=mmap.ACCESS_COPY, offset=base)
    finally:
        os.close(descriptor)
    return {piece.offset: (memory, piece.offset - base) for piece in pieces}


def _is_cached(descriptor: int, chunk: Chunk) -> bool:
    """Whether a chunk seems to be in the page cache, by samples; False if the system cannot tell."""
    byte = bytearray(1)
    first, last = chunk.spans[0][0], sum(chunk.spans[-1]) - 1
    try:
        for offset in (*range(first, last, _PROBE_BYTES), last):
            if os.preadv(descriptor, [byte], offset, os.RWF_NOWAIT) == 0:
                return False
    except (OSError, AttributeError):
        return False
    return True
