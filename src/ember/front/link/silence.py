"""Detects an engine that does not answer: one stopped by a signal, or in a call that holds its interpreter.

The engine's own watchdog is a thread of the same process and freezes with it. So the front sends a question to an
engine that has work and sends nothing. An engine answers between two steps. One that takes longer than STEP_TIMEOUT
is ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ember.running_time import RunningTime

POLL_S = 0.5
ASK_AFTER_S = 1.0
GRACE_S = 3.0  # beyond STEP_TIMEOUT, so that the engine's watchdog acts first, which can say where it hangs


class Silence:
    """Measures how long the engine has sent nothing although an answer is due. Only time in which the front itself runs
    counts.

    `is_expecting` tells whether an answer is due. `ask` sends a message that an engine answers between two steps.
    `give_up` is called with the seconds when they exceed `timeout` and the grace period.
    """

    def __init__(
        self,
        timeout: float,
        is_expecting: Callable[[], bool],
        ask: Callable[[], None],
        give_up: Callable[[float], None],
    ) -> None:
        self._limit = timeout + GRACE_S
        self._is_expecting = is_expecting
        self._ask = ask
        self._give_up = give_up
        self._is_asked = False
        self._time = RunningTime(2 * POLL_S)

    def end(self) -> None:
        """Start measuring anew, because the engine has sent something."""
        self._is_asked = False
        self._time.restart()

    async def watch(self) -> None:
        """Watches the engine. It runs until it is cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            seconds = self._time.read()
            if not self._is_expecting():
                self.end()
            elif seconds > self._limit:
                self.end()
                self._give_up(seconds)
            elif seconds >= ASK_AFTER_S and not self._is_asked:
                self._is_asked = True
                self._ask()
