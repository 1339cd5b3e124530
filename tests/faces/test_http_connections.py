"""Connections of the HTTP face as raw bytes: clients that leave, that are slow, that write what is no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ember.front.api.exchange import Event, EventStream, Request
from ember.front.http import app as face
from ember.front.http import connection
from ember.front.http.app import make_app
from ember.settings import load_settings
from tests.faces.fakes import FakeWorker, event, fake_answer, fake_router
from tests.support.http_server import FaceServer

PATIENCE_S = 20.0
LONG = {"words": 100_000, "pace": 0.001}


class Face:
    """A running server with a fake engine."""

    def __init__(self, server: FaceServer, worker: FakeWorker, stopping: asyncio.Event) -> None:
        self.server = server
        self.worker = worker
        self.stopping = stopping

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.server.host, self.server.port, **options)

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    worker: FakeWorker | None = None, answer: Any = fake_answer, linger: float = 0.1, **settings: Any
) -> AsyncIterator[Face]:
    worker = worker or FakeWorker()
    await worker.start()
    stopping = asyncio.Event()
    app = make_app(load_settings({"model_name": "m", **settings}), worker, fake_router(answer), stopping)
    server = FaceServer(app, linger)
    async with server:
        yield Face(server, worker, stopping)


def post(body: Any, name: str = "left", path: str = "/v1/chat/completions", extra: str = "") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Request-Id: {name}\r\n{extra}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case, and the body that Content-Length announces."""
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers, body


# ------------------------------------------------------------------------------------------------- clients that leave


async def _body_later(writer: asyncio.StreamWriter, request: bytes) -> None:
    head, _, body = request.partition(b"\r\n\r\n")
    writer.write(head + b"\r\n\r\n")
    await asyncio.sleep(0.05)
    writer.write(body)
    writer.close()


async def _all_at_once(writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request)
    writer.close()


async def _reset(writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request)
    await asyncio.sleep(0.1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _half(writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request)
    await asyncio.sleep(0.05)
    writer.write_eof()


async def _byte_by_byte(writer: asyncio.StreamWriter, request: bytes) -> None:
    for position in range(len(request)):
        writer.write(request[position : position + 1])
        await writer.drain()
        await asyncio.sleep(0)
    writer.close()


async def _pipelined(writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request * 3)
    await asyncio.sleep(0.05)
    writer.close()


async def _pipelined_beyond_what_is_read(writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(request * 60)
    await asyncio.sleep(0.05)
    writer.close()


async def _a_large_body_behind(writer: asyncio.StreamWriter, request: bytes) -> None:
    """A FIN would wait behind what the server does not read."""
    await _reset(writer, request + post({"text": "x" * 4_000_000}))


WAYS = [
    _body_later,
    _all_at_once,
    _reset,
    _half,
    _byte_by_byte,
    _pipelined,
    _pipelined_beyond_what_is_read,
    _a_large_body_behind,
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("leave", WAYS)
def test_a_client_that_leaves_ends_its_request(
    leave: Callable[[asyncio.StreamWriter, bytes], Awaitable[None]], stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ember")

    async def scenario() -> None:
        begun: list[str] = []

        async def answer(services: Any, request: Request) -> Any:
            begun.append(request.headers["x-request-id"])
            return await fake_answer(services, request)

        async with running(answer=answer) as face:
            for _ in range(5):
                _, writer = await face.connect()
                await leave(writer, post({**LONG, "stream": stream}))
            await asyncio.sleep(0.2)
            await face.until(lambda: not face.server.face.in_flight and not face.server.face.connections)
            assert len(face.worker.aborted) == len(begun) <= 5  # of each connection at most the first was begun
            reader, writer = await face.connect()
            writer.write(post({"words": 1}))
            assert (await read_answer(reader))[0] == 200
            writer.close()

    asyncio.run(scenario())
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("sent", [0, 1, 20])
def test_a_client_that_leaves_before_its_body_is_complete(sent: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ember")

    async def scenario() -> None:
        async with running() as face:
            for _ in range(5):
                _, writer = await face.connect()
                head, _, body = post({"text": "x" * 100}).partition(b"\r\n\r\n")
                writer.write(head + b"\r\n\r\n" + body[:sent])
                await face.until(lambda: face.server.face.in_flight)
                writer.close()
                await face.until(lambda: not face.server.face.in_flight)
            assert face.worker.aborted == []  # nothing had begun

    asyncio.run(scenario())
    gone = [record for record in caplog.records if "disconnected" in record.getMessage()]
    assert len(gone) == 5 and all(record.levelno == logging.DEBUG and not record.exc_info for record in gone)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_client_that_leaves_while_the_engine_boots() -> None:
    async def scenario() -> None:
        async with running(FakeWorker(boot=1000)) as face:
            for leave in (_body_later, _reset, _half):
                _, writer = await face.connect()
                await leave(writer, post(LONG))
                await face.until(lambda: not face.server.face.in_flight)
            face.worker.booting.cancel()

    asyncio.run(scenario())


def test_many_clients_that_vanish_leave_nothing_behind() -> None:
    async def scenario() -> None:
        async with running() as face:

            async def vanish(number: int) -> None:
                _, writer = await face.connect()
                await (_body_later, _all_at_once, _reset)[number % 3](
                    writer, post({**LONG, "stream": number % 2 == 0}, str(number))
                )

            await asyncio.gather(*(vanish(number) for number in range(200)))
            await asyncio.sleep(0.2)
            await face.until(lambda: not face.server.face.in_flight and not face.server.face.connections)
            assert len(face.worker.aborted) == len(set(face.worker.aborted))

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------------- slow clients


def test_a_head_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 1.0)
    well = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    part = b"GET /v1/models HTTP/1.1\r\nHost:"

    async def trickled(writer: asyncio.StreamWriter, data: bytes) -> None:
        while not writer.is_closing():
            for position in range(len(data)):
                writer.write(data[position : position + 1])
                await asyncio.sleep(0.05)
            data = b"aaaaaaa"

    async def scenario() -> None:
        async with running() as face:
            slow = [await face.connect() for _ in range(7)]
            for number, first in enumerate((b"", b"", well, well, well + part, post({}), post({}))):
                slow[number][1].write(first)
            for number, first in enumerate((b"", b"", well, well, well + part, post({}), post({}))):
                if first:
                    assert (await read_answer(slow[number][0]))[0] == 200
            busy = await face.connect()
            busy[1].write(post({"words": 1, "pace": 3.0}))  # one that has sent its head may take its time
            late: list[asyncio.Task[None]] = []
            slow[1][1].write(part)
            slow[2][1].write(part)
            slow[5][1].write(b"P")
            late = [asyncio.create_task(trickled(slow[number][1], part)) for number in (3, 6)]
            for reader, _ in slow:
                # A byte that is on its way when the server closes is answered by a reset.
                async with asyncio.timeout(PATIENCE_S):
                    with contextlib.suppress(ConnectionResetError):
                        assert await reader.read() == b""
            assert (await read_answer(busy[0]))[0] == 200
            for task in late:
                task.cancel()
            for _, writer in [*slow, busy]:
                writer.close()

    asyncio.run(scenario())


def test_an_idle_connection_may_stay_for_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(connection, "IDLE_SECONDS", 2.5)

    async def scenario() -> None:
        async with running() as face:
            reader, writer = await face.connect()
            for request in (post({"words": 1}), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", post({"words": 1})):
                for position in range(0, len(request), 3):
                    writer.write(request[position : position + 3])
                    await asyncio.sleep(0)
                assert (await read_answer(reader))[0] == 200
                await asyncio.sleep(1.0)  # much longer than a head may take
            async with asyncio.timeout(PATIENCE_S):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


def test_every_body_of_a_connection_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "BODY_SECONDS", 0.1)

    async def scenario() -> None:
        async with running() as face:
            reader, writer = await face.connect()
            for _ in range(2):
                writer.write(post({"words": 1}))
                assert (await read_answer(reader))[0] == 200
            writer.write(post({"words": 1})[:-1])
            status, headers, body = await read_answer(reader)
            assert status == 408 and headers["connection"] == "close" and b"within" in body
            async with asyncio.timeout(PATIENCE_S):
                assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


def test_clients_that_do_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are waited for, hold up nobody, and are given up when they take nothing for too long."""
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 1.0)
    made = 0

    async def answer(services: Any, request: Request) -> Any:
        if not (request.body or {}).get("stream"):
            return await fake_answer(services, request)

        async def events() -> AsyncGenerator[Event, None]:
            nonlocal made
            try:
                while True:
                    made += 1
                    yield event("x" * 100_000)
            finally:
                services.worker.note_abort(request)

        return EventStream(events())

    async def scenario() -> None:
        async with running(answer=answer) as face:
            slow = [await face.connect(limit=2**10) for _ in range(20)]
            for _, writer in slow:
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(post({"stream": True}))
            await face.until(lambda: made >= 20)
            reader, writer = await face.connect()
            for _ in range(5):
                writer.write(post({"words": 1}))
                assert (await read_answer(reader))[0] == 200
            writer.close()
            await face.until(lambda: len(face.worker.aborted) == 20)
            assert made < 20 * 200  # what the buffers of both ends hold
            for _, writer in slow:
                writer.transport.abort()

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------------------- the shutdown


def test_a_worker_that_stops_takes_nothing_on_open_connections() -> None:
    async def scenario() -> None:
        async with running(enable_request_id_headers=True) as face:
            idle, streamed, whole, piped = [await face.connect() for _ in range(4)]
            idle[1].write(post({"words": 1}))
            assert "connection" not in (await read_answer(idle[0]))[1]
            streamed[1].write(post({"stream": True, "words": 20, "pace": 0.02}))
            whole[1].write(post({"words": 10, "pace": 0.05}))
            piped[1].write(post({"words": 10, "pace": 0.05}) + post({"words": 1}))
            await face.until(lambda: len(face.server.face.in_flight) == 3)
            face.stopping.set()
            for path in ("/v1/chat/completions", "/health", "/ping", "/nowhere"):
                reader, writer = idle if path == "/v1/chat/completions" else await face.connect()
                writer.write(post({"words": 1}, "mine", path))
                status, headers, body = await read_answer(reader)
                assert status == 503 and headers["connection"] == "close" and headers["x-request-id"] == "mine"
                assert "shutting down" in json.loads(body)["error"]["message"]
                async with asyncio.timeout(PATIENCE_S):
                    assert await reader.read() == b""
                writer.close()
            async with asyncio.timeout(PATIENCE_S):
                text = await streamed[0].read()  # to the end of the connection
            assert text.count(b"data: ") == 21 and b"data: [DONE]" in text
            for reader, writer in (whole, piped):
                status, headers, _ = await read_answer(reader)
                assert status == 200 and headers["connection"] == "close"
                async with asyncio.timeout(PATIENCE_S):
                    assert await reader.read() == b""  # what was pipelined behind is not begun
                writer.close()
            assert face.worker.aborted == []

    asyncio.run(scenario())


def test_a_body_that_has_not_arrived_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body on its way has a moment to arrive; one that does not is answered as a request that came too late."""
    monkeypatch.setattr(face, "STOPPING_BODY_SECONDS", 0.5)

    async def scenario() -> None:
        async with running() as served:
            late, quick = [await served.connect() for _ in range(2)]
            request = post({"words": 1})
            for _, writer in (late, quick):
                writer.write(request[:-5])
            await served.until(lambda: len(served.server.face.in_flight) == 2)
            served.stopping.set()
            quick[1].write(request[-5:])
            assert (await read_answer(quick[0]))[0] == 200
            status, headers, body = await read_answer(late[0])
            assert status == 503 and headers["connection"] == "close" and headers["retry-after"]
            assert "shutting down" in json.loads(body)["error"]["message"]
            for _, writer in (late, quick):
                writer.close()

    asyncio.run(scenario())


def test_a_stream_that_begins_while_the_worker_stops_says_so() -> None:
    async def scenario() -> None:
        async with running(FakeWorker(boot=0.3)) as face:
            reader, writer = await face.connect()
            writer.write(post({"stream": True, "words": 3}))
            await face.until(lambda: face.server.face.in_flight)
            face.stopping.set()
            _, headers, _ = await read_answer(reader)
            assert headers["connection"] == "close"
            writer.close()

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------- what is not usual HTTP


CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n%s"
)
ODD = [
    (b"GET /a%0Ab HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"GET /v1/models/%0d%0aX-Injected:%201 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"GET /%00%1b[31m HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"GET /%ff%fe%zz HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"GET //evil.example/%2e%2e/x HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"GET http://other.example/nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"GET http://other.example/v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    (b"GET http://[::1/x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET http://x:99999999/v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"CONNECT other.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"TRACE /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"PROPFIND /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"get /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"FOO /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
    (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", 400),
    (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n: empty\r\n\r\n", 400),
    (b"GET /v1/models HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 20_000 + b": x\r\n\r\n", 431),
    (post({}, extra="Expect: 200-ok\r\n"), 417),
    (post({}, extra="Transfer-Encoding: chunked\r\n"), 400),
    (post({}, extra="Content-Length: 1\r\n"), 400),
    (post({}, extra="Content-Encoding: gzip\r\n"), 400),
    (post({}, path="/health", extra="Content-Encoding: gzip\r\n"), 405),
    (CHUNKED % b"zz\r\n{}\r\n0\r\n\r\n", 400),
    (CHUNKED % b"2\r\n{}zz\r\n0\r\n\r\n", 400),
    (CHUNKED % b"2\r\n{}\r\n0\r\n\r\n", 200),
    (post({}, extra="Upgrade: h2c\r\nConnection: Upgrade\r\n"), 200),
    (post({}, extra="Upgrade: websocket\r\nConnection: Upgrade\r\n"), 200),
]


@pytest.mark.parametrize(
    "parts",
    [
        (b"", b"zz\r\n{}\r\n"),
        (b"2\r\n{}\r\n", b"-1\r\n"),
        (b"2\r\n{}", b"xx\r\n"),
        (b"", b"5;ext=\x00\r\nhello\r\n"),
        (b"2\r\n{}\r\n0\r\n", b"\x00: x\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/nowhere"])
def test_malformed_chunks_behind_a_good_head_are_refused_at_once(parts: tuple[bytes, bytes], path: bytes) -> None:
    first, second = parts

    async def scenario() -> None:
        async with running() as face:
            reader, writer = await face.connect()
            writer.write((CHUNKED % first).replace(b"/v1/chat/completions", path))
            await face.until(lambda: face.server.face.in_flight)
            writer.write(second)
            status, headers, body = await read_answer(reader)
            assert (status, headers["connection"]) == (400, "close")
            assert json.loads(body)["error"]["message"] == "The request body cannot be read: its chunks are malformed"
            assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("sent", "expected"), ODD)
def test_odd_requests(sent: bytes, expected: int, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running() as face:
            reader, writer = await face.connect()
            writer.write(sent)
            status, headers, body = await read_answer(reader)
            assert status == expected, body
            if status != 200:
                error = json.loads(body)["error"]
                assert error["code"] == status and error["message"].isprintable()
            assert "x-injected" not in headers
            writer.close()
            reader, writer = await face.connect()
            writer.write(post({"words": 1}))
            assert (await read_answer(reader))[0] == 200
            writer.close()

    asyncio.run(scenario())
    assert not [record for record in caplog.records if record.levelno > logging.INFO or record.exc_info]


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ntext\r\n--x--\r\n'


def form_head(*more: str) -> bytes:
    lines = ["POST /v1/files HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=x", *more]
    return "\r\n".join([*lines, f"Content-Length: {len(FORM)}", "\r\n"]).encode()


@pytest.mark.parametrize(
    ("more", "is_stopping", "status"),
    [("", False, 408), ("", True, 503), ("Content-Encoding: x", False, 415), ("Expect: y", False, 417)],
)
def test_a_form_is_a_body_like_others(
    more: str, is_stopping: bool, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form whose bytes go on arriving ends at its time limit, and when the server stops."""
    monkeypatch.setattr(face, "FORM_SECONDS", 600.0 if is_stopping else 0.1)
    monkeypatch.setattr(face, "STOPPING_BODY_SECONDS", 0.1)

    async def scenario() -> None:
        async with running(batch_dir=str(tmp_path)) as served:
            reader, writer = await served.connect()
            writer.write(form_head(*([more] if more else [])) + FORM[:-20])
            await served.until(lambda: served.server.face.in_flight or reader._buffer)  # type: ignore[attr-defined]
            if is_stopping:
                served.stopping.set()
            assert (await read_answer(reader))[0] == status
            writer.close()
            await served.until(lambda: not list(tmp_path.rglob("upload-*")))

    asyncio.run(scenario())


@pytest.mark.parametrize("second", [b'; filename="g"', b""])
def test_a_form_with_two_parts_of_one_name_is_refused(second: bytes, tmp_path: Path) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"%s\r\n\r\ntext\r\n'
    form = part % b'; filename="f"' + part % second + b"--x--\r\n"
    head = form_head().replace(b"Length: %d" % len(FORM), b"Length: %d" % len(form))

    async def scenario() -> None:
        async with running(batch_dir=str(tmp_path)) as served:
            reader, writer = await served.connect()
            writer.write(head + form)
            status, headers, body = await read_answer(reader)
            error = json.loads(body)["error"]
            assert (status, error["param"], headers["connection"]) == (400, "file", "close")
            assert error["message"] == "The form has two parts with the name 'file'."
            writer.close()
            assert not list(tmp_path.rglob("upload-*"))

    asyncio.run(scenario())


def test_no_answer_names_the_library_that_sends_it() -> None:
    async def scenario() -> None:
        async with running() as served:
            for sent in (
                post({"words": 1}),
                b"GET /health HTTP/1.1\r\n\r\n",
                b"GET /none HTTP/1.1\r\n\r\n",
                b"x\r\n\r\n",
            ):
                reader, writer = await served.connect()
                writer.write(sent)
                assert (await read_answer(reader))[1]["server"] == "ember"
                writer.close()

    asyncio.run(scenario())


def test_a_client_that_waits_to_be_asked_for_its_form(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(batch_dir=str(tmp_path)) as served:
            reader, writer = await served.connect()
            writer.write(form_head("Expect: 100-continue"))
            async with asyncio.timeout(PATIENCE_S):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(FORM)
            assert (await read_answer(reader))[0] == 404  # from the fake, which has no such route
            writer.close()

    asyncio.run(scenario())


def test_a_client_that_waits_to_be_asked_for_its_body() -> None:
    async def scenario() -> None:
        async with running(api_key="one") as face:
            for key, expected in (("one", b"HTTP/1.1 100 "), ("two", b"HTTP/1.1 401 ")):
                reader, writer = await face.connect()
                request = post({"words": 1}, extra=f"Expect: 100-continue\r\nAuthorization: Bearer {key}\r\n")
                head, _, body = request.partition(b"\r\n\r\n")
                writer.write(head + b"\r\n\r\n")
                async with asyncio.timeout(PATIENCE_S):
                    line = await reader.readline()
                assert line.startswith(expected)
                if key == "one":
                    assert await reader.readline() == b"\r\n"
                    writer.write(body)
                    assert (await read_answer(reader))[0] == 200
                writer.close()

    asyncio.run(scenario())
