"""The boot timeline: named phases with exact times, measured from the start of the process.

Every process of the worker has one `Timeline`. Times are seconds since the kernel started the *worker* process, not
since the first line of Python. The front sends its origin to the engine, so that the phases of both processes have one
time axis. The result is a JSON document (`report()`) and a log line (`summary()`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


def process_start_time() -> float:
    """Start of this process on the `now()` clock, in seconds, with the kernel's resolution of 10 ms."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields_after_name = file.read().rpartition(b")")[2].split()
        return int(fields_after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now()


def now() -> float:
    """Seconds on a clock that all processes of a machine share: the time since its boot, where the system has it."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


@dataclass(slots=True)
class Phase:
    """One named phase of the boot; `start` and `end` in seconds since the worker's start."""

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
        """Time a block as a phase. The yielded dict collects details of the phase, such as bytes and counts."""
        start = self.elapsed()
        try:
            yield detail
        finally:
            self.phases.append(Phase(name, self.process, start, self.elapsed(), detail))

    def add(self, name: str, start: float, end: float, **detail: Any) -> None:
        """Record a phase that was timed elsewhere, on the `now()` clock."""
        self.phases.append(Phase(name, self.process, start - self.origin, end - self.origin, detail))

    def mark(self, name: str) -> None:
        """Record the time of an event, such as `ready` or `first_token`. Later calls with the same name do nothing."""
        self.marks.setdefault(name, self.elapsed())

    def extend(self, phases: list[dict[str, Any]]) -> None:
        """Add the phases that another process reported."""
        self.phases.extend(Phase(**phase) for phase in phases)

    def report(self) -> dict[str, Any]:
        """All phases in order of their start, and the marks, in seconds rounded to 0.1 ms."""
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
        """One line for the log: the time until ready and the longest phases, longest first."""
        longest = sorted(self.phases, key=lambda phase: phase.start - phase.end)[:6]
        parts = ", ".join(f"{phase.process}.{phase.name} {phase.end - phase.start:.2f} s" for phase in longest)
        at = self.marks.get("ready", self.elapsed())
        return f"ready {at:.2f} s after process start ({parts})"
