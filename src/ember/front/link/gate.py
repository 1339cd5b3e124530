"""Whether requests may start in the engine. It is closed while the engine is paused or asleep."""

from __future__ import annotations

import asyncio

from ember.front.errors import ApiError


class Gate:
    """Open at first. Requests that come while it is closed wait in front of it (`EngineClient.wait_ready`)."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._opened.set()

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def open(self) -> None:
        self._opened.set()

    def close(self) -> None:
        self._opened.clear()

    async def wait(self) -> None:
        await self._opened.wait()

    def check(self) -> None:
        """Raises ApiError 503 where the gate was closed after the request had passed it."""
        if not self.is_open:
            raise ApiError(503, "The engine is paused or asleep; try again when it runs.")
