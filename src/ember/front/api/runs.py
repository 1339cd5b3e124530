"""The engine requests of one API request, one for each prompt, read together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ember.front.api.beams import BeamOptions, BeamSearch
from ember.front.api.meter import Clock, Meter
from ember.front.api.prompt import Prompt
from ember.front.api.samples import Piece, Sample, TextOptions
from ember.front.api.services import Services
from ember.front.errors import ApiError
from ember.front.link.generation import Generation
from ember.wire import SamplingParams, SequenceOutput, TokenLogprobs


@dataclass(slots=True)
class Job:
    """One prompt with everything the engine and the detokenizer need to know about it.

    `n` choices are answered. Where the engine makes more samples (`best_of`), they are the ones with the highest
    cumulative log probability, which the sampling must then ask for.
    """

    prompt: Prompt
    sampling: SamplingParams
    text: TextOptions
    priority: int = 0
    cache_salt: str | None = None
    n: int = 1
    beams: BeamOptions | None = None  # search instead of sampling


class Run:
    """One job in the engine; `samples[i]` is choice `number * n + i`, as soon as there are pieces of it."""

    def __init__(self, number: int, job: Job, generation: Generation | BeamSearch, services: Services) -> None:
        self.job = job
        self._metrics = services.metrics
        self.generation = generation
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._first_choice = number * job.n
        n = job.sampling.n
        self._waits_for_prompt = n > 1 and job.sampling.prompt_logprobs is not None
        self._held: list[SequenceOutput] = []
        first = self._first_choice
        self.samples = [Sample(first + i, services.tokenizer, job.prompt.token_ids, job.text) for i in range(n)]
        self.clocks = {sample: Clock() for sample in self.samples}
        self._candidates = [Piece(sample.choice) for sample in self.samples] if n > job.n else []

    def push(self, outputs: list[SequenceOutput]) -> list[Piece]:
        """One piece for each sample that has something new. A sample ended by a stop string is aborted at once.

        The first sample brings the prompt's log probabilities for all; until it does, the others' outputs wait here.
        """
        if self._waits_for_prompt:
            self._held += outputs
            if not any(
                output.prompt_logprobs is not None or (output.index == 0 and output.finish_reason is not None)
                for output in outputs
            ):
                return []
            outputs = self._release()
        pieces: dict[int, Piece] = {}
        gained: dict[Sample, int] = {}
        for output in outputs:
            self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
            if output.prompt_logprobs is not None:
                self.prompt_logprobs = output.prompt_logprobs
            sample = self.samples[output.index]
            was_over = sample.finish_reason is not None
            if not was_over and output.token_ids:
                gained[sample] = gained.get(sample, 0) + len(output.token_ids)
                self.clocks[sample].queue = max(self.clocks[sample].queue, output.queue_seconds)
            piece = pieces.get(output.index)
            if piece is None and not was_over:
                piece = pieces[output.index] = Piece(sample.choice)
            sample.push(output, piece or Piece(sample.choice))
            if sample.finish_reason is not None and output.finish_reason is None and not was_over:
                self.generation.abort(output.index)
        now = time.monotonic()
        for sample, num_tokens in gained.items():
            self.clocks[sample].push(num_tokens, now, self._metrics)
        if self._candidates:
            return self._choose(pieces)
        return list(pieces.values())

    def end(self) -> list[Piece]:
        """The engine has nothing more: closes what it left unfinished (it was aborted from outside)."""
        pieces = self.push(self._release())
        for index, sample in enumerate(list(self.samples)):
            if sample.finish_reason is None:
                piece = Piece(sample.choice)
                sample.close(piece, "abort")
                pieces += self._choose({index: piece}) if self._candidates else [piece]
        return pieces

    def _choose(self, pieces: dict[int, Piece]) -> list[Piece]:
        """Holds the pieces of all candidates until the last one is finished; then the best, as choices in order."""
        for index, piece in pieces.items():
            self._candidates[index].extend(piece)
        if any(sample.finish_reason is None for sample in self.samples):
            return []
        candidates, self._candidates = self._candidates, []
        order = sorted(range(len(candidates)), key=lambda index: -self.samples[index].score)  # equal ones stay in order
        self.samples = [self.samples[index] for index in order]
        chosen = [candidates[index] for index in order[: self.job.n]]
        for i, piece in enumerate(chosen):
            piece.choice = self.samples[i].choice = self._first_choice + i
        return chosen

    def _release(self) -> list[SequenceOutput]:
        self._waits_for_prompt = False
        held, self._held = self._held, []
        return held


class Runs:
    """All runs of one request: `async with Runs(...) as runs`, then `next()` until it is None.

    Leaving the block aborts whatever is unfinished.
    """

    def __init__(self, jobs: list[Job], services: Services, meter: Meter) -> None:
        self._jobs = jobs
        self._meter = meter
        self._services = services
        self._stack = AsyncExitStack()
        self._iterator: AsyncIterator[list[SequenceOutput]] | None = None
        self._queue: asyncio.Queue[tuple[int, list[SequenceOutput] | BaseException | None]] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []
        self._num_open = 0
        self.runs: list[Run] = []

    async def __aenter__(self) -> Self:
        try:
            for number, job in enumerate(self._jobs):
                generation = self._start(job)
                await self._stack.enter_async_context(generation)
                self.runs.append(Run(number, job, generation, self._services))
        except BaseException:
            await self._stack.aclose()
            raise
        self._services.metrics.in_flight += 1
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
        for pump in self._pumps:
            pump.cancel()
        await self._stack.aclose()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._meter.finish(self.runs, error)

    def _start(self, job: Job) -> Generation | BeamSearch:
        engine = self._services.engine
        if job.beams is not None:
            return BeamSearch(engine, job.prompt.token_ids, job.sampling, job.beams, job.priority, job.cache_salt)
        return engine.generate(job.prompt.token_ids, job.sampling, priority=job.priority, cache_salt=job.cache_salt)

    async def next(self) -> list[Piece] | None:
        """What is new, at most one piece for each choice; None at the end. Raises ApiError when the engine failed."""
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
        """Reads to the end. One piece for each choice, in order. Raises ApiError when there is no answer."""
        whole = [Piece(choice) for choice in range(sum(run.job.n for run in self.runs))]
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
        self.check_not_empty()
        for choice in whole:
            choice.text = "".join(texts[choice.choice])
        return whole

    def prompt_tokens(self) -> int:
        return sum(len(run.job.prompt.token_ids) for run in self.runs)

    def completion_tokens(self) -> int:
        return sum(sample.num_tokens for run in self.runs for sample in run.samples)

    def reasoning_tokens(self) -> int:
        return sum(sample.num_reasoning_tokens for run in self.runs for sample in run.samples)

    def cached_tokens(self) -> int:
        return sum(run.num_cached_tokens for run in self.runs)

    def check_not_empty(self) -> None:
        """Raises ApiError 500 when every sample was aborted before its first token: that is no answer."""
        aborted = all(sample.finish_reason == "abort" for run in self.runs for sample in run.samples)
        if aborted and self.completion_tokens() == 0:
            raise ApiError(500, "The request was aborted before its first token.")

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
