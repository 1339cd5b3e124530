"""Time that counts for a process only while it runs, for limits on how long something may take.

A process can be suspended: by SIGSTOP, with its container, with its machine. What passes on the clock then is no sign
that anything hangs, but a clock that is read again afterwards shows it.
"""

from __future__ import annotations

import time


class RunningTime:
    """The seconds in which this process has run. It is to be read more often than every `longest_gap` seconds: more
    than that between two readings counts as so much."""

    def __init__(self, longest_gap: float) -> None:
        self._longest_gap = longest_gap
        self._read_at = time.monotonic()
        self._seconds = 0.0

    def read(self) -> float:
        """Seconds since the beginning or the last restart."""
        now = time.monotonic()
        self._seconds += min(now - self._read_at, self._longest_gap)
        self._read_at = now
        return self._seconds

    def restart(self) -> None:
        """Begin at zero with the last reading: cheap, and at most one gap too early."""
        self._seconds = 0.0
