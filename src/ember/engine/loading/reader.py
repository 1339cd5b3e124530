"""Reading of the plan's bytes by several threads, with `preadv` into memory of their sinks. No torch is imported.

`preadv` releases the interpreter lock, so reading overlaps with `import torch` and the rest of the boot.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ember.engine.errors import ModelError
from ember.engine.loading.hub_errors import readable
from ember.engine.loading.plan import LoadPlan, Parameter, Piece
from ember.engine.loading.progress import LINE_SECONDS, Progress, Say
from ember.engine.loading.safetensors_header import AGAIN
from ember.regular_file import open_regular

CHUNK_BYTES = 16 << 20
GPU_CHUNK_BYTES = 4 << 20  # of chunks that go through pinned memory, which takes time to pin
QUIET_SECONDS = 3.0  # a shorter load reports no progress


@dataclass(frozen=True, slots=True)
class Chunk:
    """Byte ranges of the file that belong to one piece of a parameter.

    Those of a flat piece fill consecutive elements of the parameter, from `first` on. Those of another piece are
    `count` whole rows of the stored matrix. Their position in the piece is `first`: a row of it, or a column if the
    matrix is transposed.
    """

    parameter: Parameter
    piece: Piece
    spans: tuple[tuple[int, int], ...]  # offset in the file and length in bytes
    nbytes: int
    first: int
    count: int  # number of elements, or of stored rows

    @property
    def file(self) -> Path:
        return self.piece.entry.file


class Sink(Protocol):
    """The destination of one thread's chunks. Each thread has its own."""

    def fill(self, chunk: Chunk, descriptor: int) -> int:
        """Read one chunk from the open file to its destination. Returns the number of bytes that had to be read."""

    def close(self) -> None:
        """Finish pending copies after the last chunk."""


class WeightRead:
    """A read of weights by threads. `wait()` returns when every byte is in place, or raises the first ModelError."""

    def __init__(
        self, plan: LoadPlan, open_sink: Callable[[], Sink], threads: int | None = None, chunk_bytes: int | None = None
    ) -> None:
        self.plan = plan
        self.threads = threads or default_threads()
        self.seconds = 0.0
        self.nbytes = 0  # bytes that were read
        self.placed_bytes = 0  # bytes that are in place, read or mapped
        self._chunks = _chunks(plan, chunk_bytes or CHUNK_BYTES)
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._open_sink = open_sink
        self._start = time.perf_counter()
        self._started = time.monotonic()
        self._end = self._start
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self.threads)]
        for worker in self._workers:
            worker.start()

    def wait(self, say: Say | None = None) -> None:
        """Report the progress on a terminal, or in lines to `say`, if the load takes more than a few seconds."""
        total = self.plan.nbytes
        progress = None
        if say is not None:
            progress = Progress(
                "loading weights",
                total,
                lambda: self.placed_bytes,
                say,
                started=self._started,
                quiet_seconds=QUIET_SECONDS,
                line_seconds=LINE_SECONDS,
            )
        for worker in self._workers:
            while worker.is_alive():
                worker.join(None if progress is None else progress.tick)
                if progress is not None:
                    progress.step()
        if progress is not None:
            progress.end()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self.seconds = self._end - self._start
        if self._error is not None:
            raise self._error
        if say is not None and self.seconds > QUIET_SECONDS:
            rate = readable(total / self.seconds)
            say(f"loaded weights: {readable(total)} in {self.seconds:.1f} s, {rate}/s")

    def _work(self) -> None:
        try:
            sink = self._open_sink()
            while (chunk := self._next()) is not None:
                nbytes = sink.fill(chunk, self._descriptor(chunk.file))
                with self._lock:
                    self.nbytes += nbytes
                    self.placed_bytes += chunk.nbytes
            sink.close()
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
        with self._lock:
            self._end = max(self._end, time.perf_counter())

    def _next(self) -> Chunk | None:
        with self._lock:
            return None if self._error is not None else next(self._chunks, None)

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._files:
                self._files[file] = open_regular(file)
            return self._files[file]


def default_threads() -> int:
    return min(8, 2 * available_cores())


def available_cores() -> int:
    """The number of CPUs that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _chunks(plan: LoadPlan, chunk_bytes: int) -> Iterator[Chunk]:
    """The plan's bytes in chunks of about `chunk_bytes`, in the order of the files."""
    for parameter, piece in plan.in_file_order():
        if piece.is_flat:
            yield from _flat_chunks(parameter, piece, chunk_bytes)
            continue
        row_bytes = piece.matrix[1] * piece.item_size
        rows = max(1, chunk_bytes // row_bytes)
        for start, size, place in piece.stored_runs():
            for done in range(0, size, rows):
                count = min(rows, size - done)
                span = (piece.offset + (start + done) * row_bytes, count * row_bytes)
                yield Chunk(parameter, piece, (span,), span[1], place + done, count)


def _flat_chunks(parameter: Parameter, piece: Piece, chunk_bytes: int) -> Iterator[Chunk]:
    """Chunks of a flat piece: parts of one long byte range of the file, or many short ranges."""
    element = piece.row * piece.width
    spans: list[tuple[int, int]] = []
    nbytes = 0
    for offset, size in piece.spans():
        while size:
            part = min(size, chunk_bytes - nbytes)
            spans.append((offset, part))
            offset, size, nbytes = offset + part, size - part, nbytes + part
            if nbytes == chunk_bytes:
                yield Chunk(parameter, piece, tuple(spans), nbytes, element, nbytes // piece.item_size)
                element, spans, nbytes = element + nbytes // piece.item_size, [], 0
    if spans:
        yield Chunk(parameter, piece, tuple(spans), nbytes, element, nbytes // piece.item_size)


def read_chunk(descriptor: int, view: memoryview, chunk: Chunk) -> None:
    """Fill `view` with the bytes of a chunk. Raises ModelError if the file ends earlier."""
    done = 0
    for offset, nbytes in chunk.spans:
        read_exactly(descriptor, view[done : done + nbytes], chunk.file, offset)
        done += nbytes


def read_exactly(descriptor: int, view: memoryview, file: Path, offset: int) -> None:
    """Fill `view` with the bytes of the file from `offset` on. Raises ModelError if the file ends earlier."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            raise ModelError(f"{file} became shorter while it was read: {AGAIN}")
        done += count
