"""A job and what clients may see of it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

IN_QUEUE, IN_PROGRESS = "IN_QUEUE", "IN_PROGRESS"
COMPLETED, FAILED, CANCELLED, TIMED_OUT = "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"
FINAL = frozenset({COMPLETED, FAILED, CANCELLED, TIMED_OUT})

EXECUTION_TIMEOUT_MS = (5_000, 600_000, 604_800_000)  # least, default, most
TTL_MS = (10_000, 86_400_000, 604_800_000)
_POLICY = ("executionTimeout", "lowPriority", "ttl")
_REQUEST = frozenset({"input", "webhook", "policy", "s3Config"})
_MAX_NAMES = 100  # of unknown fields that are told of
MAX_CHUNK_BYTES = 1_000_000  # of a streamed output; a larger one reaches clients in parts
_MAX_URL_CHARS = 8_000
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")  # of a host's name, as the DNS has it

log = logging.getLogger(__name__)

_named: set[str] = set()


class PlatformError(Exception):
    """An answer that is an error: `{"error": message}` with an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Policy:
    """What a request may ask of the queue, in seconds."""

    execution_timeout: float = EXECUTION_TIMEOUT_MS[1] / 1000
    ttl: float = TTL_MS[1] / 1000
    low_priority: bool = False

    @classmethod
    def read(cls, given: Any) -> Policy:
        """From a request's `policy`, in milliseconds. Raises PlatformError 400."""
        if given is None:
            return cls()
        if not isinstance(given, dict):
            raise PlatformError(400, "policy must be an object")
        unknown = next((name for name in given if name not in _POLICY), None)
        if unknown is not None:  # one that is misspelt would leave a limit where nobody wants it
            known = f"{', '.join(_POLICY[:-1])} and {_POLICY[-1]}"
            raise PlatformError(400, f"policy.{unknown[:40]} is not known; it may hold {known}")
        low_priority = given.get("lowPriority", False)
        if not isinstance(low_priority, bool):
            raise PlatformError(400, "policy.lowPriority must be true or false")
        return cls(
            _seconds(given, "executionTimeout", EXECUTION_TIMEOUT_MS), _seconds(given, "ttl", TTL_MS), low_priority
        )


def _seconds(given: dict[str, Any], name: str, limits: tuple[int, int, int]) -> float:
    least, default, most = limits
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise PlatformError(400, f"policy.{name} must be between {least} and {most} milliseconds")
    return value / 1000


@dataclass(slots=True, eq=False)
class Job:
    """One job's life. Times are seconds since the epoch; `changed` is replaced whenever something happens to it."""

    id: str
    input: Any
    policy: Policy = field(default_factory=Policy)
    webhook: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # keys of the request that are handed to the worker as they are
    is_sync: bool = False
    status: str = IN_QUEUE
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    worker: str | None = None
    output: Any = None
    error: Any = None
    retries: int = 0
    chunks: deque[Any] = field(default_factory=deque)  # streamed outputs that no client has had yet
    num_streamed: int = 0  # streamed outputs in all
    size: int = 0  # bytes of its request
    kept_until: float | None = None  # as a client has asked for
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @property
    def num_taken(self) -> int:
        """Streamed outputs that clients have had."""
        return self.num_streamed - len(self.chunks)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def body(self) -> dict[str, Any]:
        """As /status and webhooks show it; delay and execution times in milliseconds."""
        body: dict[str, Any] = {"id": self.id, "status": self.status}
        if self.started is not None:
            body["delayTime"] = _ms(self.started - self.created)
            if self.ended is not None:
                body["executionTime"] = _ms(self.ended - self.started)
        if self.worker is not None:
            body["workerId"] = self.worker
        if self.retries:
            body["retries"] = self.retries
        if self.output is not None:
            body["output"] = self.output
        if self.error is not None:
            body["error"] = self.error
        return body

    def for_worker(self) -> dict[str, Any]:
        return {**self.extra, "id": self.id, "input": self.input, **({"webhook": self.webhook} if self.webhook else {})}

    def reset(self) -> None:
        """Back to the queue, as if it were new."""
        self.status = IN_QUEUE
        self.started = self.ended = self.worker = self.output = self.error = None
        self.chunks.clear()
        self.num_streamed = 0


def new_id(is_sync: bool) -> str:
    """In the form of the platform's: its region is at the end, and jobs of /runsync say so."""
    return f"{'sync-' if is_sync else ''}{uuid.uuid4()}-u1"


def new_job(request: Any, size: int, is_sync: bool) -> Job:
    """From the body of /run or /runsync. Raises PlatformError 400."""
    if not isinstance(request, dict):
        raise PlatformError(400, "the request body must be a JSON object with an `input`")
    if request.get("input") is None:
        raise PlatformError(400, "`input` is missing from the request body")
    webhook = request.get("webhook")
    if webhook is not None and not is_webhook(webhook):
        example = "such as https://example.com/hook"
        raise PlatformError(400, f"`webhook` must be an http or https URL of printable characters, {example}")
    s3_config = request.get("s3Config")
    if s3_config is not None and not isinstance(s3_config, dict):
        raise PlatformError(400, "s3Config must be an object")
    _name_ignored(request)
    return Job(
        id=new_id(is_sync),
        input=request["input"],
        policy=Policy.read(request.get("policy")),
        webhook=webhook,
        extra={} if s3_config is None else {"s3Config": s3_config},
        is_sync=is_sync,
        size=size,
    )


def is_webhook(url: Any) -> bool:
    """Whether it can be called. Line breaks and halves of surrogate pairs are no part of any URL."""
    if not isinstance(url, str) or len(url) > _MAX_URL_CHARS or not url.isprintable() or " " in url or "\\" in url:
        return False
    try:
        parts = URL(url)
        host = parts.raw_host or ""
        if parts.scheme not in ("http", "https") or not 0 < (parts.port or 0) < 2**16:
            return False
        if ":" in host:
            return bool(ipaddress.IPv6Address(host.partition("%")[0]))
    except ValueError:
        return False
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split("."))


def webhook_host(url: str) -> str:
    """All that may be said of a webhook: the rest of its URL holds secrets."""
    try:
        return URL(url).host or "?"
    except ValueError:
        return "?"


def _name_ignored(request: dict[str, Any]) -> None:
    """Log the request's fields that are not known; each name once."""
    for name in request.keys() - _REQUEST:
        shown = ascii(name[:40])
        if shown not in _named and len(_named) < _MAX_NAMES:
            _named.add(shown)
            log.warning("the field %s of a job is not known and has no effect (said once per name)", shown)


def split_chunk(output: Any) -> list[Any]:
    """A streamed output in parts of at most MAX_CHUNK_BYTES. Only text can be split; the rest stays as it is."""
    if not isinstance(output, str) or len(output) * 4 <= MAX_CHUNK_BYTES:
        return [output]
    data = output.encode("utf-8", "surrogatepass")
    if len(data) <= MAX_CHUNK_BYTES:
        return [output]
    parts = []
    start = 0
    while start < len(data):
        end = min(start + MAX_CHUNK_BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:  # not inside a character
            end -= 1
        parts.append(data[start:end].decode("utf-8", "surrogatepass"))
        start = end
    return parts


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
