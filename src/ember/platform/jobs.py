"""A job: reading its request, its state, and its body for clients and workers."""

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
_MAX_NAMES = 100  # unknown fields that are logged
MAX_CHUNK_BYTES = 1_000_000  # of a streamed output; a larger one is split
_MAX_URL_CHARS = 8_000
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")  # a label of a DNS name

log = logging.getLogger(__name__)

_named: set[str] = set()


class PlatformError(Exception):
    """An error response: `{"error": message}` with an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Policy:
    """A request's policy. Times are in seconds."""

    execution_timeout: float = EXECUTION_TIMEOUT_MS[1] / 1000
    ttl: float = TTL_MS[1] / 1000
    low_priority: bool = False

    @classmethod
    def read(cls, given: Any) -> Policy:
        """Read a request's `policy`, whose times are in milliseconds. Raises PlatformError 400."""
        if given is None:
            return cls()
        if not isinstance(given, dict):
            raise PlatformError(400, "policy must be an object")
        unknown = next((name for name in given if name not in _POLICY), None)
        if unknown is not None:  # a misspelt field would leave a default limit in effect
            known = f"{', '.join(_POLICY[:-1])} and {_POLICY[-1]}"
            raise PlatformError(400, f"policy.{unknown[:40]} is unknown; allowed are {known}")
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
    """A job. Times are seconds since the epoch. `changed` is set, and replaced by a new event, at every change."""

    id: str
    input: Any
    policy: Policy = field(default_factory=Policy)
    webhook: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # other keys of the request, passed to the worker
    is_sync: bool = False
    status: str = IN_QUEUE
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    worker: str | None = None
    output: Any = None
    error: Any = None
    retries: int = 0
    chunks: deque[Any] = field(default_factory=deque)  # streamed outputs that no client has read
    num_streamed: int = 0  # streamed outputs in all
    size: int = 0  # of its request, in bytes
    kept_until: float | None = None  # set by a client's `ttl`
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @property
    def num_taken(self) -> int:
        """The number of streamed outputs that clients have read."""
        return self.num_streamed - len(self.chunks)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def body(self) -> dict[str, Any]:
        """The job's body in /status and webhooks, with delay and execution times in milliseconds."""
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

    def summary(self) -> dict[str, Any]:
        """The job's row in /jobs: its body without output and error, its time of arrival and its OpenAI route."""
        route = self.input.get("openai_route") if isinstance(self.input, dict) else None
        row = {name: value for name, value in self.body().items() if name not in ("output", "error")}
        return {**row, "created": self.created, "route": route[:100] if isinstance(route, str) else None}

    def for_worker(self) -> dict[str, Any]:
        return {**self.extra, "id": self.id, "input": self.input, **({"webhook": self.webhook} if self.webhook else {})}

    def reset(self) -> None:
        """Reset the job to the state of a new one."""
        self.status = IN_QUEUE
        self.started = self.ended = self.worker = self.output = self.error = None
        self.chunks.clear()
        self.num_streamed = 0


def new_id(is_sync: bool) -> str:
    """A new id in the platform's form: with a region at its end, and for jobs of /runsync the prefix sync-."""
    return f"{'sync-' if is_sync else ''}{uuid.uuid4()}-u1"


def new_job(request: Any, size: int, is_sync: bool) -> Job:
    """Make a job from the body of /run or /runsync. Raises PlatformError 400."""
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
    """Whether a webhook is an http or https URL with a host, without line breaks or unpaired surrogates."""
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
    """The host of a webhook, for the log. The rest of the URL may contain secrets."""
    try:
        return URL(url).host or "?"
    except ValueError:
        return "?"


def _name_ignored(request: dict[str, Any]) -> None:
    """Log the unknown fields of a request, each name once."""
    for name in request.keys() - _REQUEST:
        shown = ascii(name[:40])
        if shown not in _named and len(_named) < _MAX_NAMES:
            _named.add(shown)
            log.warning("the field %s of a job is unknown and has no effect (logged once per name)", shown)


def split_chunk(output: Any) -> list[Any]:
    """Split a streamed output into parts of at most MAX_CHUNK_BYTES. Only text is split."""
    if not isinstance(output, str) or len(output) * 4 <= MAX_CHUNK_BYTES:
        return [output]
    data = output.encode("utf-8", "surrogatepass")
    if len(data) <= MAX_CHUNK_BYTES:
        return [output]
    parts = []
    start = 0
    while start < len(data):
        end = min(start + MAX_CHUNK_BYTES, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:  # do not split a character
            end -= 1
        parts.append(data[start:end].decode("utf-8", "surrogatepass"))
        start = end
    return parts


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
