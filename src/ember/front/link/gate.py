"""Whether requests may start in the engine. It is closed while the engine is paused or asleep."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ember.front.errors import ApiError


class Entrant(Protocol):
    """A request of several steps, each of which is a request to the engine."""

    def abort(self) -> None: ...


class Gate:
    """Open at first. Requests that come while it is closed wait in front of it (`EngineClient.wait_ready`).

    A request passes the gate once. `inside` holds the requests of several steps that have passed it and may still send
    further steps (`is_step`), which do not check the gate.
    """

    def __init__(self) -> None:
        self.inside: set[Entrant] = set()
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
