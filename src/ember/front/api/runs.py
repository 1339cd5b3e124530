"""The runs of one API request, one for each prompt, read together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from ember.front.api.beams import BeamSearch
from ember.front.api.meter import Meter
from ember.front.api.run import Run, RunSpec
from ember.front.api.samples import Piece
from ember.front.api.services import Services
from ember.front.errors import aborted
from ember.front.link.generation import Generation
from ember.wire import SequenceOutput


class Runs:
    """All runs of one request: `async with Runs(...) as runs`, then `next()` until it is None.

    Leaving the block aborts whatever is unfinished.
    """

    def __init__(
        self, specs: list[RunSpec], services: Services, meter: Meter, names: frozenset[str] = frozenset()
    ) -> None:
        """`names`: by which the request can be aborted."""
        self.names = names
        self._specs = specs
        self._meter = meter
        self._services = services
        self._stack = AsyncExitStack()
        self._iterator: AsyncIterator[list[SequenceOutput]] | None = None
        self._queue: asyncio.Queue[tuple[int, list[SequenceOutput] | BaseException | None]] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []
        self._num_open = 0
        self.runs: list[Run] = []

    async def __aenter__(self) -> Self:
        await self._services.pass_gate(self.names)
        try:
            for number, spec in enumerate(self._specs):
                generation = self._start(spec)
                await self._stack.enter_async_context(generation)
                self.runs.append(Run(number, spec, generation, self._services))
        except BaseException:
            await self._stack.aclose()
            raise
        self._services.metrics.in_flight += 1
        self._services.running.add(self)
        self._num_open = len(self.runs)
        if self._num_open == 1:
            self._iterator = aiter(self.runs[0].generation)
        else:
            self._pumps = [asyncio.create_task(self._pump(number)) for number in range(self._num_open)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._services.metrics.in_flight -= 1
        self._services.running.discard(self)
        for pump in self._pumps:
            pump.cancel()
        await self._stack.aclose()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._meter.finish(self.runs, error)

    def _start(self, spec: RunSpec) -> Generation | BeamSearch:
        engine = self._services.engine
        if spec.beams is not None:
            return BeamSearch(engine, spec.prompt.token_ids, spec.sampling, spec.beams, spec.priority, spec.cache_salt)
        return engine.generate(spec.prompt.token_ids, spec.sampling, priority=spec.priority, cache_salt=spec.cache_salt)

    def abort(self) -> None:
        """End what is unfinished. The reader gets what there is, with the finish reason `abort`."""
        for run in self.runs:
            run.generation.abort()

    async def next(self) -> list[Piece] | None:
        """The next pieces, at most one for each choice. None at the end. Raises ApiError when the engine failed."""
        if self._num_open == 0:
            return None
        if self._iterator is not None:
            outputs = await anext(self._iterator, None)
            if outputs is not None:
                return self.runs[0].push(outputs)
            self._num_open = 0
            return self.runs[0].end()
        return await self._next_of_many()

    async def collect(self) -> list[Piece]:
        """Read to the end. Returns one piece for each choice, in order. Raises ApiError when there is no answer."""
        whole = [Piece(choice) for choice in range(sum(run.spec.n for run in self.runs))]
        texts: list[list[str]] = [[] for _ in whole]
        while (pieces := await self.next()) is not None:
            for piece in pieces:
                choice = whole[piece.choice]
                texts[piece.choice].append(piece.text)
                choice.deltas += piece.deltas
                choice.token_ids += piece.token_ids
                choice.logprobs += piece.logprobs
                choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason
                choice.has_content = piece.has_content
        for choice in whole:
            choice.text = "".join(texts[choice.choice])
        return whole

    def prompt_tokens(self) -> int:
        return sum(len(run.spec.prompt.token_ids) for run in self.runs)

    def completion_tokens(self) -> int:
        return sum(sample.num_tokens for run in self.runs for sample in run.samples)

    def reasoning_tokens(self) -> int:
        return sum(sample.num_reasoning_tokens for run in self.runs for sample in run.samples)

    def cached_tokens(self) -> int:
        return sum(run.num_cached_tokens for run in self.runs)

    def check_not_aborted(self) -> None:
        """Raises ApiError 503 when a sample was aborted. For routes whose answers have no finish reason for that."""
        if any(sample.finish_reason == "abort" for run in self.runs for sample in run.samples):
            raise aborted()

    async def _next_of_many(self) -> list[Piece]:
        arrived: dict[int, list[SequenceOutput]] = {}
        pieces: list[Piece] = []
        number, outputs = await self._queue.get()
        while True:
            if isinstance(outputs, BaseException):
                raise outputs
            if outputs is None:
                self._num_open -= 1
                pieces += self.runs[number].push(arrived.pop(number, [])) + self.runs[number].end()
            else:
                arrived.setdefault(number, []).extend(outputs)
            if self._queue.empty():
                break
            number, outputs = self._queue.get_nowait()
        for number, outputs in arrived.items():
            pieces += self.runs[number].push(outputs)
        return pieces

    async def _pump(self, number: int) -> None:
        try:
            async for outputs in self.runs[number].generation:
                self._queue.put_nowait((number, outputs))
            self._queue.put_nowait((number, None))
        except Exception as error:
            self._queue.put_nowait((number, error))
