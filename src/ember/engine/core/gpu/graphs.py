"""Recorded decode steps: a whole step, from its inputs to its tokens, launched by one call.

Recording takes a step's launches without their execution, some tens of milliseconds for each batch size, so it is done
after the first answer, piece by piece in idle moments, the largest useful size first. Between the steps of a running
stream a piece is taken only if it is expected to be short. A step of a size that is not recorded is launched kernel by
kernel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from ember.engine.core.gpu.accelerator import Accelerator

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
STALL_S = 0.05  # what a piece may delay a running stream
SMALL_SIZE = 64  # up to here rows cost little: a step may run in any graph that is not larger


class DecodeGraphs:
    """The graphs of one runner. `body(rows)` launches a decode step of that many rows from inputs of fixed place.
    With `max_rows` 0 nothing is recorded."""

    def __init__(
        self, body: Callable[[int], None], empty: Callable[[], None], max_rows: int, accelerator: Accelerator
    ) -> None:
        self._body = body
        self._empty = empty  # makes a step without rows of what the body will find
        self._accelerator = accelerator
        self._missing = [size for size in SIZES if size < max_rows]
        if 0 < max_rows <= SIZES[-1]:
            self._missing.append(max_rows)
        self._rehearsed: int | None = None
        self._graphs: dict[int, Callable[[], None]] = {}
        self._largest_step = 1
        self._seconds_eager = 0.0  # the host's time for a step that was launched kernel by kernel
        self._seconds_recording = 0.0

    @property
    def recorded(self) -> list[int]:
        """The sizes there are, in order."""
        return sorted(self._graphs)

    def size_for(self, num_rows: int) -> int | None:
        """The rows, padding included, of the graph that a step of `num_rows` runs in; None: there is none."""
        self._largest_step = max(self._largest_step, num_rows)
        size = min((size for size in self._graphs if size >= num_rows), default=None)
        return size if size is not None and size <= max(SMALL_SIZE, 2 * num_rows) else None

    def launch(self, size: int) -> None:
        self._graphs[size]()

    def observe_eager(self, seconds: float) -> None:
        """How long the host was busy with a decode step that no graph served."""
        self._seconds_eager = seconds

    def record_next(self, is_idle: bool) -> bool:
        """Do one piece of the recording, unless it would hold up a running stream. Returns whether there is more."""
        if not self._missing:
            return False
        if not is_idle and self._expected_seconds() > STALL_S:
            return True
        size = self._next_size()
        try:
            started = time.perf_counter()
            if self._rehearsed != size:
                self._empty()  # a rehearsal is a step, and the last one must not happen twice
                self._accelerator.rehearse(partial(self._body, size))
                self._rehearsed = size
                return True
            self._graphs[size] = self._accelerator.record(partial(self._body, size))
            self._seconds_recording = time.perf_counter() - started
        except RuntimeError as error:
            log.warning("decode steps of %d rows are not recorded: %s", size, str(error).partition("\n")[0])
            # A larger size needs more memory still. Smaller ones may fit.
            self._missing = [other for other in self._missing if other < size]
            return bool(self._missing)
        self._missing.remove(size)
        return bool(self._missing)

    def _next_size(self) -> int:
        """The smallest that serves the largest step seen, then smaller ones downwards, then the others upwards."""
        if self._rehearsed in self._missing:
            return self._rehearsed
        enough = min((size for size in self._missing if size >= self._largest_step), default=None)
        has_enough = any(size >= self._largest_step for size in self._graphs)
        smaller = [size for size in self._missing if size < self._largest_step]
        if enough is not None and not has_enough:
            return enough
        return max(smaller) if smaller else min(self._missing)

    def _expected_seconds(self) -> float:
        """Recording is launching and putting the graph together; before the first one, twice a step's launches."""
        return max(2 * self._seconds_eager, self._seconds_recording)
