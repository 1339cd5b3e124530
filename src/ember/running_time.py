"""A clock that counts only while the process runs, for time limits.

A process can be suspended: by SIGSTOP, with its container, or with its machine. An ordinary clock goes on meanwhile, so
a time limit would expire although nothing hangs.
"""

from __future__ import annotations

import time


class RunningTime:
    """The seconds in which this process has run. It must be read at least every `longest_gap` seconds: a longer time
    between two readings counts as `longest_gap`, since the process was suspended."""

    def __init__(self, longest_gap: float) -> None:
        self._longest_gap = longest_gap
        self._read_at = time.monotonic()
        self._seconds = 0.0

    def read(self) -> float:
        """Seconds since the clock was created or last restarted."""
        now = time.monotonic()
        self._seconds += min(now - self._read_at, self._longest_gap)
        self._read_at = now
        return self._seconds

    def restart(self) -> None:
        """Set the clock to zero at the time of the last reading. Reads no clock, and is at most one gap too early."""
        self._seconds = 0.0
