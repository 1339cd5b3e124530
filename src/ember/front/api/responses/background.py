"""Responses that are made in the background: a client polls for them, follows their events, or cancels them."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any

from ember.front.api.exchange import Event
from ember.front.api.responses.store import Store
from ember.front.api.services import Services
from ember.front.errors import ApiError

log = logging.getLogger(__name__)

MAX_KEPT = 64  # finished responses whose events can be read again
HEARTBEAT_SECONDS = 1.0  # between two heartbeats to the workers that share a store


class Running:
    """One response in the background. `body` is its present object."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.task: asyncio.Task[None] | None = None
        self.is_over = False
        self.is_deleted = False
        self.is_ending = False  # its work is being cancelled, or is done and being stored
        self._events: list[Event] = []
        self._news = asyncio.Event()

    def cancel(self) -> None:
        """Stop the work. What ends already is left to end: a second cancellation would come while it is stored."""
        if self.task is not None and not self.is_ending:
            self.is_ending = True
            self.task.cancel()

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
        self._watching: asyncio.Task[None] | None = None

    def add(self, response_id: str, running: Running, store: Store) -> None:
        self._running[response_id] = running
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(store))
        over = [name for name, other in self._running.items() if other.is_over]
        for name in over[: max(0, len(over) - MAX_KEPT)]:
            del self._running[name]

    def get(self, response_id: str) -> Running | None:
        return self._running.get(response_id)

    def forget(self, response_id: str) -> None:
        """Drop a response that was deleted, and stop its work."""
        running = self._running.pop(response_id, None)
        if running is not None:
            running.is_deleted = True
            running.cancel()

    async def _watch(self, store: Store) -> None:
        """While responses are being made, send heartbeats, and follow the commands that come back."""
        while names := [name for name, running in self._running.items() if not running.is_over]:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                commands = await store.heartbeat(names)
            except ApiError as error:
                log.error("responses in the background cannot be watched: %s", error.message)
                continue
            for name, command in commands.items():
                running = self._running.get(name)
                if command == "delete":
                    self.forget(name)
                elif running is not None:
                    running.cancel()


def background_of(services: Services) -> Background:
    found: Background = services.kept.setdefault("background_responses", Background())
    return found
