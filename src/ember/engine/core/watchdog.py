"""Ends an engine whose step never returns: a hung kernel, driver or disk holds the main thread, but not this one.

What holds the whole process, or its interpreter, holds this thread too: that the front notices (front/silence.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ember.running_time import RunningTime

_LOOKS = 4  # during `timeout`
_LONGEST_NAP_S = 1.0


class Watchdog:
    """Calls `bark` once, from a thread of its own, when a stretch of work lasts longer than `timeout` seconds.

    A stretch begins with `begin` and ends with the next `begin` or with `rest`. Both cost well under a microsecond;
    while the engine rests the thread sleeps. Time in which the process is suspended does not count.
    """

    def __init__(self, timeout: float, bark: Callable[[], None]) -> None:
        self.timeout = timeout
        self._bark = bark
        self._num_begun = 0
        self._busy = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self) -> None:
        """A step begins."""
        self._num_begun += 1
        if not self._busy.is_set():
            self._busy.set()

    def rest(self) -> None:
        """Nothing is being computed."""
        self._busy.clear()

    def _watch(self) -> None:
        nap = min(self.timeout / _LOOKS, _LONGEST_NAP_S)
        while True:
            self._busy.wait()
            stretch = self._num_begun
            time_spent = RunningTime(2 * nap)
            while self._busy.is_set() and self._num_begun == stretch:
                left = self.timeout - time_spent.read()
                if left <= 0:
                    self._bark()
                    return
                time.sleep(min(left, nap))
