"""The HTTP face over a fake api: what each request is answered with, and what a leaving client stops."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient

from ember.front.api.exchange import Event, EventStream
from ember.front.http import app as face
from ember.front.http.app import make_app, make_health_app
from ember.front.http.server import serve
from ember.front.link.engine import EngineError
from ember.settings import SettingsError, load_settings
from tests.faces.fakes import FAKE_ROUTER, FakeWorker, event, fake_answer, fake_router, frame
from tests.support.http_server import client_of

CHAT = "/v1/chat/completions"
DONE = "data: [DONE]\n\n"
Client = TestClient[Any, Any]
MAX_BODY_BYTES = 32 * 2**20  # as in the settings


def with_client(
    scenario: Callable[[Client, FakeWorker], Awaitable[None]],
    worker: FakeWorker | None = None,
    linger: float = 10.0,
    **settings: Any,
) -> None:
    worker = worker or FakeWorker()

    async def run() -> None:
        await worker.start()
        app = make_app(load_settings({"model_name": "m", **settings}), worker, FAKE_ROUTER)
        async with client_of(app, linger) as client:
            await scenario(client, worker)

    asyncio.run(run())


async def error_of(response: ClientResponse) -> dict[str, Any]:
    content = await response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert content["error"]["code"] == response.status
    error: dict[str, Any] = content["error"]
    return error


def test_whole_answers() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        response = await client.post(CHAT, json={"words": 1})
        assert response.status == 200
        assert response.headers["X-Test"] == "1"
        assert await response.json() == {"object": "chat.completion", "echo": {"words": 1}}
        response = await client.post(
            CHAT, data=b'{"words": 1}', headers={"Content-Type": "application/json; charset=utf-8"}
        )
        assert response.status == 200
        response = await client.get("/v1/models?limit=5")
        assert (await response.json())["query"] == {"limit": "5"}
        response = await client.get("/metrics")
        assert response.content_type == "text/plain"
        assert await response.text() == "requests 1\n"

    with_client(scenario)


def test_stream() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        response = await client.post(CHAT, json={"stream": True, "words": 20})
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Test"] == "1"
        text = await response.text()
        assert text == "".join(frame(f"wört {number}") for number in range(20)) + "data: [DONE]\n\n"

    with_client(scenario)


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_stops_its_request(stream: bool) -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        body = {"stream": stream, "words": 100_000, "pace": 0.001}
        request = asyncio.create_task(client.post(CHAT, json=body, headers={"X-Request-Id": "left"}))
        await asyncio.sleep(0.1)
        if stream:
            (await request).close()
        request.cancel()
        for _ in range(500):
            if worker.aborted:
                break
            await asyncio.sleep(0.01)
        assert worker.aborted == ["left"]

    with_client(scenario)


def test_a_slow_consumer_is_waited_for_and_holds_up_nobody() -> None:
    word = "x" * 100_000
    produced = 0

    async def answer(services: Any, request: Any) -> Any:
        nonlocal produced
        if not (request.body or {}).get("stream"):
            return await fake_answer(services, request)

        async def events() -> AsyncGenerator[Event, None]:
            nonlocal produced
            while produced < 1000:
                produced += 1
                yield event(word)

        return EventStream(events())

    async def run() -> None:
        worker = FakeWorker()
        await worker.start()
        app = make_app(load_settings({"model_name": "m"}), worker, fake_router(answer))
        async with client_of(app, read_bufsize=2**16) as client:
            slow = await client.post(CHAT, json={"stream": True})
            seen = -1
            while seen != produced:  # until nothing more is made for it
                seen = produced
                await asyncio.sleep(0.2)
            assert seen < 1000, "it was all made, for nobody to read"
            assert (await client.post(CHAT, json={"words": 1})).status == 200
            assert len(await slow.read()) == 1000 * len(frame(word)) + len(DONE)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("data", "content_type", "said"),
    [
        (b"{", "application/json", "not valid JSON"),
        (b"\xff\xfe", "application/json", "not valid JSON"),
        (b"[" * 100_000, "application/json", "nested more than 200 levels deep"),
        (b"[" * 201 + b"]" * 201, "application/json", "nested more than 200 levels deep"),
        (b"[" + b"1," * 4_000_001 + b"1]", "application/json", "more than 4000000 values"),
        (b'"' + b"," * 100_000, "application/json", "not valid JSON"),
        (b"{}", "text/plain", "Only 'application/json' is allowed"),
        (b"a=b", "application/x-www-form-urlencoded", "Only 'application/json' is allowed"),
        (b"{}", "", "Only 'application/json' is allowed"),
    ],
)
def test_bad_bodies(data: bytes, content_type: str, said: str) -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        headers = {"Content-Type": content_type} if content_type else {}
        skipped = [] if content_type else ["Content-Type"]
        response = await client.post(CHAT, data=data, headers=headers, skip_auto_headers=skipped)
        assert response.status == 400
        error = await error_of(response)
        assert error["type"] == "Bad Request"
        assert said in error["message"]

    with_client(scenario)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_bodies_in_every_encoding_of_json(encoding: str) -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        headers = {"Content-Type": "application/json"}
        data = '{"words": 2, "user": "ä😀"}'.encode(encoding)
        response = await client.post(CHAT, data=data, headers=headers)
        assert response.status == 200, await response.text()

    with_client(scenario)


def test_errors_of_the_api() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        for stream in (False, True):
            response = await client.post(CHAT, json={"fail": "bad", "stream": stream})
            assert response.status == 400
            assert (await error_of(response))["param"] == "temperature"
        response = await client.post(CHAT, json={"fail": "crash"})
        assert response.status == 500
        assert "path.py" not in (await error_of(response))["message"]
        response = await client.get("/nowhere")
        assert (await error_of(response))["type"] == "Not Found"
        response = await client.delete("/health")
        assert response.headers["Allow"] == "GET, HEAD"
        assert (await error_of(response))["type"] == "Method Not Allowed"

    with_client(scenario)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_the_limit(declared: bool) -> None:
    async def chunks() -> Any:
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    async def scenario(client: Client, worker: FakeWorker) -> None:
        data = b" " * (MAX_BODY_BYTES + 1) if declared else chunks()
        response = await client.post(CHAT, data=data, headers={"Content-Type": "application/json"})
        assert response.status == 413
        assert "32 MiB" in (await error_of(response))["message"]
        assert (await client.get("/health")).status == 200

    with_client(scenario)


def test_keys() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        async def status(path: str, authorization: str | None) -> int:
            headers = {"Authorization": authorization} if authorization else {}
            response = await client.get(path, headers=headers)
            if response.status == 401:
                assert await response.json() == {"error": "Unauthorized"}
            return response.status

        assert await status("/v1/models", "Bearer one") == 200
        assert await status("/v1/models", "bearer two") == 200
        for wrong in (None, "Bearer", "Bearer ", "Bearer on", "Bearer one,two", "Basic one", "one", "Bearer öne"):
            assert await status("/v1/models", wrong) == 401, wrong
        for name in ("x-api-key", "api-key"):
            for key, expected in (("two", 200), ("three", 401)):
                assert (await client.get("/v1/models", headers={name: key})).status == expected, name
        for path in ("/boot", "/boot/", "/nowhere", "/tokenize", "/healthz", "/health/x", "/metrics/x"):
            assert await status(path, None) == 401, path
            assert await status(path, "Bearer one") in (200, 404, 405), path
        for path in ("/metrics", "/version"):
            assert await status(path, None) == 401, path
            assert await status(path, "Bearer two") == 200, path
        assert (await client.options("/v1/models")).status == 401
        for path in ("/health", "/ping"):
            assert await status(path, None) == 200

    with_client(scenario, api_key="one,two")


def test_request_id_header() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        response = await client.get("/v1/models", headers={"X-Request-Id": "mine"})
        assert response.headers.getall("X-Request-Id") == ["mine"]
        response = await client.get("/nowhere")
        assert len(response.headers["X-Request-Id"]) == 32
        for unfit in ("a" * 257, "ö"):
            response = await client.get("/v1/models", headers={"X-Request-Id": unfit})
            assert len(response.headers["X-Request-Id"]) == 32

    with_client(scenario, enable_request_id_headers=True)

    async def of_anthropic(client: Client, worker: FakeWorker) -> None:
        for body in (b"{}", b"{"):
            headers = {"X-Request-Id": "mine", "Content-Type": "application/json"}
            response = await client.post("/v1/messages", data=body, headers=headers)
            assert response.headers.getall("request-id") == ["mine"] and response.status in (400, 404)
        assert (await client.get("/v1/messages")).headers["request-id"].isalnum()

    with_client(of_anthropic)

    async def without(client: Client, worker: FakeWorker) -> None:
        response = await client.get("/v1/models", headers={"X-Request-Id": "mine"})
        assert "X-Request-Id" not in response.headers

    with_client(without)


def test_while_loading() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        assert (await client.get("/ping")).status == 204
        assert (await client.get("/health")).status == 503
        assert "version" in await (await client.get("/version")).json()
        assert (await client.get("/v1/models")).status == 200  # waited for the engine
        assert (await client.get("/ping")).status == 200
        assert (await client.post("/ping")).status == 200
        assert (await client.head("/health")).status == 200
        assert (await client.get("/health")).status == 200
        worker.engine.is_dead = True
        assert (await client.get("/ping")).status == 503
        assert (await client.get("/health")).status == 503

    with_client(scenario, FakeWorker(boot=0.5))


def test_a_request_that_waits_for_a_boot_that_fails() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        response = await client.get("/v1/models")
        assert response.status == 500
        assert response.headers["x-should-retry"] == "false"
        assert (await error_of(response))["message"] == "no such model"

    with_client(scenario, FakeWorker(boot=0.1, boot_error=EngineError("no such model")))


def test_a_large_body_is_parsed_beside_the_loop() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        body = {"text": "x" * 100_000, "words": 1}
        assert (await (await client.post(CHAT, json=body)).json())["echo"] == body

    with_client(scenario)


def test_keys_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n  two \n")

    async def scenario(client: Client, worker: FakeWorker) -> None:
        for key, expected in (("one", 200), ("two", 200), ("three", 200), ("# ours", 401), ("", 401)):
            response = await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert response.status == expected, key

    with_client(scenario, api_key="three", api_key_file=str(file))


def test_health_for_a_load_balancer() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        settings = load_settings({"model_name": "m", "health_check_path": "/alive"})
        async with client_of(make_health_app(settings, worker, FAKE_ROUTER)) as other:
            for each in (client, other):
                assert (await each.get("/alive")).status == 204
            await worker.ready()
            for each in (client, other):
                assert (await each.get("/alive")).status == 200
                assert (await each.get("/alive?x=1")).status == 200
                assert (await each.get("/ping")).status == 200
                assert (await each.delete("/alive")).status == 405
            worker.engine.is_dead = True
            for each in (client, other):
                assert (await each.get("/alive")).status == 503
            assert (await other.get("/v1/models")).status == 404
            assert (await other.get("/version")).status == 404

    with_client(scenario, FakeWorker(boot=0.3), health_check_path="/alive", api_key="one")


def test_browsers_of_other_origins_are_kept_out() -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}

    async def closed(client: Client, worker: FakeWorker) -> None:
        response = await client.get("/v1/models", headers={"Origin": "https://a.example"})
        assert not [name for name in response.headers if name.lower().startswith("access-control")]
        response = await client.options(CHAT, headers=preflight)
        assert not [name for name in response.headers if name.lower().startswith("access-control")]

    with_client(closed)

    async def named(client: Client, worker: FakeWorker) -> None:
        response = await client.options(CHAT, headers={**preflight, "Access-Control-Request-Headers": "authorization"})
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert response.headers["Access-Control-Allow-Headers"] == "authorization"
        assert "POST" in response.headers["Access-Control-Allow-Methods"]
        assert response.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in response.headers
        response = await client.get("/v1/models", headers={"Origin": "https://a.example"})
        assert response.status == 401  # the key is asked for all the same, and the page may read that
        assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
        response = await client.options(CHAT, headers={**preflight, "Origin": "https://b.example"})
        assert response.status == 401
        assert "Access-Control-Allow-Origin" not in response.headers

    with_client(named, allowed_origins="https://a.example", api_key="one")


def test_a_small_body_that_unpacks_to_a_large_one() -> None:
    packed = gzip.compress(b" " * (MAX_BODY_BYTES + 1))

    async def scenario(client: Client, worker: FakeWorker) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        response = await client.post(CHAT, data=packed, headers=headers)
        assert response.status == 413
        response = await client.post(CHAT, data=gzip.compress(b"{}"), headers=headers)
        assert response.status == 200
        response = await client.post(CHAT, data=b"not packed at all", headers=headers)
        assert response.status == 400

    with_client(scenario)


def test_the_limit_of_a_body_is_a_setting() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        response = await client.post(CHAT, json={"text": "x" * 2100})
        assert response.status == 413
        assert "0.001953 MiB" in (await error_of(response))["message"]
        assert (await client.post(CHAT, json={"text": "x" * 1000})).status == 200

    with_client(scenario, max_request_bytes=2048)


@pytest.mark.parametrize("headers", [{f"X-{number}": "a" for number in range(200)}, {"X-Long": "a" * 20_000}])
def test_too_many_headers_and_too_long_ones(headers: dict[str, str]) -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        response = await client.get("/v1/models", headers=headers)
        assert response.status == 431
        assert (await error_of(response))["type"] == "Request Header Fields Too Large"
        assert (await client.get("/v1/models")).status == 200

    with_client(scenario)


def test_a_body_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "BODY_SECONDS", 0.1)

    async def scenario(client: Client, worker: FakeWorker) -> None:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{" % CHAT.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        await asyncio.wait_for(reader.read(), 20)  # and the connection is closed
        writer.close()

    with_client(scenario, linger=0.1)


@pytest.mark.parametrize("root_path", ["/llm", "/a/b.c/"])
def test_paths_below_the_root_path_and_without_it(root_path: str) -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        await worker.ready()
        for root in (root_path.rstrip("/"), ""):
            assert (await client.get(f"{root}/health")).status == 200
            assert (await client.get(f"{root}/custom")).status == 200
            assert (await client.get(f"{root}/version")).status == 200
            response = await client.get(f"{root}/v1/models?limit=5")
            assert (await response.json())["query"] == {"limit": "5"}
            assert (await client.post(root + CHAT, json={"words": 1})).status == 200
        for path in (
            f"{root_path.rstrip('/')}x/v1/models",
            f"{root_path.rstrip('/') * 2}/v1/models",
            "/other/v1/models",
        ):
            response = await client.get(path)
            assert (await response.json()).get("object") != "list"

    with_client(scenario, root_path=root_path, health_check_path="/custom")


def test_a_health_check_path_may_be_given_with_the_root_path() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        await worker.ready()
        assert (await client.get("/llm/custom")).status == 200

    with_client(scenario, root_path="/llm", health_check_path="/llm/custom")


@pytest.mark.parametrize("value", ["llm", "/a b", "/%61", "/ä", "//", "/a//b", "https://x/y"])
def test_a_root_path_that_is_none(value: str) -> None:
    if value == "//":
        assert load_settings({"root_path": value}).root_path is None
        return
    with pytest.raises(SettingsError, match="ROOT_PATH"):
        load_settings({"root_path": value})


def test_a_body_in_an_encoding_that_nothing_decodes_is_refused() -> None:
    async def scenario(client: Client, worker: FakeWorker) -> None:
        for encoding in ("br", "zstd", "nonsense", "gzip, gzip"):
            headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
            response = await client.post(CHAT, data=b"{}", headers=headers)
            error = await error_of(response)
            assert (response.status, error["param"]) == (415, "header.content-encoding")
            assert "gzip" in error["message"] and encoding in error["message"]

    with_client(scenario)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_does_not_decode_ends_the_connection_in_words(encoding: str) -> None:
    """What comes behind such a body cannot be told from it, so the client has to know that the connection is over."""

    async def scenario(client: Client, worker: FakeWorker) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        response = await client.post(CHAT, data=b"not packed at all", headers=headers)
        assert response.status == 400 and response.headers["Connection"] == "close"
        message = (await error_of(response))["message"]
        assert message == f"The request body cannot be read: Can not decode content-encoding: {encoding}"

    with_client(scenario)


def test_a_stopping_server_waits_for_work_whose_request_was_answered() -> None:
    was_closed = []

    class Working(FakeWorker):
        async def start(self) -> None:
            await super().start()
            self.tasks.add(asyncio.create_task(self.work()))

        async def work(self) -> None:
            await self.ready()
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.2)
            was_closed.append(self.closed)

    settings = load_settings({"model_name": "m", "host": "127.0.0.1", "port": 0})
    assert serve(settings, Working(), FAKE_ROUTER) == 0  # type: ignore[arg-type]
    assert was_closed == [False]


@pytest.mark.parametrize(
    ("keys", "given", "status"),
    [
        ({}, None, 404),
        ({"api_key": "one"}, "one", 403),
        ({"api_key": "one"}, None, 401),
        ({"api_key": "one", "admin_api_key": "two"}, "one", 403),
        ({"api_key": "one", "admin_api_key": "two"}, "two", 404),
        ({"admin_api_key": "two"}, None, 401),
        ({"admin_api_key": "two"}, "two", 404),
    ],
)
def test_the_operators_routes_ask_for_the_operators_key(keys: Any, given: str | None, status: int) -> None:
    """The fake api has none of these routes: its 404 is that of a request that was let in."""

    async def scenario(client: Client, worker: FakeWorker) -> None:
        headers = {} if given is None else {"Authorization": f"Bearer {given}"}
        assert (await client.post("/sleep", headers=headers)).status == status
        expected = 401 if "api_key" in keys and given is None else 200
        assert (await client.get("/v1/models", headers=headers)).status == expected

    with_client(scenario, server_dev_mode=True, **keys)
