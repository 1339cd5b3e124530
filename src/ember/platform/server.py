"""`ember platform`: the endpoint's HTTP server, alone or with a worker in the same process."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError

from ember.platform.access import Access
from ember.platform.client_routes import ENDPOINT, add_client_routes, answer
from ember.platform.endpoint import Endpoint
from ember.platform.jobs import PlatformError
from ember.platform.openai_routes import add_openai_routes
from ember.platform.store import Store
from ember.platform.webhooks import Webhooks
from ember.platform.worker_routes import MAX_BODY_BYTES, POLL_SECONDS, add_worker_routes

log = logging.getLogger(__name__)

LOCAL = "LOCAL"  # the endpoint's id in printed URLs; any other id works too
SWEEP_SECONDS = 1.0
_CLOSE_SECONDS = 1.0
_MAX_LINE_BYTES = 2**17  # of a request line: that of a ping has the ids of running jobs, up to 64 KB

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Platform:
    """One endpoint and its server. `keys`: one is required of clients and workers. Without keys all requests are served
    except those of web pages of another origin. `page`: whether browsers get a page at `/`."""

    def __init__(
        self, store: Store, keys: Sequence[str] = (), poll_seconds: float = 25.0, *, page: bool = True
    ) -> None:
        self._store = store
        self._webhooks = Webhooks()
        self._keys = keys
        self._access: Access | None = None
        self.endpoint = Endpoint(store, self._webhooks.send)
        guard: Any = self._guard
        self._app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[guard])
        self._app.on_response_prepare.append(_name_server)
        self._app[ENDPOINT] = self.endpoint
        self._app[POLL_SECONDS] = poll_seconds
        add_client_routes(self._app)
        add_openai_routes(self._app)
        add_worker_routes(self._app)
        self._has_page = page
        self._runner: web.AppRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self, host: str, port: int) -> None:
        """Start to listen. Raises OSError if the address cannot be bound."""
        self._access = Access(self._keys, host)
        self._runner = web.AppRunner(
            self._app,
            access_log=None,
            handler_cancellation=True,  # a client that disconnects from a stream cancels its job
            shutdown_timeout=_CLOSE_SECONDS,
            max_line_size=_MAX_LINE_BYTES,
            logger=_http_log(),
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.url = f"http://{'localhost' if host in ('0.0.0.0', '127.0.0.1', '::') else host}:{self._port}"
        self._sweeper = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._webhooks.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self._store.close()

    @property
    def _port(self) -> int:
        assert self._runner is not None
        port: int = self._runner.addresses[0][1]
        return port

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                self.endpoint.sweep(time.time())
            except Exception:
                log.exception("the platform's periodic work failed; it will run again")

    @web.middleware
    async def _guard(self, http: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self._has_page and (page := _page(http)) is not None:
                return page
            assert self._access is not None
            self._access.check(http)
            return await handler(http)
        except PlatformError as error:
            return answer({"error": error.message}, error.status)
        except web.HTTPException as error:
            return answer({"error": error.reason}, error.status)
        except web.RequestPayloadError as error:
            return answer({"error": " ".join(f"the request body cannot be read: {error}".split())}, 400)
        except ConnectionError:  # the client has disconnected
            raise
        except Exception:
            log.exception("%r %r failed", http.method[:20], http.path[:200])
            return answer({"error": "internal error; the platform's log has it"}, 500)


async def _name_server(http: web.Request, response: web.StreamResponse) -> None:
    """Name this server, where aiohttp would name itself and its version."""
    response.headers["Server"] = "ember"


def _page(http: web.Request) -> web.Response | None:
    """The page for a browser's GET or HEAD of `/`. It is the same for everybody and holds nothing of the endpoint, so
    it needs no key and may be linked to. None for other requests."""
    if http.method not in ("GET", "HEAD") or http.path != "/":
        return None
    from ember.page.answer import page_answer  # read when it is asked for

    page = page_answer("platform", http.headers)
    return web.Response(status=page.status, headers=page.headers, body=page.body) if page is not None else None


def _http_log() -> logging.Logger:
    """The HTTP library's logger, without records about malformed requests: they contain header lines with keys."""
    http_log = logging.getLogger(f"{__name__}.http")
    http_log.addFilter(_is_ours)
    return http_log


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (HttpProcessingError, web.RequestPayloadError, ConnectionError)):
        log.debug("a malformed request was refused: %s", type(error).__name__)
        return False
    return True


def worker_environment(url: str, worker_id: str, key: str | None = None) -> dict[str, str]:
    """The environment variables of a worker for a platform at `url`."""
    base = f"{url.rstrip('/')}/v2/{LOCAL}"
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=local",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=local",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=local",
        "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=local",
        "RUNPOD_PING_INTERVAL": "10000",
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_ENDPOINT_ID": LOCAL,
        "RUNPOD_AI_API_KEY": key or "local",  # the SDK does not ping without one
    }


def new_worker_id() -> str:
    return f"local-{secrets.token_hex(4)}"


def serve(store: Store, host: str, port: int, keys: Sequence[str], *, page: bool = True) -> int:
    """Run the platform until SIGTERM or SIGINT. Returns the exit status."""
    return asyncio.run(_serve(Platform(store, keys, page=page), host, port))


async def _serve(platform: Platform, host: str, port: int) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        await platform.start(host, port)
    except OSError as error:
        log.error("cannot listen on %s:%d: %s", host, port, error.strerror or error)
        await platform.close()
        return 1
    try:
        log.info("listening on %s", platform.url)
        log.info("OpenAI clients: base_url=%s/v2/%s/openai/v1", platform.url, LOCAL)
        log.info("workers: ember worker --model MODEL --platform %s", platform.url)
        await stopping.wait()
        return 0
    finally:
        await platform.close()


class PlatformThread:
    """The platform in a thread, for a worker in the main thread, which handles signals there."""

    def __init__(self, store: Store, host: str, port: int, keys: Sequence[str], *, page: bool = True) -> None:
        self._arguments = (store, host, port, keys)
        self._has_page = page
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="platform", daemon=True)
        self._error: OSError | None = None
        self.url = ""

    def start(self) -> None:
        """Start to listen. Raises OSError if the address cannot be bound."""
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        store, host, port, keys = self._arguments
        self._stopping = asyncio.Event()
        platform = Platform(store, keys, page=self._has_page)
        try:
            await platform.start(host, port)
        except OSError as error:
            await platform.close()
            self._error = error
            self._started.set()
            return
        self.url = platform.url
        self._started.set()
        await self._stopping.wait()
        await platform.close()
