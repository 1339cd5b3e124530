"""The boot timeline: named phases with exact times, measured from the start of the process.

Every process of the worker keeps one `Timeline`. Times are seconds since the *worker* process was started by the
kernel (not since the first line of Python), so the two processes' phases can be laid side by side: the front hands its
own origin to the engine. The report is one JSON document (`report()`) and one log line (`summary()`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


def process_start_time() -> float:
    """Start of this process on the `now()` clock, in seconds; the kernel keeps it in ticks of 10 ms."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields_after_name = file.read().rpartition(b")")[2].split()
        return int(fields_after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now()


def now() -> float:
    """Seconds on the clock that all processes of one machine share (time since the machine's boot, where it exists)."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@dataclass(slots=True)
class Phase:
    """One named stretch of the boot; `start` and `end` in seconds since the worker's start."""

    name: str
    process: str
    start: float
    end: float
    detail: dict[str, Any] = field(default_factory=dict)


class Timeline:
    """The phases of one process. `origin` is the worker's start on the `now()` clock."""

    def __init__(self, process: str, origin: float | None = None) -> None:
        self.process = process
        self.origin = process_start_time() if origin is None else origin
        self.phases: list[Phase] = []
        self.marks: dict[str, float] = {}

    def elapsed(self) -> float:
        return now() - self.origin

    @contextmanager
    def phase(self, name: str, **detail: Any) -> Iterator[dict[str, Any]]:
        """Time a block; the yielded dict collects details (bytes, counts) that belong to the phase."""
        start = self.elapsed()
        try:
            yield detail
        finally:
            self.phases.append(Phase(name, self.process, start, self.elapsed(), detail))

    def add(self, name: str, start: float, end: float, **detail: Any) -> None:
        """Record a phase that was timed elsewhere, on the `now()` clock."""
        self.phases.append(Phase(name, self.process, start - self.origin, end - self.origin, detail))

    def mark(self, name: str) -> None:
        """Record a moment (the first call wins), such as `ready` or `first_token`."""
        self.marks.setdefault(name, self.elapsed())

    def extend(self, phases: list[dict[str, Any]]) -> None:
        """Take in the phases another process reported."""
        self.phases.extend(Phase(**phase) for phase in phases)

    def report(self) -> dict[str, Any]:
        """All phases in order of start, and the marks, in seconds rounded to a tenth of a millisecond."""
        phases = sorted(self.phases, key=lambda phase: phase.start)
        return {
            "phases": [
                {
                    "name": phase.name,
                    "process": phase.process,
                    "start": round(phase.start, 4),
                    "end": round(phase.end, 4),
                    "detail": phase.detail,
                }
                for phase in phases
            ],
            "marks": {name: round(at, 4) for name, at in self.marks.items()},
        }

    def summary(self) -> str:
        """One line for the log: when it was ready and what took longest, longest first."""
        longest = sorted(self.phases, key=lambda phase: phase.start - phase.end)[:6]
        parts = ", ".join(f"{phase.process}.{phase.name} {phase.end - phase.start:.2f} s" for phase in longest)
        at = self.marks.get("ready", self.elapsed())
        return f"ready {at:.2f} s after process start ({parts})"
