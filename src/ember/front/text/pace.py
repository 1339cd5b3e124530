"""Throttling for long work in a thread of the front: after a first period it runs in slices with rests between them.

Such a thread competes with the event loop for the interpreter lock, and with the engine for the processor. Only one
thread rests at a time, so that many such threads together use about half of the time of one thread.
"""

from __future__ import annotations

import threading
import time

FIRST_SECONDS = 0.03  # CPU time of the thread without a rest; enough for most requests
SLICE_SECONDS = 0.01  # CPU time of the thread between two rests
REST_SECONDS = 0.02  # elapsed time of a rest

_rests = threading.Lock()


class Pace:
    """Throttles one task in one thread. The task must call `keep` at least every few milliseconds."""

    def __init__(self) -> None:
        self._until = time.thread_time() + FIRST_SECONDS
        self.num_rests = 0

    def keep(self) -> None:
        """Rest if the slice is over."""
        if time.thread_time() > self._until:
            self.num_rests += 1
            with _rests:
                time.sleep(REST_SECONDS)
            self._until = time.thread_time() + SLICE_SECONDS
