"""Responses that are made in the background: a client polls for them, follows their events, or cancels them."""

from __future__ import annotations

import asyncio
import logging
import time
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
        self.ended_at = 0.0  # on time.monotonic()
        self.num_bytes = 0  # of the events
        self._events: list[Event] = []
        self._news = asyncio.Event()

    @property
    def num_events(self) -> int:
        return len(self._events)

    def cancel(self) -> None:
        """Stop the work. What ends already is left to end: a second cancellation would come while it is stored."""
        if self.task is not None and not self.is_ending:
            self.is_ending = True
            self.task.cancel()

    def add(self, event: Event) -> None:
        self._events.append(event)
        self.num_bytes += len(event.data)
        self._tell()

    def end(self, body: dict[str, Any]) -> None:
        self.body = body
        self.is_over = True
        self.ended_at = time.monotonic()
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
    """The responses of one deployment that are made in the background, and the last ones that were.

    The events of finished ones share the limits of the store: stored responses and events together have at most
    RESPONSES_STORE_BYTES of memory. A response that was dropped here is still in the store.
    """

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._store: Store | None = None
        self._running: OrderedDict[str, Running] = OrderedDict()
        self._watching: asyncio.Task[None] | None = None

    def add(self, response_id: str, running: Running, store: Store) -> None:
        self._running[response_id] = running
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(store))
        self._store = store
        self.trim()

    def trim(self) -> None:
        """Drop finished responses beyond the limits, the oldest first."""
        over = {name: running for name, running in self._running.items() if running.is_over}
        num_bytes = sum(running.num_bytes for running in over.values())
        num_bytes += self._store.num_bytes if self._store is not None else 0
        since = time.monotonic() - self._max_seconds
        num_left = len(over)
        for name, running in over.items():
            if num_left <= MAX_KEPT and num_bytes <= self._max_bytes and running.ended_at >= since:
                break
            del self._running[name]
            num_left -= 1
            num_bytes -= running.num_bytes

    def get(self, response_id: str) -> Running | None:
        self.trim()
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
    found: Background | None = services.kept.get("background_responses")
    if found is None:
        settings = services.settings
        found = Background(settings.responses_store_bytes, settings.responses_store_seconds)
        services.kept["background_responses"] = found
    return found
