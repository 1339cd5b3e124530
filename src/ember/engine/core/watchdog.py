"""Ends an engine whose step never returns: a hung kernel, driver or disk holds the main thread, but not this one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_NAP_SECONDS = 3600.0  # time.sleep refuses what a clock cannot hold


class Watchdog:
    """Calls `bark` once, from a thread of its own, when a stretch of work lasts longer than `timeout` seconds.

    A stretch begins with `begin` and ends with the next `begin` or with `rest`. Both cost well under a microsecond;
    while the engine rests the thread sleeps.
    """

    def __init__(self, timeout: float, bark: Callable[[], None]) -> None:
        self.timeout = timeout
        self._bark = bark
        self._started = 0.0
        self._busy = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self) -> None:
        """A step begins."""
        self._started = time.monotonic()
        if not self._busy.is_set():
            self._busy.set()

    def rest(self) -> None:
        """Nothing is being computed."""
        self._busy.clear()

    def _watch(self) -> None:
        while True:
            self._busy.wait()
            left = self._started + self.timeout - time.monotonic()
            if left > 0:
                time.sleep(min(left, _NAP_SECONDS))
            elif self._busy.is_set():
                self._bark()
                return
