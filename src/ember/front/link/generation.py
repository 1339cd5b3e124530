"""One request in the engine, as the api holds it. Its outputs arrive here, and leaving it aborts unfinished samples."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from ember import wire
from ember.front.errors import ApiError

Stop = Callable[[int, int | None, bool], None]  # request id, sample (None: all), whether the request is over


class Generation:
    """One request: `sampling.n` samples. Iterate over it inside `async with`, which aborts what is unfinished."""

    def __init__(self, request: wire.Generate, stop: Stop) -> None:
        self.request = request
        self._stop = stop
        self._unfinished = set(range(request.sampling.n))
        self._outputs: list[wire.SequenceOutput] = []
        self._error: ApiError | None = None
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def __aiter__(self) -> AsyncIterator[list[wire.SequenceOutput]]:
        return self

    async def __anext__(self) -> list[wire.SequenceOutput]:
        """The outputs that have arrived since the last call. Raises ApiError when the engine has crashed."""
        while not self._outputs:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        outputs, self._outputs = self._outputs, []
        return outputs

    def abort(self, index: int | None = None) -> None:
        """Stop one sample, or all. The engine frees their pages within one step, and no more outputs arrive."""
        if index is None:
            stopped = bool(self._unfinished)
            self._unfinished.clear()
        else:
            stopped = index in self._unfinished
            self._unfinished.discard(index)
        if stopped:
            self._stop(self.request.request_id, index, not self._unfinished)
        self._arrived.set()

    def feed(self, output: wire.SequenceOutput) -> bool:
        """Add one output. Returns whether it was the last of the request."""
        if output.index in self._unfinished:
            self._outputs.append(output)
            if output.finish_reason is not None:
                self._unfinished.discard(output.index)
            self._arrived.set()
        return not self._unfinished

    def fail(self, error: ApiError) -> None:
        """End the request with an error, which the reader gets after the outputs that have arrived."""
        if self._unfinished:
            self._error = error
            self._unfinished.clear()
            self._arrived.set()


def check_output(output: wire.SequenceOutput) -> None:
    """Raises ApiError where the engine reports an error: a 400 for a fault of the request, a 500 for any other."""
    if output.finish_reason == "error":
        message = output.error or "The engine could not finish this request."
        raise ApiError(500 if output.error_param is None else 400, message, param=output.error_param)
