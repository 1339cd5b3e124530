"""Work of a thread of the front that may take long: after a first while it goes on in slices, with rests between them.

Such a thread competes with the event loop for the interpreter, and with the engine for the processor. Rests are taken
one after the other, so that many such threads together compute about half of the time that one thread could have.
"""

from __future__ import annotations

import threading
import time

FIRST_SECONDS = 0.03  # of the thread's time, without a rest: what most requests need
SLICE_SECONDS = 0.01  # of the thread's time, between rests
REST_SECONDS = 0.02  # by the clock

_rests = threading.Lock()


class Pace:
    """The pace of one piece of work, in one thread. `keep` is called often, at least every few milliseconds."""

    def __init__(self) -> None:
        self._until = time.thread_time() + FIRST_SECONDS
        self.num_rests = 0

    def keep(self) -> None:
        """Rest, where the slice is over."""
        if time.thread_time() > self._until:
            self.num_rests += 1
            with _rests:
                time.sleep(REST_SECONDS)
            self._until = time.thread_time() + SLICE_SECONDS
