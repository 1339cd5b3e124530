"""Server-sent events: a stream that starts with the engine's first output and always ends with `[DONE]`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Protocol

import orjson

from ember.front.api.call import Call
from ember.front.api.runs import Runs
from ember.front.api.samples import Piece
from ember.front.errors import DONE, ApiError, internal_error

log = logging.getLogger(__name__)


def event(chunk: dict[str, Any]) -> str:
    return f"data: {orjson.dumps(chunk).decode()}\n\n"


def json_text(value: Any) -> str:
    return orjson.dumps(value).decode()


class StartedEvents(AsyncGenerator[str, None]):
    """The events of a generator whose first one has been taken already.

    Not a plain generator: closing one that was never iterated would leave the inner one, and the engine, running.
    """

    def __init__(self, first: str, rest: AsyncGenerator[str, None]) -> None:
        self._first: str | None = first
        self._rest = rest

    async def __anext__(self) -> str:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._rest.__anext__()

    async def asend(self, value: None) -> str:
        return await self.__anext__()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> str:
        self._first = None
        error = typ if isinstance(typ, BaseException) else val if isinstance(val, BaseException) else typ()
        return await self._rest.athrow(error)

    async def aclose(self) -> None:
        self._first = None
        await self._rest.aclose()


class ChunkWriter(Protocol):
    """Turns what the engine produces into the chunks of one route."""

    def opening(self, runs: Runs) -> list[str]: ...
    def delta(self, piece: Piece, runs: Runs) -> str | None: ...
    def usage(self, runs: Runs) -> str: ...


async def start_stream(call: Call, writer: ChunkWriter) -> StartedEvents:
    """Waits for the first chunk, so that an error before it is a plain error. Raises ApiError."""
    events = _until_done(_chunks(call, writer))
    return StartedEvents(await anext(events), events)


async def _chunks(call: Call, writer: ChunkWriter) -> AsyncGenerator[str, None]:
    """Whatever has gathered in a choice while the last chunk was sent leaves as one chunk."""
    is_first = True
    intervals = _Intervals(call.stream_interval)
    async with call.runs() as runs:
        while (pieces := await runs.next()) is not None:
            if is_first:
                is_first = False
                runs.check_not_empty()
                for chunk in writer.opening(runs):
                    yield chunk
            for piece in intervals.due(pieces):
                if (delta := writer.delta(piece, runs)) is not None:
                    yield delta
    if call.stream_usage.at_end:
        yield writer.usage(runs)


class _Intervals:
    """Holds the pieces of each choice until they have as many tokens as a chunk should have."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._held: dict[int, Piece] = {}  # of the choices that have begun; without tokens where nothing is held

    def due(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces to send now: the first of a choice, the last, and those that are large enough."""
        if self._num_tokens == 1:
            return pieces
        due = []
        for new in pieces:
            piece = self._held.get(new.choice)
            is_begun = piece is not None
            if piece is None:
                piece = new
            else:
                piece.extend(new)
            if is_begun and piece.finish_reason is None and len(piece.token_ids) < self._num_tokens:
                self._held[new.choice] = piece
                continue
            self._held[new.choice] = Piece(new.choice)
            due.append(piece)
        return due


async def _until_done(chunks: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    is_started = False
    try:
        async for chunk in chunks:
            is_started = True
            yield chunk
    except ApiError as error:
        if not is_started:
            raise
        yield error.sse()
    except Exception:
        if not is_started:
            raise
        log.exception("a stream failed")
        yield internal_error().sse()
    finally:
        await chunks.aclose()
    yield DONE
