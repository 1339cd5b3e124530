"""A platform on a free port, and short ways to call it as clients and as workers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from ember.platform.server import Platform
from ember.platform.store import MemoryStore, Store

WORKER = "w1"


class Calls:
    """`client` and `worker` answer with status and parsed body."""

    def __init__(self, platform: Platform, session: aiohttp.ClientSession) -> None:
        self.platform = platform
        self.endpoint = platform.endpoint
        self.session = session
        self.base = f"{platform.url}/v2/any"

    async def client(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        async with self.session.request(method, self.base + path, json=body, headers=headers) as response:
            text = await response.text()
            return response.status, await response.json() if text else None

    async def run(self, job_input: Any, **fields: Any) -> str:
        status, body = await self.client("POST", "/run", {"input": job_input, **fields})
        assert (status, body["status"]) == (200, "IN_QUEUE"), body
        job_id: str = body["id"]
        return job_id

    async def status(self, job_id: str) -> dict[str, Any]:
        status, body = await self.client("GET", f"/status/{job_id}")
        assert status == 200, body
        return dict(body)

    async def take(self, worker: str = WORKER) -> Any:
        status, body = await self.client("GET", f"/job-take/{worker}?gpu=x&job_in_progress=0")
        assert status in (200, 204)
        return body

    async def take_batch(self, count: int, worker: str = WORKER) -> Any:
        status, body = await self.client("GET", f"/job-take-batch/{worker}?gpu=x&batch_size={count}")
        assert status in (200, 204)
        return body

    async def report(self, path: str, job_id: str, text: str, worker: str = WORKER) -> int:
        """A body as the SDK sends it: JSON text that says it is a form."""
        headers = {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8"}
        url = f"{self.base}/{path}/{worker}/{job_id}?gpu=x&isStream=false"
        async with self.session.post(url, data=text.encode(), headers=headers) as response:
            return response.status

    async def stops(self, worker: str = WORKER) -> Any:
        status, body = await self.client("GET", f"/job-stop/{worker}?gpu=x")
        return body["jobsToStop"] if status == 200 else []


@asynccontextmanager
async def platform(
    store: Store | None = None, keys: tuple[str, ...] = (), poll: float = 0.3, page: bool = True
) -> AsyncIterator[Calls]:
    played = Platform(store or MemoryStore(), keys, poll_seconds=poll, page=page)
    await played.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession() as session:
            yield Calls(played, session)
    finally:
        await played.close()


def play(scenario: Callable[[Calls], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with platform(**options) as calls:
            await scenario(calls)

    asyncio.run(run())
