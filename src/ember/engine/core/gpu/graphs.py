"""CUDA graphs of steps: launches over inputs at fixed addresses, which one call repeats.

Two kinds of steps are recorded, each for some sizes (`graph_sizes`). A step runs in the graph of the next larger
size, filled up with padding. A step of a size without a graph is launched kernel by kernel.

Recording a step takes its launches without their execution, some tens of milliseconds per size. It is therefore done
after the first answer while the engine is idle, one part at a time: decode steps before mixed ones, and of each kind
the largest useful size first. Between the steps of running streams only the size in use is recorded, so that they wait
for two parts in place of all, and only if the part is expected to be short.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from ember.engine.core.gpu.accelerator import Accelerator
from ember.engine.core.gpu.graph_sizes import Kind

log = logging.getLogger(__name__)

STALL_S = 0.05  # longest delay of a running stream by a part


class StepGraphs:
    """The graphs of one kind of steps. `body(size)` launches a step of that size with inputs at fixed addresses, and
    `empty` sets these inputs to those of a step without sequences."""

    def __init__(
        self,
        kind: Kind,
        sizes: Iterable[int],
        body: Callable[[int], None],
        empty: Callable[[], None],
        accelerator: Accelerator,
    ) -> None:
        self.kind = kind
        self._body = body
        self._empty = empty
        self._accelerator = accelerator
        self._missing = list(sizes)
        self._rehearsed: int | None = None
        self._graphs: dict[int, Callable[[], None]] = {}
        self._latest_step, self._largest_step = 0, 1
        self._seconds_eager = 0.0  # the host's time for a step launched kernel by kernel
        self._seconds_recording = 0.0

    @property
    def recorded(self) -> list[int]:
        """The recorded sizes, in order."""
        return sorted(self._graphs)

    @property
    def is_complete(self) -> bool:
        """Whether no size is left to record."""
        return not self._missing

    def size_for(self, step: int) -> int | None:
        """The size of the graph for a step of this size; None: there is no graph."""
        self._latest_step, self._largest_step = step, max(self._largest_step, step)
        return self._fitting(step)

    def _fitting(self, step: int) -> int | None:
        size = min((size for size in self._graphs if size >= step), default=None)
        return size if size is not None and size <= max(self.kind.small, self.kind.stretch * step) else None

    def launch(self, size: int) -> None:
        self._graphs[size]()

    def observe_eager(self, seconds: float) -> None:
        """Note how long the host needed for a step without a graph."""
        self._seconds_eager = seconds

    def record_part(self, is_idle: bool) -> bool:
        """Record one part, unless it would delay a running stream. Returns whether there was something to do."""
        if self.is_complete:
            return False
        size = self._next_size() if is_idle else self._size_in_use()
        if size is None or (not is_idle and self._expected_seconds() > STALL_S):
            return False
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
            reason = str(error).partition("\n")[0]
            log.warning("%s of %d %s are not recorded: %s", self.kind.name, size, self.kind.unit, reason)
            # Larger sizes need more memory. Smaller ones may fit.
            self._missing = [other for other in self._missing if other < size]
            return True
        self._missing.remove(size)
        return True

    def _size_in_use(self) -> int | None:
        """The size to record for steps like the last one; None: there is a graph for them, or there can be none."""
        if not self._latest_step or self._fitting(self._latest_step) is not None:
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


def record_next(kinds: Iterable[StepGraphs], is_idle: bool) -> bool:
    """Record one part of the first kind that has one to record now. Returns whether any size is left."""
    kinds = list(kinds)
    any(graphs.record_part(is_idle) for graphs in kinds)
    return not all(graphs.is_complete for graphs in kinds)
