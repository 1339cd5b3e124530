"""Waiting in the job loops: for work or the worker's end, and for longer after each failure."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def unless(event: asyncio.Event, awaitable: Awaitable[T], grace: float = 0.0) -> T | None:
    """The awaitable's result. It is None when the event came first and the awaitable did not end within `grace`
    seconds.

    The awaitable is cancelled then. If it returns a result all the same, that is returned: `wait_for` may have had it
    already.
    """
    work = asyncio.ensure_future(awaitable)
    stop = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and grace:
            await asyncio.wait((work,), timeout=grace)
        if work.done():
            return work.result()
        work.cancel()
        await asyncio.wait((work,))
        return None if work.cancelled() or work.exception() is not None else work.result()
    finally:
        stop.cancel()
        work.cancel()


def time_left(since: float | None, seconds: float) -> float:
    """The rest of a period of `seconds` that began at `since`, on time.monotonic(). None is a period that has not
    begun."""
    return seconds if since is None else max(0.0, since + seconds - time.monotonic())


class Backoff:
    """Seconds to wait after a failure: twice as long each time, with jitter, between `first` and `most`."""

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self.failures = 0  # since the last success

    def next(self) -> float:
        """The wait after one more failure."""
        seconds = min(self._first * 2.0 ** min(self.failures, 30), self._most)
        self.failures += 1
        return seconds * random.uniform(0.75, 1.0)

    def reset(self) -> None:
        self.failures = 0
