"""Feeds many items to the engine, so many at a time, with the same memory for any number of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


async def feed(items: Iterator[Item], work: Callable[[Item], Awaitable[None]], window: int) -> None:
    """Run `work` for each item, at most `window` at a time. Items are taken when they are needed. The first exception,
    and a cancellation, cancels what is under way. Raises what `work` raises."""

    async def run() -> None:
        for item in items:
            await work(item)

    runners = [asyncio.create_task(run()) for _ in range(window)]
    try:
        await asyncio.gather(*runners)
    finally:
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)
