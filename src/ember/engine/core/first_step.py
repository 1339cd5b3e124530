"""What the first step adds to the boot timeline: how long it took, and whether its kernels were in Triton's cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ember.boot import Timeline, now
from ember.wire import Notice, Phases

if TYPE_CHECKING:
    from ember_kernels.cache import CacheWatch

STEPS = 64  # that are watched; what is compiled after them is no longer the boot's


class FirstStep:
    """Told of every step until `ended` says that it has seen enough. `kernels` is None where there are none."""

    def __init__(self, timeline: Timeline, send: Callable[[Phases | Notice], None], kernels: CacheWatch | None) -> None:
        self._timeline = timeline
        self._send = send
        self._kernels = kernels
        self._num_steps = 0
        self._reported = 0  # kernels that were compiled

    def ended(self, started: float) -> bool:
        """After a step that began at `started` (`boot.now`), before its outputs are sent: the front writes its report
        with the first of them."""
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
