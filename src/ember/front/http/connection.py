"""HTTP connections: time limits of a client, cancellation when it disconnects, and errors for malformed heads.

aiohttp parses requests. `Server` passes each request to the application and writes its response, `Connection` tracks
the times of one client, and `watch` closes connections that exceed a limit or whose client has gone.
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

MAX_LINE_BYTES = 8_190  # of the request line
MAX_FIELD_BYTES = 16_380  # of a header; it differs from the above, since the parser's error has only the limit
HEAD_SECONDS = 30.0  # time limit for a request's line and headers
IDLE_SECONDS = 620.0  # between two requests of a connection; proxies close idle connections after up to 600
SHED_SECONDS = 1.0  # connections idle for less are not closed to free descriptors
UNREAD_SECONDS = 300.0  # during which the client reads no byte of a pending response
SILENT_SECONDS = 120.0  # of silence until the kernel probes whether the client's machine is alive
WATCH_SECONDS = 1.0
_PROBES, _PROBE_SECONDS = 4, 15

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Server(web.Server):
    """Answers its connections' requests with `answer`, which raises only errors of a disconnected client.

    A client that disconnects cancels `answer`. Once `stopping` is set, each response closes its connection.
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
        self.in_flight: set[asyncio.Task[Any]] = set()  # tasks that answer requests

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    def shed(self) -> int:
        """Close half of the idle connections, those idle longest. Returns their number."""
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
        return _Request(message, payload, protocol, writer, task, self._loop, client_max_size=limit)

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
                log.debug("the client of %r disconnected", http.path[:200])
                raise asyncio.CancelledError from None  # nothing can be sent any more
            raise
        finally:
            self.in_flight.discard(task)
            connection.end()


class _Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Name this server, where aiohttp would name itself and its version."""
        response.headers["Server"] = "ember"


class Connection(web.RequestHandler):
    """One client's connection. Times are those of the event loop's clock."""

    __slots__ = ("_has_more", "_request", "_tail", "head_since", "idle_since", "is_answered")

    def __init__(self, manager: Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._request: web.BaseRequest | None = None  # the current request
        self._tail = b""  # the last four received bytes
        self._has_more = False  # whether bytes of the next request have arrived during this one
        self.is_answered = False  # whether the response is complete; some of it may not be sent yet
        self.head_since: float | None = None  # time since which a head is expected
        self.idle_since: float | None = None  # time since which no byte of a next request has arrived

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
        self._notice_broken_body()

    def _notice_broken_body(self) -> None:
        """Fail the reading of a body whose chunks are malformed. aiohttp only queues the parser's error behind the
        request, which would wait for the rest of its body; nothing else can be queued before a body is complete."""
        if self._request is not None and self._messages and not self._request.content.is_eof():
            self._request.content.set_exception(web.RequestPayloadError("its chunks are malformed"))

    def eof_received(self) -> None:
        """The client has closed its end. This cancels its request, but a complete response is still sent."""
        if self._request is not None and not self.is_answered and self.transport is not None:
            self.transport.abort()

    def begin(self, request: web.BaseRequest) -> None:
        """Note that the head of a request is complete."""
        self._request = request
        self.is_answered = False
        self.head_since = self.idle_since = None
        self._has_more = not request.can_read_body and self._tail != b"\r\n\r\n"
        self._notice_broken_body()

    def end(self) -> None:
        """Note that the request is answered."""
        self._request = None
        now = self._loop.time()
        if self._has_more:
            self.head_since = now
        else:
            self.idle_since = now

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log an error between requests. An invalid body of a request that was answered without it is the client's
        error and is logged only at level debug."""
        error = options.get("exc_info")
        if isinstance(error, web.RequestPayloadError | ConnectionError):
            log.debug("a connection is closed: %s", type(error).__name__)
        else:
            log.error(*args, **options)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The response to a malformed head. It has no route's form, and the connection is closed after it."""
        if status >= 500:
            log.error("a request failed before the application got it", exc_info=exc)
            error = internal_error()
        else:
            error = _head_error(exc)
            log.debug("refused a request's head: %s", error.message)
        response = error_answer(error, NO_ROUTE, {})
        response.force_close()
        return response


async def watch(*servers: Server) -> None:
    """Close connections whose head exceeds its time limit, and those whose client's disconnection was not read yet."""
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
    """The connections whose client has closed its end. The event loop notices this only while it reads, and reading is
    paused while the buffer of requests sent ahead is full."""
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
    """Let the kernel end connections to machines that have vanished, and to clients that read nothing."""
    options = {
        "TCP_USER_TIMEOUT": int(UNREAD_SECONDS * 1000),
        "TCP_KEEPIDLE": int(SILENT_SECONDS),
        "TCP_KEEPINTVL": _PROBE_SECONDS,
        "TCP_KEEPCNT": _PROBES,
    }
    for name, value in options.items():
        if sock is not None and hasattr(socket, name):
            with contextlib.suppress(OSError):  # the connection has ended
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _head_error(error: BaseException | None) -> ApiError:
    """The error for a malformed head. It does not repeat what was sent."""
    if isinstance(error, LineTooLong) and MAX_LINE_BYTES in error.args:
        return ApiError(414, f"The request's line is longer than {MAX_LINE_BYTES} bytes.", type="URI Too Long")
    if isinstance(error, LineTooLong) or str(getattr(error, "message", "")).startswith("Too many headers"):
        message = f"The request has too many headers, or one of more than {MAX_FIELD_BYTES} bytes."
        return ApiError(431, message, type="Request Header Fields Too Large")
    if isinstance(error, BadHttpMethod):
        return ApiError(400, "The request does not begin with a method of HTTP/1.1.", type="Bad Request")
    return ApiError(400, "The request's head is not valid HTTP/1.1.", type="Bad Request")
