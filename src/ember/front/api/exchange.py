"""The messages of the router: requests in, responses and event streams out. The faces translate them to HTTP and
jobs."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec


@dataclass(slots=True)
class Request:
    """One request as a face received it: `raw_request` in signatures. `request` is its body, validated (`schemas.py`).

    `headers` has lower-case names; `path` is as it was sent, percent-encoding included.
    """

    method: str
    path: str
    body: Any = None  # parsed JSON, or a form as a dict; None when there was no body
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    arrived: float = field(default_factory=time.monotonic)  # when the face had it
    parameters: Mapping[str, str] = field(default_factory=dict)  # of the route's path, percent-decoded; the router's
    is_job: bool = False  # it came from the queue
    id: str | None = None  # the name that the face has given it, for the log and for headers


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file in the body of a request that is a form. It is removed behind the request unless it was moved away."""

    filename: str  # as the client names it
    path: Path


@dataclass(slots=True)
class Response:
    """A whole answer: a dict or list is JSON, a str plain text, bytes themselves, None an empty body. A path stands for
    the bytes of a file."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class Event(msgspec.Struct, frozen=True, gc=False):  # one for every chunk: it has to be made quickly
    """One event of a streamed answer. The framing of its route makes text of it."""

    data: str  # a JSON document
    name: str | None = None  # of a route that names its events


@dataclass(slots=True)
class EventStream:
    """A streamed answer. The face writes its events in the framing of the route, an error and the end included.

    The engine has already produced its first output. What `events` raises is an ApiError. `events.aclose()` aborts what
    is still running, also when nothing was taken from the stream yet.
    """

    events: AsyncGenerator[Event, None]
    headers: dict[str, str] = field(default_factory=dict)


REQUEST_ID_HEADER = "X-Request-Id"


MAX_ID_CHARS = 256


def new_id(prefix: str) -> str:
    """An id that no other object has. The prefix ends with its separator."""
    return f"{prefix}{uuid.uuid4().hex}"


def is_fit_id(name: str) -> bool:
    """Whether a client's id may be put into a header and a log line."""
    return 0 < len(name) <= MAX_ID_CHARS and name.isascii() and name.isprintable()


def request_id(*given: str | None) -> str:
    """The first given id that is fit, or a new one. An unfit header is ignored and not refused: proxies set such
    headers, and the client could not change them."""
    for name in given:
        if name is not None and is_fit_id(name):
            return name
    return uuid.uuid4().hex
