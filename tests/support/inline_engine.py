"""The front's `Engine` over an engine in this process: its steps run in the event loop, between everything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ember import wire
from ember.boot import Timeline
from ember.engine.core.boot import build, open_model


class InlineGeneration:
    """One request: like the client's `Generation`, without a process that could die."""

    def __init__(self, engine: InlineEngine, request: wire.Generate) -> None:
        self.request_id = request.request_id
        self._engine = engine
        self._unfinished = set(range(request.sampling.n))
        self._outputs: list[wire.SequenceOutput] = []
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
        while not self._outputs:
            if not self._unfinished:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        outputs, self._outputs = self._outputs, []
        return outputs

    def abort(self, index: int | None = None) -> None:
        if self._unfinished:
            self._unfinished -= self._unfinished.copy() if index is None else {index}
            self._engine.abort(self.request_id, index, is_over=not self._unfinished)
        self._arrived.set()

    def feed(self, output: wire.SequenceOutput) -> bool:
        """Returns whether it was the last output of the request."""
        if output.index in self._unfinished:
            self._outputs.append(output)
            if output.finish_reason is not None:
                self._unfinished.discard(output.index)
            self._arrived.set()
        return not self._unfinished


class InlineEngine:
    """Every message is encoded and decoded on its way, as it would be between the processes."""

    def __init__(self, directory: Path, **configure: Any) -> None:
        settings = {"device": "cpu", "dtype": "float32", "block_size": 8, "seed": 0, **configure}
        message = wire.Configure(model=str(directory), **settings)
        timeline = Timeline("test")
        self.core, self.info = build(message, open_model(message, timeline, lambda located: None), timeline)
        self.is_ready, self.is_dead = True, False
        self.num_requests = 0
        self._generations: dict[int, InlineGeneration] = {}
        self._stepping: asyncio.Task[None] | None = None

    async def wait_ready(self) -> wire.Ready:
        return self.info

    def generate(
        self,
        prompt_token_ids: list[int],
        sampling: wire.SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> Any:
        self.num_requests += 1
        message = wire.Generate(self.num_requests, prompt_token_ids, sampling, priority, cache_salt)
        (request,) = wire.decode_front(wire.frame_front([wire.encode_front(message)])[4:])
        assert isinstance(request, wire.Generate)
        generation = InlineGeneration(self, request)
        self._generations[self.num_requests] = generation
        self._route(self.core.add(request))
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.get_running_loop().create_task(self._step())
        return generation

    async def stats(self) -> wire.Stats:
        return self.core.stats()

    def check_empty(self) -> None:
        """Raises AssertionError unless nothing is left of any request: no row, no page, no generation."""
        stats = self.core.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert stats.num_free_blocks == stats.num_blocks, "a page is still held"
        assert not self._generations and not self.core.has_work

    async def _step(self) -> None:
        while self.core.has_work:
            self._route(self.core.step())
            await asyncio.sleep(0)

    def _route(self, outputs: list[wire.SequenceOutput]) -> None:
        if not outputs:
            return
        message = wire.decode_engine(wire.encode_engine(wire.Outputs(outputs))[4:])
        assert isinstance(message, wire.Outputs)
        for output in message.outputs:
            generation = self._generations.get(output.request_id)
            if generation is not None and generation.feed(output):
                del self._generations[output.request_id]

    def abort(self, request_id: int, index: int | None, is_over: bool) -> None:
        if is_over:
            self._generations.pop(request_id, None)
        self.core.abort(request_id, None if is_over else index)
