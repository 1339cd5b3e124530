"""Who may call a platform without keys: no web page from elsewhere, whichever way it asks."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from ember.platform.server import Platform
from ember.platform.store import MemoryStore
from tests.queue_platform.calls import Calls, platform, play

FOREIGN = (
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost:3000"},  # another server on this machine
    {"Origin": "http://127.0.0.1"},
    {"Origin": "null"},
    {"Origin": "http://[half"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},  # an image's GET has no Origin
    {"Sec-Fetch-Site": "same-site"},
    {"Host": "evil.example:8000"},  # a name that was made to mean 127.0.0.1
    {"Host": "evil.example:8000", "Origin": "http://evil.example:8000", "Sec-Fetch-Site": "same-origin"},
    {"Host": "localhost.evil.example"},
    {"Host": "[half"},
)


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_web_pages_from_elsewhere_are_refused(headers: dict[str, str]) -> None:
    async def scenario(calls: Calls) -> None:
        for method, path in (
            ("POST", "/run"),
            ("GET", '/run?input={"a":1}'),
            ("POST", "/purge-queue"),
            ("GET", "/health"),
            ("GET", "/job-take/w"),
            ("POST", "/openai/v1/chat/completions"),
        ):
            status, body = await calls.client(method, path, {"input": 1} if method == "POST" else None, **headers)
            assert status == 403 and set(body) == {"error"}, path
        assert not calls.endpoint.jobs and not calls.endpoint.workers

    play(scenario)


def test_its_own_pages_and_whoever_is_no_page_pass() -> None:
    async def scenario(calls: Calls) -> None:
        port = calls.platform.url.rpartition(":")[2]
        for headers in (
            {},
            {"Origin": f"http://localhost:{port}", "Sec-Fetch-Site": "same-origin"},
            {"Origin": f"http://127.0.0.1:{port}", "Host": f"127.0.0.1:{port}"},
            {"Origin": f"http://LOCALHOST:{port}", "Host": f"localhost:{port}"},
            {"Origin": f"http://[::1]:{port}", "Host": f"[::1]:{port}"},
            {"Sec-Fetch-Site": "none"},  # typed into the address bar
            {"Host": "localhost"},
            {"Host": "ember.localhost:8000"},
            {"Host": "192.168.1.5:8000"},  # a port that is forwarded
        ):
            assert (await calls.client("GET", "/health", **headers))[0] == 200, headers

    play(scenario)


def test_with_a_key_the_key_decides() -> None:
    async def run() -> None:
        async with platform(keys=("one",)) as calls:
            for headers in FOREIGN[:1] + FOREIGN[8:9]:
                assert (await calls.client("GET", "/health", **headers))[0] == 401
                assert (await calls.client("GET", "/health", Authorization="Bearer one", **headers))[0] == 200

    asyncio.run(run())


def test_a_platform_for_other_machines_has_any_name() -> None:
    async def run() -> None:
        played = Platform(MemoryStore())
        await played.start("0.0.0.0", 0)
        try:
            async with aiohttp.ClientSession() as session:
                for headers, expected in (({"Host": "platform:8000"}, 200), ({"Origin": "https://evil.example"}, 403)):
                    async with session.get(f"{played.url}/health", headers=headers) as response:
                        assert response.status == expected
                        assert response.headers["Server"] == "ember"  # and not the library's name and version
        finally:
            await played.close()

    asyncio.run(run())
