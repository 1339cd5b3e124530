"""CUDA graphs of decode steps: a whole step, from its inputs to its tokens, is launched by one call.

Recording a step takes its launches without their execution, some tens of milliseconds per batch size. It is therefore
done after the first answer while the engine is idle, one part at a time, the largest useful size first. Between the
steps of running streams only the size in use is recorded, so that they wait for two parts in place of all, and only if
the part is expected to be short. A step of a size without a graph is launched kernel by kernel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from ember.engine.core.gpu.accelerator import Accelerator

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
STALL_S = 0.05  # longest delay of a running stream by a part
SMALL_SIZE = 64  # rows; up to this size padding is cheap, so a step may run in any larger graph


class DecodeGraphs:
    """The graphs of one runner. `body(rows)` launches a decode step of that many rows, with inputs at fixed addresses.
    With `max_rows` 0 nothing is recorded."""

    def __init__(
        self, body: Callable[[int], None], empty: Callable[[], None], max_rows: int, accelerator: Accelerator
    ) -> None:
        self._body = body
        self._empty = empty  # sets the inputs of the body to those of a step without rows
        self._accelerator = accelerator
        self._missing = [size for size in SIZES if size < max_rows]
        if 0 < max_rows <= SIZES[-1]:
            self._missing.append(max_rows)
        self._rehearsed: int | None = None
        self._graphs: dict[int, Callable[[], None]] = {}
        self._latest_step = self._largest_step = 1  # rows
        self._seconds_eager = 0.0  # the host's time for a step launched kernel by kernel
        self._seconds_recording = 0.0

    @property
    def recorded(self) -> list[int]:
        """The recorded sizes, in order."""
        return sorted(self._graphs)

    def size_for(self, num_rows: int) -> int | None:
        """The rows, padding included, of the graph for a step of `num_rows`; None: there is no graph."""
        self._latest_step, self._largest_step = num_rows, max(self._largest_step, num_rows)
        return self._fitting(num_rows)

    def _fitting(self, num_rows: int) -> int | None:
        size = min((size for size in self._graphs if size >= num_rows), default=None)
        return size if size is not None and size <= max(SMALL_SIZE, 2 * num_rows) else None

    def launch(self, size: int) -> None:
        self._graphs[size]()

    def observe_eager(self, seconds: float) -> None:
        """Note how long the host needed for a decode step without a graph."""
        self._seconds_eager = seconds

    def record_next(self, is_idle: bool) -> bool:
        """Record one part, unless it would delay a running stream. Returns whether more is left."""
        if not self._missing:
            return False
        size = self._next_size() if is_idle else self._size_in_use()
        if size is None or (not is_idle and self._expected_seconds() > STALL_S):
            return True
        try:
            started = time.perf_counter()
            if self._rehearsed != size:
                self._empty()  # a rehearsal runs a step, and the last step must not run twice
                self._accelerator.rehearse(partial(self._body, size))
                self._rehearsed = size
                return True
            self._graphs[size] = self._accelerator.record(partial(self._body, size))
            self._seconds_recording = time.perf_counter() - started
        except RuntimeError as error:
            log.warning("decode steps of %d rows are not recorded: %s", size, str(error).partition("\n")[0])
            # Larger sizes need more memory. Smaller ones may fit.
            self._missing = [other for other in self._missing if other < size]
            return bool(self._missing)
        self._missing.remove(size)
        return bool(self._missing)

    def _size_in_use(self) -> int | None:
        """The size to record for steps like the last one; None: there is a graph for them, or there can be none."""
        if self._fitting(self._latest_step) is not None:
            return None
        return min((size for size in self._missing if size >= self._latest_step), default=None)

    def _next_size(self) -> int:
        """The sizes in the order of recording: the smallest that fits the largest step seen, smaller ones downwards,
        then the others upwards."""
        if self._rehearsed in self._missing:
            return self._rehearsed
        enough = min((size for size in self._missing if size >= self._largest_step), default=None)
        has_enough = any(size >= self._largest_step for size in self._graphs)
        smaller = [size for size in self._missing if size < self._largest_step]
        if enough is not None and not has_enough:
            return enough
        return max(smaller) if smaller else min(self._missing)

    def _expected_seconds(self) -> float:
        """The expected time of a part. Before the first recording it is twice the time of a step's launches."""
        return max(2 * self._seconds_eager, self._seconds_recording)
