"""Feeds many items to the engine, so many at a time, with the same memory for any number of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

Item = TypeVar("Item")


async def feed(
    next_item: Callable[[], Awaitable[Item | None]], work: Callable[[Item], Awaitable[None]], window: int
) -> None:
    """Run `work` for each item, at most `window` at a time. `next_item` is awaited when another one is needed, and
    returns None at the end. The first exception, and a cancellation, cancels what is under way. Raises what `work` and
    `next_item` raise."""

    async def run() -> None:
        while (item := await next_item()) is not None:
            await work(item)

    runners = [asyncio.create_task(run()) for _ in range(window)]
    try:
        await asyncio.gather(*runners)
    finally:
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)
