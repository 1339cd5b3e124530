"""The watchdog: a thread that ends the engine if a step never returns, because a kernel, driver or disk hangs.

It cannot act if the whole process or its interpreter hangs. The front detects that (`front/link/silence.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ember.running_time import RunningTime

_LOOKS = 4  # checks during `timeout`
_LONGEST_NAP_S = 1.0


class Watchdog:
    """Calls `bark` once, from a thread of its own, when a step lasts longer than `timeout` seconds.

    A step begins with `begin` and ends with the next `begin` or with `rest`. Both take well under a microsecond. The
    thread sleeps while the engine is idle. Time in which the process is suspended does not count.
    """

    def __init__(self, timeout: float, bark: Callable[[], None]) -> None:
        self.timeout = timeout
        self._bark = bark
        self._num_begun = 0
        self._busy = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self) -> None:
        """Note the start of a step."""
        self._num_begun += 1
        if not self._busy.is_set():
            self._busy.set()

    def rest(self) -> None:
        """Note that the engine is idle."""
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
