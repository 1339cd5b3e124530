"""Whether requests may start in the engine. It is closed while the engine is paused or asleep, and at the end."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ember.front.errors import ApiError, shutting_down


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
        self._has_ended = False

    @property
    def is_open(self) -> bool:
        return self._opened.is_set() and not self._has_ended

    def open(self) -> None:
        self._opened.set()

    def close(self) -> None:
        if not self._has_ended:
            self._opened.clear()

    def end(self) -> None:
        """Refuse the requests that wait, and all later ones: the worker shuts down."""
        self._has_ended = True
        self._opened.set()

    async def wait(self) -> None:
        """Raises ApiError 503 when the worker shuts down."""
        await self._opened.wait()
        if self._has_ended:
            raise shutting_down()

    def check(self) -> None:
        """Raises ApiError 503 where the gate was closed after the request had passed it."""
        if self._has_ended:
            raise shutting_down()
        if not self.is_open:
            raise ApiError(503, "The engine is paused or asleep; try again when it runs.")
