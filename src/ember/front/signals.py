"""Signals of the server and the queue worker: the first SIGTERM or SIGINT starts the drain, a second one ends it."""

from __future__ import annotations

import asyncio
import signal


def on_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """The events (stopping, hurrying), set by signals of the running loop."""
    stopping, hurrying = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (hurrying if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stopping, hurrying
