"""The front's `Engine` over an engine in this process: its steps run in the event loop, between everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ember import wire
from ember.boot import Timeline
from ember.engine.core.assemble import assemble
from ember.engine.core.boot import open_model
from ember.front.link.gate import Gate
from ember.front.link.generation import Generation
from ember.front.link.pooling import PoolBatch, PooledText, PoolOptions, PoolText


class InlineEngine:
    """Every message is encoded and decoded on its way, as it would be between the processes."""

    def __init__(self, directory: Path, **configure: Any) -> None:
        settings = {"device": "cpu", "dtype": "float32", "block_size": 8, "seed": 0, **configure}
        message = wire.Configure(model=str(directory), **settings)
        timeline = Timeline("test")
        self.core, self.info = assemble(message, open_model(message, timeline, lambda located: None), timeline)
        self.is_ready, self.is_dead = True, False
        self.num_requests = 0
        self.tasks = self.info.tasks
        self.gate = Gate()
        self.control: Any = SimpleNamespace(
            is_paused=False
        )  # the steps run between everything else, so there is nothing to pause
        self._generations: dict[int, Generation | PooledText] = {}
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
        adapter: str | None = None,
        is_step: bool = False,
    ) -> Any:
        options: dict[str, Any] = {"priority": priority, "cache_salt": cache_salt, "adapter": adapter}
        message = wire.Generate(self.num_requests + 1, prompt_token_ids, sampling, **options)
        generation = Generation(message, self.abort)
        self._start(message, generation)
        return generation

    async def pool_many(
        self, texts: Sequence[PoolText], options: PoolOptions, *, is_step: bool = False
    ) -> list[wire.SequenceOutput]:
        def send(text: PoolText, batch: PoolBatch, position: int) -> wire.Pool:
            request = options.request(self.num_requests + 1, text)
            self._start(request, PooledText(request, batch, position))
            return request

        batch = PoolBatch(texts, self.info, send, lambda request_id: self.abort(request_id, None, True))
        return await batch.result()

    async def pool(
        self, prompt_token_ids: list[int], task: wire.PoolingTask, token_type_ids: Sequence[int] = (), **options: Any
    ) -> wire.SequenceOutput:
        (output,) = await self.pool_many(
            [PoolText(prompt_token_ids, list(token_type_ids))], PoolOptions(task, **options)
        )
        return output

    def _start(self, message: wire.Generate | wire.Pool, reader: Generation | PooledText) -> None:
        self.num_requests += 1
        (request,) = wire.decode_front(wire.frame_front([wire.encode_front(message)])[4:])
        assert isinstance(request, wire.Generate | wire.Pool)
        self._generations[self.num_requests] = reader
        outputs = self.core.add(request) if isinstance(request, wire.Generate) else self.core.pool(request)
        asyncio.get_running_loop().call_soon(self._route, outputs)  # a batch notes a text after it was sent
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.get_running_loop().create_task(self._step())

    async def reset_prefix_cache(self) -> None:
        self.core.scheduler.blocks.forget_prefixes()

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
