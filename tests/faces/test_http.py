"""The HTTP face over a fake api: what each request is answered with, and what a leaving client stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from ember.front.client import EngineError
from ember.front.http.app import MAX_BODY_BYTES, make_app
from ember.settings import load_settings
from tests.faces.fakes import FakeWorker, event, fake_dispatch

CHAT = "/v1/chat/completions"
Client = TestClient[Any, Any]


def with_client(
    scenario: Callable[[Client, FakeWorker], Awaitable[None]], worker: FakeWorker | None = None, **settings: Any
) -> None:
    worker = worker or FakeWorker()

    async def run() -> None:
        await worker.start()
        app = make_app(load_settings({"model_name": "m", **settings}), worker, fake_dispatch)
        async with TestClient(TestServer(app)) as client:
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
        assert text == "".join(event(f"wört {number}") for number in range(20)) + "data: [DONE]\n\n"

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


@pytest.mark.parametrize(
    ("data", "content_type", "said"),
    [
        (b"{", "application/json", "not valid JSON"),
        (b"\xff\xfe", "application/json", "not valid JSON"),
        (b"[" * 100_000, "application/json", "not valid JSON"),
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
        for path in ("/boot", "/boot/", "/nowhere", "/tokenize"):
            assert await status(path, None) == 401, path
            assert await status(path, "Bearer one") == 404, path
        assert (await client.options("/v1/models")).status == 401
        for path in ("/health", "/ping", "/version", "/metrics"):
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
