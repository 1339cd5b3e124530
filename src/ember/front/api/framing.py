"""The framing of a stream: it turns the events of a route, its error and its end into text.

The text of a stream is the concatenation of its frames, so the faces may join frames (the queue does) or write them one
by one, and need not know what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from ember.front.api.exchange import Event
from ember.front.errors import ApiError


class Framing(Protocol):
    """The framing of one route's streams. It holds no state: one object serves all streams."""

    @property
    def media_type(self) -> str:
        """The `Content-Type` of a stream."""
        ...

    @property
    def description(self) -> str:
        """What a stream is, for /openapi.json."""
        ...

    def schema(self, documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The schema of one frame, for /openapi.json, from those of the documents that it may hold."""
        ...

    def encode(self, event: Event) -> str:
        """The frame of an event."""
        ...

    def error(self, error: ApiError) -> Event:
        """The event that tells a client of an error, after which the stream ends."""
        ...

    def end(self) -> str:
        """The last frame of every stream, also of one that failed; empty where a stream just ends."""
        ...


@dataclass(frozen=True)
class ServerSentEvents:
    """Server-sent events, with an `event:` line where an event has a name."""

    error_body: Callable[[ApiError], Any]
    error_name: str | None = None  # of the event that is an error
    last_data: str | None = None  # of the event that ends every stream
    media_type: str = "text/event-stream; charset=utf-8"

    @property
    def description(self) -> str:
        return "events" if self.last_data is None else f"events; the data of the last one is {self.last_data}"

    def schema(self, documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        last = [] if self.last_data is None else [{"const": self.last_data}]
        held = [{"contentMediaType": "application/json", "contentSchema": document} for document in documents]
        data = {"type": "string", "anyOf": [*last, *held]}
        return {"type": "object", "required": ["data"], "properties": {"data": data}}

    def encode(self, event: Event) -> str:
        if event.name is None:
            return f"data: {event.data}\n\n"
        return f"event: {event.name}\ndata: {event.data}\n\n"

    def error(self, error: ApiError) -> Event:
        return Event(orjson.dumps(self.error_body(error)).decode(), self.error_name)

    def end(self) -> str:
        return "" if self.last_data is None else f"data: {self.last_data}\n\n"


@dataclass(frozen=True)
class JsonLines:
    """One JSON document on each line (NDJSON). Names of events are not written."""

    error_body: Callable[[ApiError], Any]
    media_type: str = "application/x-ndjson; charset=utf-8"
    description: str = "lines, each a JSON document"

    def schema(self, documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"anyOf": list(documents)}

    def encode(self, event: Event) -> str:
        return f"{event.data}\n"

    def error(self, error: ApiError) -> Event:
        return Event(orjson.dumps(self.error_body(error)).decode())

    def end(self) -> str:
        return ""
