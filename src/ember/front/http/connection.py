"""Connections of the HTTP face: how long a client may take, what ends when it leaves, what a malformed head is told.

aiohttp parses; `Server` hands each request to the face and writes its answer, `Connection` keeps the times of one
client, and `watch` closes those that are late or gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, LineTooLong

from ember.front.api.route import NO_ROUTE
from ember.front.errors import ApiError, internal_error
from ember.front.http.answers import error_answer

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 8_190  # of the request's line
MAX_FIELD_BYTES = 16_380  # of a header; another number, as the parser's error has nothing else to tell which it was
HEAD_SECONDS = 30.0  # for a request's line and headers to arrive
IDLE_SECONDS = 620.0  # between two requests of a connection: more than the 600 of the most patient proxies
SHED_SECONDS = 1.0  # a connection that has been idle for less is about to be used
UNREAD_SECONDS = 300.0  # without the client taking a byte of what is waiting for it
SILENT_SECONDS = 120.0  # until the kernel asks whether the client's machine is still there
WATCH_SECONDS = 1.0
_PROBES, _PROBE_SECONDS = 4, 15

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Server(web.Server):
    """Answers its connections' requests with `answer`, which raises nothing but what a lost client makes it raise.

    A client that goes away cancels `answer`. Once `stopping` is set, each answer is its connection's last one.
    """

    def __init__(self, answer: Answer, max_body_bytes: int, stopping: asyncio.Event) -> None:
        super().__init__(
            self._handle,
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
        )
        self._answer = answer
        self._max_body_bytes = max_body_bytes
        self._stopping = stopping
        self.in_flight: set[asyncio.Task[Any]] = set()  # requests that are being answered

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    def shed(self) -> int:
        """Close the half of the idle connections that has been idle longest. Returns how many."""
        now = self._loop.time()
        idle = []
        for connection in self.connections:
            assert isinstance(connection, Connection)
            since = connection.idle_since
            if since is not None and now - since >= SHED_SECONDS:
                idle.append((since, connection))
        idle.sort(key=lambda entry: entry[0])
        shed = idle[: (len(idle) + 1) // 2]
        for _, connection in shed:
            connection.force_close()
        return len(shed)

    def _request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
    ) -> web.BaseRequest:
        limit = self._max_body_bytes
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=limit)

    async def _handle(self, http: web.BaseRequest) -> web.StreamResponse:
        connection = http.protocol
        assert isinstance(connection, Connection)
        task = asyncio.current_task()
        assert task is not None
        connection.begin(http)
        self.in_flight.add(task)
        try:
            response = await self._answer(http)
            connection.is_answered = True
            if self._stopping.is_set():
                response.force_close()
            await response.prepare(http)
            await response.write_eof()
            return response
        except (asyncio.CancelledError, ConnectionError):
            if connection.is_lost:
                log.debug("the client of %r went away", http.path[:200])
                raise asyncio.CancelledError from None  # no more can be said to it
            raise
        finally:
            self.in_flight.discard(task)
            connection.end()


class Connection(web.RequestHandler):
    """One client's connection. Times are those of the event loop's clock."""

    __slots__ = ("_has_more", "_request", "_tail", "head_since", "idle_since", "is_answered")

    def __init__(self, manager: Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._request: web.BaseRequest | None = None  # that is being answered
        self._tail = b""  # the last four bytes that arrived
        self._has_more = False  # bytes of the next request have come while this one is being answered
        self.is_answered = False  # the answer is complete, and some of it may have to be sent yet
        self.head_since: float | None = None  # a head is expected since then
        self.idle_since: float | None = None  # no byte of a next request has come since then

    @property
    def is_lost(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    @property
    def is_reading(self) -> bool:
        return self.transport is not None and self.transport.is_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.head_since = self.idle_since = self._loop.time()
        _notice_dead_peers(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        if data:
            self._tail = (self._tail + data[-4:])[-4:]
            self.idle_since = None
            if self._request is None:
                self.head_since = self.head_since or self._loop.time()
            elif self._request.content.is_eof():
                self._has_more = True
        super().data_received(data)

    def eof_received(self) -> None:
        """The client sends no more, which ends what it asked for; an answer that is complete is still sent."""
        if self._request is not None and not self.is_answered and self.transport is not None:
            self.transport.abort()

    def begin(self, request: web.BaseRequest) -> None:
        """The head of a request has arrived whole."""
        self._request = request
        self.is_answered = False
        self.head_since = self.idle_since = None
        self._has_more = not request.can_read_body and self._tail != b"\r\n\r\n"

    def end(self) -> None:
        """The request is answered."""
        self._request = None
        now = self._loop.time()
        if self._has_more:
            self.head_since = now
        else:
            self.idle_since = now

    def log_exception(self, *args: Any, **options: Any) -> None:
        """What fails between requests. A body that cannot be read, of a request that was answered without it, is the
        client's fault, and ends its connection."""
        error = options.get("exc_info")
        if isinstance(error, web.RequestPayloadError | ConnectionError):
            log.debug("a connection ends: %s", type(error).__name__)
        else:
            log.error(*args, **options)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to a head that cannot be read, of no route's form; the connection is closed behind it."""
        if status >= 500:
            log.error("a request failed outside of the face", exc_info=exc)
            error = internal_error()
        else:
            error = _head_error(exc)
            log.debug("refused a request's head: %s", error.message)
        response = error_answer(error, NO_ROUTE, {})
        response.force_close()
        return response


async def watch(*servers: Server) -> None:
    """Close the connections whose head is late, and those whose client is gone without our having read of it."""
    while True:
        await asyncio.sleep(min(WATCH_SECONDS, HEAD_SECONDS / 4))
        late = asyncio.get_running_loop().time() - HEAD_SECONDS
        unread = []
        for connection in [each for server in servers for each in server.connections]:
            assert isinstance(connection, Connection)
            if connection.head_since is not None and connection.head_since < late:
                connection.force_close()
            elif not (connection.is_lost or connection.is_reading or connection.is_answered):
                unread.append(connection)
        for connection in _hung_up(unread):
            assert connection.transport is not None
            connection.transport.abort()


def _hung_up(connections: list[Connection]) -> list[Connection]:
    """Those whose client has closed its end. The event loop notices only where it reads, and it does not read on while
    as much as may be kept has arrived behind a request that is being answered."""
    if not connections or not hasattr(select, "poll") or not hasattr(select, "POLLRDHUP"):
        return []
    poll = select.poll()
    by_descriptor = {}
    for connection in connections:
        assert connection.transport is not None
        sock = connection.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            by_descriptor[sock.fileno()] = connection
            poll.register(sock.fileno(), select.POLLRDHUP)
    return [by_descriptor[descriptor] for descriptor, _ in poll.poll(0)]


def _notice_dead_peers(sock: socket.socket | None) -> None:
    """Have the kernel end connections to machines that vanished, and to clients that take nothing of what is sent."""
    options = {
        "TCP_USER_TIMEOUT": int(UNREAD_SECONDS * 1000),
        "TCP_KEEPIDLE": int(SILENT_SECONDS),
        "TCP_KEEPINTVL": _PROBE_SECONDS,
        "TCP_KEEPCNT": _PROBES,
    }
    for name, value in options.items():
        if sock is not None and hasattr(socket, name):
            with contextlib.suppress(OSError):  # the connection is gone already
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _head_error(error: BaseException | None) -> ApiError:
    """Describes a malformed head in words of our own: what was sent may be anything, and is not repeated."""
    if isinstance(error, LineTooLong) and MAX_LINE_BYTES in error.args:
        return ApiError(414, f"The request's line is longer than {MAX_LINE_BYTES} bytes.", type="URI Too Long")
    if isinstance(error, LineTooLong) or str(getattr(error, "message", "")).startswith("Too many headers"):
        message = f"The request has too many headers, or one of more than {MAX_FIELD_BYTES} bytes."
        return ApiError(431, message, type="Request Header Fields Too Large")
    if isinstance(error, BadHttpMethod):
        return ApiError(400, "The request does not begin with a method of HTTP/1.1.", type="Bad Request")
    return ApiError(400, "The request's head is not valid HTTP/1.1.", type="Bad Request")
