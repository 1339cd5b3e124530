"""Streamed answers: the events of one request, from the engine's first output on."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from types import TracebackType
from typing import Any, Protocol

import orjson

from ember.front.api.call import ApiCall
from ember.front.api.exchange import Event
from ember.front.api.runs import Runs
from ember.front.api.samples import Piece
from ember.front.errors import ApiError, internal_error

log = logging.getLogger(__name__)


def event(chunk: dict[str, Any]) -> Event:
    return Event(orjson.dumps(chunk).decode())


def json_text(value: Any) -> str:
    return orjson.dumps(value).decode()


class StartedEvents(AsyncGenerator[Event, None]):
    """The events of a generator, the first of which may have been taken already.

    This is not a plain generator: closing one that was never iterated would leave the inner generator, and the engine,
    running.
    """

    def __init__(self, first: Event | None, rest: AsyncGenerator[Event, None]) -> None:
        self._first = first
        self._rest = rest

    def __anext__(self) -> Coroutine[Any, Any, Event]:
        """The awaitable of the inner generator. Wrapping it would cost a coroutine for every event."""
        return self._rest.__anext__() if self._first is None else self._take_first()

    async def _take_first(self) -> Event:
        first, self._first = self._first, None
        assert first is not None
        return first

    async def asend(self, value: None) -> Event:
        return await self.__anext__()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Event:
        self._first = None
        error = typ if isinstance(typ, BaseException) else val if isinstance(val, BaseException) else typ()
        return await self._rest.athrow(error)

    async def aclose(self) -> None:
        self._first = None
        await self._rest.aclose()


class ChunkWriter(Protocol):
    """Turns what the engine produces into the events of one route's streams."""

    def opening(self, runs: Runs) -> Sequence[Event]: ...
    def deltas(self, piece: Piece, runs: Runs) -> Sequence[Event]: ...
    def closing(self, runs: Runs) -> Sequence[Event]: ...


async def start_stream(call: ApiCall, writer: ChunkWriter) -> StartedEvents:
    """Start a stream and wait for its first chunk, so that an earlier error is answered as an error. Raises
    ApiError."""
    events = _events(call, writer)
    return StartedEvents(await anext(events, None), events)


async def _events(call: ApiCall, writer: ChunkWriter) -> AsyncGenerator[Event, None]:
    """The events of a stream. Output of a choice that arrives while a chunk is being sent is joined into the next
    chunk. This raises nothing but ApiError."""
    is_first = True
    intervals = _Intervals(call.stream_interval)
    try:
        async with call.runs() as runs:
            while (pieces := await runs.next()) is not None:
                if is_first:
                    is_first = False
                    for chunk in writer.opening(runs):
                        yield chunk
                for piece in intervals.due(pieces):
                    for delta in writer.deltas(piece, runs):
                        yield delta
        for last in writer.closing(runs):
            yield last
    except ApiError:
        raise
    except Exception:
        log.exception("a stream failed")
        raise internal_error() from None


class _Intervals:
    """Joins the pieces of each choice until they have the tokens of one chunk."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._held: dict[int, Piece] = {}  # of the choices that have begun; without tokens where nothing is held

    def due(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces to send now: the first and the last of each choice, and those that are large enough."""
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
