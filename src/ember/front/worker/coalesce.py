"""Joins encoded events into pieces: a buffer between the engine's event loop and the loop that sends to the queue.

The first event is sent at once. Events produced during a delivery are buffered and sent together as the next piece, of
at most `max_bytes` on the wire. When the buffer holds more than that, the producer pauses. The engine's outputs are
then buffered before they are encoded, where they take less memory. `BatchSizes` sets other sizes of pieces.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

MAX_PIECE_BYTES = 900_000  # the platform splits streamed outputs beyond 1 MB


def wire_bytes(text: str) -> int:
    """The bytes of `text` in a JSON string, as the queue client encodes it (UTF-8, escaped quotes and newlines)."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return size + text.count('"') + text.count("\\") + text.count("\n")


def cut(text: str, max_bytes: int = MAX_PIECE_BYTES) -> list[str]:
    """Divide `text` into parts of at most `max_bytes` on the wire. No character is divided."""
    if wire_bytes(text) <= max_bytes:
        return [text]
    step = max(1, max_bytes // 4)  # no character takes more than four bytes
    return [text[start : start + step] for start in range(0, len(text), step)]


@dataclass(frozen=True)
class BatchSizes:
    """The number of events in a piece.

    The first piece has at least `least` events. Each piece raises this minimum by the factor `growth`. No piece has
    more than `most`; None is no limit. The last piece has the remaining events.
    """

    least: int = 1
    growth: float = 1.0
    most: int | None = None


ANY_SIZE = BatchSizes()


class _Signal:
    """An asyncio.Event of one loop that any thread may set. `arm` and `set` must be called under the owner's lock."""

    def __init__(self) -> None:
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def arm(self) -> asyncio.Event:
        event = asyncio.Event()
        self._waiter = (asyncio.get_running_loop(), event)
        return event

    def set(self) -> None:
        if self._waiter is None:
            return
        loop, event = self._waiter
        self._waiter = None
        if loop is asyncio._get_running_loop():
            event.set()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(event.set)


class Pieces:
    """The buffer of one job's events. Its producer and its consumer may run in different loops and threads."""

    def __init__(self, max_bytes: int = MAX_PIECE_BYTES, sizes: BatchSizes = ANY_SIZE) -> None:
        self._max_bytes = max_bytes
        self._most = sizes.most
        self._growth = sizes.growth
        self._least = float(min(sizes.least, sizes.most or sizes.least))  # of the next piece; it grows
        self._lock = threading.Lock()
        self._events: deque[tuple[str, int]] = deque()  # each with its bytes on the wire
        self._waiting_bytes = 0
        self._ended = False
        self._error: BaseException | None = None
        self._filled = _Signal()
        self._drained = _Signal()
        self.result: Any = None  # the argument of finish()

    async def put(self, event: str) -> None:
        """Add an event. Returns when there is room for another one."""
        size = wire_bytes(event)
        with self._lock:
            self._events.append((event, size))
            self._waiting_bytes += size
            self._filled.set()
        while True:
            with self._lock:
                if self._waiting_bytes <= self._max_bytes:
                    return
                drained = self._drained.arm()
            await drained.wait()

    def finish(self, result: Any = None) -> None:
        """End the events. The iteration ends after the buffered ones."""
        self._end(result, None)

    def fail(self, error: BaseException) -> None:
        """End the events with an error. The iteration raises it after the buffered ones."""
        self._end(None, error)

    def _end(self, result: Any, error: BaseException | None) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self.result = result
            self._error = error
            self._filled.set()

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> list[str]:
        """The next piece: the events since the last call, as many as fit. It waits for the minimum of `BatchSizes`. An
        event of more than `max_bytes` is a piece of its own."""
        while True:
            with self._lock:
                is_full = self._waiting_bytes > self._max_bytes  # the producer waits
                if self._events and (len(self._events) >= int(self._least) or self._ended or is_full):
                    return self._take()
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    raise StopAsyncIteration
                filled = self._filled.arm()
            await filled.wait()

    def _take(self) -> list[str]:
        piece: list[str] = []
        size = 0
        while self._events and (self._most is None or len(piece) < self._most):
            event, event_size = self._events[0]
            if piece and size + event_size > self._max_bytes:
                break
            self._events.popleft()
            piece.append(event)
            size += event_size
        self._waiting_bytes -= size
        if self._growth > 1:
            self._least = min(self._least * self._growth, self._most or 1e9)
        self._drained.set()
        return piece
