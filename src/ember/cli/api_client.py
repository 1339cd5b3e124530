"""A client of a server of the OpenAI API, for the commands that talk to one: streams of events, and plain answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from ember.logs import printable

CONNECT_SECONDS = 30.0
_SHOWN_CHARACTERS = 500


class ServerError(Exception):
    """The server refused a request, failed at it, or is gone. `status` is None where no answer came."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(printable(" ".join(message.split())))
        self.status = status


class ApiClient:
    """Requests to the server at `url`, which may end with `/v1`, with an API key if it wants one."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._session = session
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    async def get(self, path: str) -> Any:
        """The document at a path. Raises ServerError."""
        async with self._answer("GET", path, None) as response:
            return _document(await response.read())

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The document that answers a request. Raises ServerError."""
        async with self._answer("POST", path, body) as response:
            return _document(await response.read())

    async def exchange(
        self, path: str, body: dict[str, Any], headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and body of whatever answers a request; a body that is no JSON is a text. Raises ServerError
        where none comes."""
        async with self._connection("POST", path, body, headers) as response:
            raw = await response.read()
        document = _json_or_none(raw)
        return response.status, response.headers, raw.decode("utf-8", "replace") if document is None else document

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[list[dict[str, Any]]]:
        """The events of a streamed answer, as many at a time as have arrived together. Raises ServerError, also for an
        error that comes as an event and for a stream that ends before its last event."""
        async with self._answer("POST", path, body) as response:
            rest, is_over = b"", False
            events: list[dict[str, Any]]
            async for data in response.content.iter_any():
                *whole, rest = (rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
                events = []
                for block in whole:
                    payload = b"\n".join(line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:"))
                    if payload == b"[DONE]":
                        is_over = True
                    elif payload:
                        event = _document(payload)
                        if not isinstance(event, dict):
                            raise ServerError(f"an event of the stream is no object: {_text(payload)}", response.status)
                        if event.get("error"):
                            raise ServerError(_message(event) or "the server failed", response.status)
                        events.append(event)
                if events:
                    yield events
            if not is_over and rest.split() not in ([b"data:", b"[DONE]"], [b"data:[DONE]"]):
                raise ServerError("the stream ended before its last event", response.status)

    async def models(self) -> list[str]:
        """The names of the models that the server has, in its order. Raises ServerError."""
        document = await self.get("/v1/models")
        rows = document.get("data") if isinstance(document, dict) else None
        return [row["id"] for row in rows or [] if isinstance(row, dict) and isinstance(row.get("id"), str)]

    async def model(self, name: str | None) -> str:
        """`name`, or else the first model of the server. Raises ServerError."""
        if name is not None:
            return name
        names = await self.models()
        if not names:
            raise ServerError(f"{self.url} lists no models: name one with --model")
        return names[0]

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._connection(method, path, body, {}) as response:
            if response.status != 200:
                raw = await response.read()
                raise ServerError(_message(_json_or_none(raw)) or _text(raw), response.status)
            yield response

    @asynccontextmanager
    async def _connection(
        self, method: str, path: str, body: dict[str, Any] | None, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            data = None if body is None else orjson.dumps(body)
        except TypeError as error:  # half a surrogate, or an integer of more than 64 bits
            raise ServerError(f"the request cannot be written as JSON: {error}") from None
        sent = {**self._headers, **headers}
        try:
            async with self._session.request(method, self.url + path, data=data, headers=sent) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ServerError(f"{self.url}: {error or type(error).__name__}") from None


@asynccontextmanager
async def connect(url: str, key: str | None) -> AsyncIterator[ApiClient]:
    """A client with connections of its own, as many as there are requests at a time."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=1 << 18) as session:
        yield ApiClient(session, url, key)


def _document(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except ValueError:
        raise ServerError(f"the server's answer is no JSON: {_text(raw)}", 200) from None


def _json_or_none(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except ValueError:
        return None


def _message(document: Any) -> str | None:
    """The message of an error document, in OpenAI's form or with the message at its top."""
    error = document.get("error", document) if isinstance(document, dict) else None
    message = error if isinstance(error, str) else error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) and message else None


def _text(raw: bytes) -> str:
    return raw[:_SHOWN_CHARACTERS].decode("utf-8", "replace") or "an empty answer"
