"""Progress of a download or a load: a bar on a terminal, otherwise log lines. This module does not import torch."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from ember.engine.loading.hub_errors import readable

LINE_SECONDS = 5.0  # between two lines
BAR_SECONDS = 0.2  # between two redraws of the bar
_BAR_CELLS = 24

Say = Callable[[str], None]


class Progress:
    """Reports how much of `total` bytes is done. The waiting thread calls `step` about every `tick` seconds, then
    `end`.

    On a terminal a bar is redrawn on a line of stderr and erased at the end. Otherwise `say` is called with a line
    every `line_seconds`. Nothing is reported during the first `quiet_seconds`.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: Callable[[], int],
        say: Say,
        *,
        started: float | None = None,
        quiet_seconds: float = 0.0,
        line_seconds: float = LINE_SECONDS,
        terminal: TextIO | None = None,
    ) -> None:
        """`what`: as in "downloading org/name"; `done`: bytes so far; `started`: by `time.monotonic`, default now;
        `terminal`: default stderr."""
        stream = sys.stderr if terminal is None else terminal
        self._terminal = stream if stream.isatty() else None
        self._period = BAR_SECONDS if self._terminal else line_seconds
        self.tick = self._period / 4
        self._what = what
        self._total = total
        self._done = done
        self._say = say
        self._started = time.monotonic() if started is None else started
        self._next = self._started + max(self._period, quiet_seconds)
        self.has_told = False

    def step(self) -> None:
        """Report if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._period
        self.has_told = True
        if self._terminal is None:
            self._say(f"{self._what}: {self._state(now)}")
        else:
            self._draw(self._bar(now))

    def end(self) -> None:
        """Erase the bar."""
        if self._terminal is not None and self.has_told:
            self._draw("")
            self._terminal.write("\r")
            self._terminal.flush()

    def _state(self, now: float) -> str:
        done = self._so_far()
        rate = done / max(now - self._started, 1e-9)
        speed = f", {readable(rate)}/s, {(self._total - done) / rate:.0f} s left" if done else ""
        return f"{readable(done)} of {readable(self._total)} ({100 * done // max(self._total, 1)} %){speed}"

    def _bar(self, now: float) -> str:
        filled = _BAR_CELLS * self._so_far() // max(self._total, 1)
        return f"{self._what} [{'#' * filled}{'.' * (_BAR_CELLS - filled)}] {self._state(now)}"

    def _so_far(self) -> int:
        return min(max(self._done(), 0), self._total)

    def _draw(self, text: str) -> None:
        """Overwrite the terminal's line. One cell is left free, since a full line would wrap."""
        assert self._terminal is not None
        width = max(shutil.get_terminal_size().columns - 1, 1)
        self._terminal.write(f"\r{text[:width]:<{width}}")
        self._terminal.flush()
