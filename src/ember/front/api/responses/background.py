"""Responses that are made in the background: a client polls for them, follows their events, or cancels them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any

from ember.front.api.exchange import Event
from ember.front.api.services import Services

MAX_KEPT = 64  # finished responses whose events can be read again


class Running:
    """One response in the background. `body` is its present object."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.task: asyncio.Task[None] | None = None
        self.is_over = False
        self._events: list[Event] = []
        self._news = asyncio.Event()

    def add(self, event: Event) -> None:
        self._events.append(event)
        self._tell()

    def end(self, body: dict[str, Any]) -> None:
        self.body = body
        self.is_over = True
        self._tell()

    async def follow(self, first: int) -> AsyncGenerator[Event, None]:
        """The events from number `first` on, as they come."""
        position = first
        while True:
            news = self._news
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self.is_over:
                return
            await news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Background:
    """The responses of one deployment that are made in the background, and the last ones that were."""

    def __init__(self) -> None:
        self._running: OrderedDict[str, Running] = OrderedDict()

    def add(self, response_id: str, running: Running) -> None:
        self._running[response_id] = running
        over = [name for name, other in self._running.items() if other.is_over]
        for name in over[: max(0, len(over) - MAX_KEPT)]:
            del self._running[name]

    def get(self, response_id: str) -> Running | None:
        return self._running.get(response_id)

    def forget(self, response_id: str) -> None:
        """Drop a response that was deleted, and stop its work."""
        running = self._running.pop(response_id, None)
        if running is not None and running.task is not None:
            running.task.cancel()


def background_of(services: Services) -> Background:
    found: Background = services.kept.setdefault("background_responses", Background())
    return found
