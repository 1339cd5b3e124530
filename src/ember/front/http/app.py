"""The HTTP face: an aiohttp request comes in, the api's answer goes out as JSON, text or server-sent events.

Authorisation, body limits, parsing and the error form are settled here; what a path means is the api router's.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from aiohttp import ClientConnectionResetError, web
from aiohttp.web_protocol import RequestHandler

from ember.front.api.exchange import REQUEST_ID_HEADER, EventStream, Request, Response, request_id
from ember.front.api.services import Services
from ember.front.api.status import plain_path, status
from ember.front.client import EngineError
from ember.front.errors import ApiError, internal_error
from ember.front.http.cors import cors_headers, is_preflight
from ember.settings import Settings
from ember.untrusted_json import UntrustedJsonError, loads_strict

log = logging.getLogger(__name__)

MAX_BODY_VALUES = 4_000_000  # counted by their punctuation; nothing else runs while the parser makes them
LARGE_BODY_BYTES = 64 * 1024
BODY_SECONDS = 60.0  # for a request's body to arrive
_HEALTH = ("/health", "/ping")  # need no key
_SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # proxies must pass each event on at once
}

Dispatch = Callable[[Services, Request], Awaitable[Response | EventStream]]


IN_FLIGHT: web.AppKey[set[asyncio.Task[object]]] = web.AppKey("in_flight", set)
HEARD: web.AppKey[set[RequestHandler]] = web.AppKey("heard", set)


class Backend(Protocol):
    """What the face needs of `ember.front.start.Worker`."""

    @property
    def engine(self) -> Any: ...
    async def ready(self) -> Services: ...


def make_app(settings: Settings, backend: Backend, dispatch: Dispatch) -> web.Application:
    """The application; it answers from the first moment, and holds api requests until the engine is ready."""
    app = web.Application(client_max_size=settings.max_request_bytes)
    face = _Face(settings, backend, dispatch)
    app[IN_FLIGHT] = face.in_flight
    app[HEARD] = face.heard
    app.router.add_route("*", "/{path:.*}", face.handle)
    return app


def make_health_app(settings: Settings, backend: Backend) -> web.Application:
    """What listens on PORT_HEALTH: the health paths, and nothing else."""

    async def handle(http: web.Request) -> web.StreamResponse:
        try:
            answer = health(settings, backend, http)
        except ApiError as error:
            return _json(error.status, error.body(), error.headers)
        return web.Response(status=404) if answer is None else _whole(answer, {})

    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", handle)
    return app


def health(settings: Settings, backend: Backend, http: web.Request) -> Response | None:
    """The answer of a health path, None for another path. HEALTH_CHECK_PATH is a name of /ping. Raises ApiError 405."""
    path = plain_path(http.path)
    if path == plain_path(settings.health_check_path):
        path = "/ping"
    return status(backend.engine, http.method, path) if path in _HEALTH else None


class _Face:
    def __init__(self, settings: Settings, backend: Backend, dispatch: Dispatch) -> None:
        self._settings = settings
        self._backend = backend
        self._dispatch = dispatch
        self._key_digests = [_digest(key.get_secret_value()) for key in settings.api_key]
        self.in_flight: set[asyncio.Task[object]] = set()  # that are being answered
        self.heard: set[RequestHandler] = set()  # connections on which a whole request head has come

    async def handle(self, http: web.Request) -> web.StreamResponse:
        headers = {**self._echo_headers(http), **cors_headers(self._settings, http)}
        self.heard.add(http.protocol)
        task = asyncio.current_task()
        assert task is not None
        self.in_flight.add(task)
        try:
            return await self._answer(http, headers)
        except ApiError as error:
            return _json(error.status, error.body(), {**headers, **error.headers})
        except web.HTTPRequestEntityTooLarge:
            return _too_large(self._settings.max_request_bytes, headers)
        except Exception:
            log.exception("%r %r failed unexpectedly", http.method[:20], http.path[:200])
            return _json(500, internal_error().body(), headers)
        finally:
            self.in_flight.discard(task)

    async def _answer(self, http: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        own = health(self._settings, self._backend, http)
        if own is not None:
            return _whole(own, headers)
        if is_preflight(http, headers):
            return web.Response(status=204, headers=headers)
        if not self._is_authorised(http):
            return _json(401, {"error": "Unauthorized"}, headers)
        own = status(self._backend.engine, http.method, http.path)  # /version
        if own is not None:
            return _whole(own, headers)
        if (http.content_length or 0) > self._settings.max_request_bytes:
            return _too_large(self._settings.max_request_bytes, headers)
        arrived = time.monotonic()
        body = await _parsed_body(http)
        try:
            services = await self._backend.ready()
        except EngineError as error:
            raise ApiError(500, str(error), headers={"x-should-retry": "false"}) from None
        lowered = {name.lower(): value for name, value in http.headers.items()}
        request = Request(http.method, http.rel_url.raw_path, body, lowered, dict(http.query), arrived)
        answer = await self._dispatch(services, request)
        if isinstance(answer, EventStream):
            return await _send_events(http, answer, headers)
        return _whole(answer, headers)

    def _is_authorised(self, http: web.Request) -> bool:
        """Every key is compared, each in constant time, whatever the others gave."""
        if not self._key_digests:
            return True
        scheme, _, token = http.headers.get("Authorization", "").partition(" ")
        digest = _digest(token.strip())
        matches = [hmac.compare_digest(digest, key) for key in self._key_digests]
        return scheme.lower() == "bearer" and any(matches)

    def _echo_headers(self, http: web.Request) -> dict[str, str]:
        if not self._settings.enable_request_id_headers:
            return {}
        return {REQUEST_ID_HEADER: request_id(http.headers.get(REQUEST_ID_HEADER))}


async def _parsed_body(http: web.Request) -> Any:
    """The JSON body, None where there is none. Raises ApiError 400."""
    try:
        raw = await asyncio.wait_for(http.read(), BODY_SECONDS)
    except TimeoutError:
        message = f"The request body did not arrive within {BODY_SECONDS:.0f} seconds."
        raise ApiError(408, message, type="Request Timeout", headers={"Connection": "close"}) from None
    except web.RequestPayloadError as error:
        reason = " ".join(str(error).split())
        raise ApiError(400, f"The request body cannot be read: {reason}", type="Bad Request", param="body") from None
    if not raw:
        return None
    if http.content_type != "application/json":
        message = "Unsupported Media Type: Only 'application/json' is allowed"
        raise ApiError(400, f"{message}, not {http.content_type!r}.", type="Bad Request", param="header.content-type")
    is_large = len(raw) > LARGE_BODY_BYTES
    if is_large and sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_BODY_VALUES:
        message = f"The request body has more than {MAX_BODY_VALUES} values."
        raise ApiError(400, message, type="Bad Request", param="body")
    try:
        return await asyncio.to_thread(loads_strict, raw) if is_large else loads_strict(raw)
    except UntrustedJsonError as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}", type="Bad Request", param="body") from None


def _whole(answer: Response, headers: dict[str, str]) -> web.Response:
    headers = {**headers, **answer.headers}
    if answer.body is None:
        return web.Response(status=answer.status, headers=headers)
    if isinstance(answer.body, str):
        headers.setdefault("Content-Type", "text/plain; charset=utf-8")
        return web.Response(status=answer.status, body=answer.body.encode(), headers=headers)
    return _json(answer.status, answer.body, headers)


async def _send_events(http: web.Request, answer: EventStream, headers: dict[str, str]) -> web.StreamResponse:
    """Write the events as they come. A client that goes away ends the generation: leaving here closes its source."""
    async with aclosing(answer.events) as events:
        response = web.StreamResponse(headers={**_SSE_HEADERS, **headers, **answer.headers})
        try:
            await response.prepare(http)
            async for event in events:
                await response.write(event.encode())
            await response.write_eof()
        except (ClientConnectionResetError, ConnectionResetError):
            log.debug("the client of %r went away", http.path[:200])
        return response


def _json(status: int, body: Any, headers: dict[str, str]) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS),
        content_type="application/json",
        headers=headers,
    )


def _too_large(limit: int, headers: dict[str, str]) -> web.Response:
    message = f"The request body is larger than {limit / 2**20:.4g} MiB."
    return _json(413, ApiError(413, message, type="Request Entity Too Large").body(), headers)


def _digest(key: str) -> bytes:
    """Equal lengths, so that a comparison tells nothing of a key's length."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
