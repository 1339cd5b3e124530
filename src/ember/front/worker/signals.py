"""What SIGTERM and SIGINT do while there is no job loop that drains: the process leaves, at once and in order.

Without a handler the kernel drops both for the first process of a container, which a worker mostly is.
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
    """From here on a signal ends this process, after `before`, with `status` or else 128 + its number.

    Only in the main thread; whoever sets handlers later replaces these.
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
