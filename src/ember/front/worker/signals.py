"""SIGTERM and SIGINT while no job loop runs that could drain: the process ends at once, and cleans up.

Without a handler the kernel ignores both signals in the first process of a container, which a worker often is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def leave_on_signals(status: int | None = None, before: Callable[[], None] | None = None) -> None:
    """Let both signals call `before` and end this process, with `status` or else 128 plus the signal's number.

    This must be called in the main thread. Handlers that are set later replace these.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the first
        if before is not None:
            with contextlib.suppress(Exception):
                before()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(128 + number if status is None else status)

    for each in _SIGNALS:
        signal.signal(each, leave)
