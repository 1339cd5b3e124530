"""The HTTP face's server on a free port, for aiohttp's test client."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestClient

from ember.front.http.connection import Server, watch


class FaceServer(BaseTestServer):
    """`TestServer` for what `make_app` returns, with the task that watches its connections.

    `linger`: the seconds for which the server reads on where it has answered before the request's end.
    """

    def __init__(self, server: Server, linger: float = 10.0) -> None:
        super().__init__()
        self.face = server
        self.face._kwargs["lingering_time"] = linger

    async def _make_runner(self, **options: Any) -> web.ServerRunner:
        self._watching = asyncio.create_task(watch(self.face))
        return web.ServerRunner(self.face, shutdown_timeout=5.0)

    async def close(self) -> None:
        self._watching.cancel()
        await super().close()


def client_of(server: Server, linger: float = 10.0, **options: Any) -> TestClient[Any, Any]:
    return TestClient(FaceServer(server, linger), **options)
