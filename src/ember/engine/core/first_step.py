"""The phase `first_step` of the boot timeline: its duration, and whether its kernels were in Triton's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ember.boot import Timeline, now
from ember.wire import Notice, Phases

if TYPE_CHECKING:
    from ember_kernels.cache import CacheWatch

STEPS = 64  # observed steps; kernels compiled later do not belong to the boot


class FirstStep:
    """Observes the first steps. `kernels`: counts of Triton's kernels, None without Triton."""

    def __init__(self, timeline: Timeline, send: Callable[[Phases | Notice], None], kernels: CacheWatch | None) -> None:
        self._timeline = timeline
        self._send = send
        self._kernels = kernels
        self._num_steps = 0
        self._reported = 0  # compiled kernels that have been logged

    def ended(self, started: float) -> bool:
        """Observe a step that began at `started` (`boot.now`). It is called before the step's outputs are sent, since
        the front writes its boot report at the first output."""
        kernels = self._kernels
        if self._num_steps == 0:
            self._timeline.add("first_step", started, now(), **(kernels.detail() if kernels else {}))
            self._send(Phases([self._timeline.report()["phases"][-1]]))
        if kernels is not None and len(kernels.compiled) > self._reported:
            names = sorted(set(kernels.compiled[self._reported :]))
            self._reported = len(kernels.compiled)
            self._send(
                Notice(
                    f"{self._reported} kernels were not in Triton's cache and had to be compiled, "
                    f"{kernels.seconds:.1f} s so far ({', '.join(names[:4])}): the image lacks them for this GPU",
                    level="warning",
                )
            )
        self._num_steps += 1
        return kernels is None or self._num_steps >= STEPS
