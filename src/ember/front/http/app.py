"""The HTTP application: it answers aiohttp requests with the api's responses, as JSON, text or server-sent events.

This module does authorisation, body limits and parsing. The router's table has the function of a path, the form of its
errors and the framing of its streams.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from aiohttp import HttpVersion11, web

from ember.front.api.exchange import REQUEST_ID_HEADER, EventStream, Request, Response, request_id
from ember.front.api.framing import Framing
from ember.front.api.route import Route
from ember.front.api.router import Match, Router
from ember.front.api.services import Services
from ember.front.errors import ApiError, internal_error, shutting_down
from ember.front.http.answers import error_answer, whole_answer
from ember.front.http.connection import Server
from ember.front.http.cors import cors_headers, is_preflight
from ember.front.http.forms import FORM_SECONDS, is_form, read_form, remove_files, send_file
from ember.front.link.engine import EngineError
from ember.settings import Settings
from ember.untrusted_json import MAX_VALUES, UntrustedJsonError, loads_strict

log = logging.getLogger(__name__)

LARGE_BODY_BYTES = 64 * 1024
BODY_ENCODINGS = ("identity", "gzip", "deflate")
BODY_SECONDS = 60.0  # time limit for a request's body
STOPPING_BODY_SECONDS = 2.0  # the same once the server is stopping
_STREAM_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # proxies must not buffer events
}


class Backend(Protocol):
    """The part of `ember.front.start.Worker` that this module uses."""

    @property
    def engine(self) -> Any: ...
    async def ready(self) -> Services: ...


def make_app(settings: Settings, backend: Backend, router: Router, stopping: asyncio.Event | None = None) -> Server:
    """The server. It answers at once and holds api requests until the engine is ready. Once `stopping` is set it
    refuses new requests, also on open connections."""
    stopping = stopping or asyncio.Event()
    face = _Face(settings, backend, router.of(settings), stopping)
    return Server(face.answer, settings.max_request_bytes, stopping)


def make_health_app(
    settings: Settings, backend: Backend, router: Router, stopping: asyncio.Event | None = None
) -> Server:
    """The server on PORT_HEALTH. It answers only health checks."""
    stopping = stopping or asyncio.Event()
    router = router.of(settings)

    async def answer(http: web.BaseRequest) -> web.StreamResponse:
        found = find(router, settings, http)
        if not found.route.is_health_check:
            return web.Response(status=404)
        try:
            response = status(found, backend)
        except ApiError as error:
            return error_answer(error, found.route, {})
        return whole_answer(Response(503) if stopping.is_set() else response, {})

    return Server(answer, max_body_bytes=1, stopping=stopping)


def below_root(path: str, root_path: str | None) -> str:
    """The path without the prefix ROOT_PATH. A proxy that removes the prefix itself sends paths without it."""
    is_below = root_path is not None and (path == root_path or path.startswith(root_path + "/"))
    return path.removeprefix(root_path or "") if is_below else path


def path_of(http: web.BaseRequest) -> str:
    """The path as it was sent. It is empty for CONNECT, whose target is a host."""
    return "" if http.method == "CONNECT" else http.rel_url.raw_path


def find(router: Router, settings: Settings, http: web.BaseRequest) -> Match:
    """The match of a request in the router's table. A path named by a setting may itself begin with ROOT_PATH."""
    path = path_of(http)
    found = router.find(http.method, below_root(path, settings.root_path))
    return found if found.allowed else router.find(http.method, path)


def status(found: Match, backend: Backend) -> Response:
    """The response of a route that needs only the engine's handle. Raises ApiError 405."""
    found.check()
    assert found.route.status is not None
    return found.route.status(backend.engine)


class _Face:
    def __init__(self, settings: Settings, backend: Backend, router: Router, stopping: asyncio.Event) -> None:
        self._settings = settings
        self._backend = backend
        self._router = router
        self._stopping = stopping
        self._key_digests = [_digest(key.get_secret_value()) for key in settings.api_key]
        self._admin_digests = [_digest(key.get_secret_value()) for key in settings.admin_api_key]

    async def answer(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer a request. Raises only errors of a disconnected client."""
        found = find(self._router, self._settings, http)
        name = request_id(http.headers.get(REQUEST_ID_HEADER))
        headers = {**self._id_headers(found.route, name), **cors_headers(self._settings, http)}
        try:
            if self._stopping.is_set():
                raise shutting_down()
            return await self._answer(http, found, name, headers)
        except ApiError as error:
            return error_answer(error, found.route, headers)
        except web.HTTPRequestEntityTooLarge:
            return error_answer(_too_large(self._settings.max_request_bytes), found.route, headers)
        except ConnectionError:  # the client's connection: an answer waits for no other one
            raise
        except Exception:
            log.exception("%r %r failed unexpectedly", http.method[:20], http.path[:200])
            return error_answer(internal_error(), found.route, headers)

    async def _answer(
        self, http: web.BaseRequest, found: Match, name: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        route = found.route
        if route.is_health_check:
            return whole_answer(status(found, self._backend), headers)
        if is_preflight(http, headers):
            return web.Response(status=204, headers=headers)
        if (page := self._page(http, headers)) is not None:
            return page
        self._check_key(http, route)
        if route.status is not None:
            return whole_answer(status(found, self._backend), headers)
        arrived = time.monotonic()
        if route.upload_directory is not None and is_form(http):
            directory = await asyncio.to_thread(route.upload_directory, self._settings)
            async with _arriving(http, self._stopping, FORM_SECONDS):
                form = {} if directory is None else await read_form(http, directory)
            try:
                return await self._dispatch(http, found, name, headers, arrived, form)
            finally:
                remove_files(form)
        if (http.content_length or 0) > self._settings.max_request_bytes:
            raise _too_large(self._settings.max_request_bytes)
        body = await _parsed_body(http, self._stopping)
        return await self._dispatch(http, found, name, headers, arrived, body)

    async def _dispatch(
        self, http: web.BaseRequest, found: Match, name: str, headers: dict[str, str], arrived: float, body: Any
    ) -> web.StreamResponse:
        try:
            services = await self._backend.ready()
        except EngineError as error:
            raise ApiError(500, str(error), headers={"x-should-retry": "false"}) from None
        lowered = {name.lower(): value for name, value in http.headers.items()}
        path = below_root(path_of(http), self._settings.root_path)
        query = {key: ",".join(http.query.getall(key)) for key in http.query}
        request = Request(http.method, path, body, lowered, query, arrived, id=name)
        answer = await self._router.dispatch(services, request)
        if isinstance(answer, EventStream):
            return await self._send_events(http, answer, found.route.framing, headers)
        if isinstance(answer.body, Path):
            return await send_file(http, answer.body, {**headers, **answer.headers})
        return whole_answer(answer, headers)

    def _page(self, http: web.BaseRequest, headers: dict[str, str]) -> web.Response | None:
        """The page for a browser's GET or HEAD of `/`. It needs no key, as it asks for one where a route does. None
        for other requests: the table of routes answers them."""
        is_root = not below_root(http.raw_path.partition("?")[0], self._settings.root_path).strip("/")
        if not (self._settings.page and http.method in ("GET", "HEAD") and is_root):
            return None
        from ember.page.answer import page_answer  # not with the boot

        page = page_answer("worker", http.headers)
        if page is None:
            return None
        return web.Response(status=page.status, headers={**headers, **page.headers}, body=page.body)

    async def _send_events(
        self, http: web.BaseRequest, answer: EventStream, framing: Framing, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Write the events as they are generated, and an error that ends them early. If the client disconnects, leaving
        this function closes the source, which aborts the generation."""
        async with aclosing(answer.events) as events:
            media_type = {"Content-Type": framing.media_type}
            response = web.StreamResponse(headers={**media_type, **_STREAM_HEADERS, **headers, **answer.headers})
            if self._stopping.is_set():
                response.force_close()
            await response.prepare(http)
            try:
                async for event in events:
                    await response.write(framing.encode(event).encode())
            except ApiError as error:
                await response.write(framing.encode(framing.error(error)).encode())
            await response.write_eof(framing.end().encode())
            return response

    def _check_key(self, http: web.BaseRequest, route: Route) -> None:
        """Raises ApiError 401 for a request without a valid key, and 403 for a route of the operator with a client's.
        Without any keys, every request is accepted."""
        has_admin_key = self._has_key(http, self._admin_digests)
        has_key = has_admin_key or self._has_key(http, self._key_digests)
        if (self._key_digests or (route.is_admin and self._admin_digests)) and not has_key:
            raise ApiError(401, "Unauthorized", type="Unauthorized")
        if route.is_admin and not has_admin_key and (self._key_digests or self._admin_digests):
            hint = "it needs the key of ADMIN_API_KEY" if self._admin_digests else "set ADMIN_API_KEY for it"
            raise ApiError(403, f"{route.path} is for the operator: {hint}.", type="PermissionDeniedError")

    def _has_key(self, http: web.BaseRequest, keys: list[bytes]) -> bool:
        """Whether the request has one of the keys, as a bearer token or as Anthropic's and Azure's clients send it. All
        keys are compared, each in constant time."""
        scheme, _, token = http.headers.get("Authorization", "").partition(" ")
        given = [token.strip()] if scheme.lower() == "bearer" else []
        given += [http.headers[name].strip() for name in ("x-api-key", "api-key") if name in http.headers]
        digests = [_digest(key) for key in given]
        matches = [hmac.compare_digest(digest, key) for digest in digests for key in keys]
        return any(matches)

    def _id_headers(self, route: Route, name: str) -> dict[str, str]:
        """The headers with the request's id: that of the route, and the general one if the deployment shows it."""
        headers = {} if route.id_header is None else {route.id_header: name}
        return {**headers, REQUEST_ID_HEADER: name} if self._settings.enable_request_id_headers else headers


async def _parsed_body(http: web.BaseRequest, stopping: asyncio.Event) -> Any:
    """Read the JSON body; None if it is empty. Raises ApiError 400, 408 if it does not arrive in time, and 503 if it
    does not arrive soon after the server has begun to stop."""
    try:
        async with _arriving(http, stopping, BODY_SECONDS):
            raw = await http.read()
    except web.RequestPayloadError as error:
        reason = getattr(error.__cause__, "message", None) or error  # the message without the parser's status
        message = f"The request body cannot be read: {' '.join(str(reason).split())}"
        closing = {"Connection": "close"}  # the start of the next request is unknown
        raise ApiError(400, message, type="Bad Request", param="body", headers=closing) from None
    if not raw:
        return None
    if http.content_type != "application/json":
        message = "Unsupported Media Type: Only 'application/json' is allowed"
        raise ApiError(400, f"{message}, not {http.content_type!r}.", type="Bad Request", param="header.content-type")
    try:
        if len(raw) <= LARGE_BODY_BYTES:
            return loads_strict(raw)
        return await asyncio.to_thread(loads_strict, raw, max_values=MAX_VALUES)
    except UntrustedJsonError as error:
        raise ApiError(400, f"The request body is not valid JSON: {error}", type="Bad Request", param="body") from None


@asynccontextmanager
async def _arriving(http: web.BaseRequest, stopping: asyncio.Event, seconds: float) -> AsyncIterator[None]:
    """What every body that is read needs: it is in an encoding that can be read, the client is asked for it, and it
    arrives in time. Raises ApiError 408, 415, 417, and 503 if it does not arrive soon after the server has begun to
    stop."""
    _check_encoding(http)
    await _ask_for_body(http)
    if http.content.is_eof():
        yield
        return
    try:
        async with asyncio.timeout(seconds) as limit:  # `wait_for` may lose a cancellation

            async def shorten() -> None:
                await stopping.wait()
                loop = asyncio.get_running_loop()
                limit.reschedule(min(limit.when() or math.inf, loop.time() + STOPPING_BODY_SECONDS))

            shortening = asyncio.create_task(shorten())
            try:
                yield
            finally:
                shortening.cancel()
    except TimeoutError:
        if stopping.is_set():
            raise shutting_down() from None
        message = f"The request body did not arrive within {seconds:.0f} seconds."
        raise ApiError(408, message, type="Request Timeout", headers={"Connection": "close"}) from None


def _check_encoding(http: web.BaseRequest) -> None:
    """Raise ApiError 415 for a body in an unsupported encoding, which aiohttp would read undecoded or as empty."""
    encoding = http.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in BODY_ENCODINGS:
        message = f"Content-Encoding must be one of {', '.join(BODY_ENCODINGS)}, not {encoding[:40]!r}."
        param, closing = "header.content-encoding", {"Connection": "close"}
        raise ApiError(415, message, type="Unsupported Media Type", param=param, headers=closing)


async def _ask_for_body(http: web.BaseRequest) -> None:
    """Send `100 Continue` to a client that expects it before it sends its body. Raises ApiError 417."""
    expected = http.headers.get("Expect")
    if expected is None or http.version < HttpVersion11:
        return
    if expected.lower() != "100-continue":
        raise ApiError(417, "The only expectation that can be met is `100-continue`.", type="Expectation Failed")
    await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    http.writer.output_size = 0  # nothing of the response has been sent


def _too_large(limit: int) -> ApiError:
    message = f"The request body is larger than {limit / 2**20:.4g} MiB."
    return ApiError(413, message, type="Request Entity Too Large")


def _digest(key: str) -> bytes:
    """The digest of a key. Digests have equal lengths, so that a comparison does not reveal the key's length."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
