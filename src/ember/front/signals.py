"""What ends a face: the first SIGTERM or SIGINT asks it to stop taking work, a second one to hurry."""

from __future__ import annotations

import asyncio
import signal


def on_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """(stopping, hurrying), set by the running loop's signals."""
    stopping, hurrying = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (hurrying if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stopping, hurrying
