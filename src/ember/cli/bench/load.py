"""A load test: requests at their times, streamed answers, and what each of them took."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ember.cli.api_client import ApiClient, ServerError
from ember.cli.bench.prompts import PATHS, Endpoint, Prompt


@dataclass
class Outcome:
    """One request and its answer. Times are in seconds since the load began."""

    start: float
    first: float | None = None  # the first token
    end: float = 0.0
    gaps: list[float] = field(default_factory=list)  # between arrivals of tokens, in seconds
    num_input: int | None = None  # as the server counts
    num_output: int | None = None
    is_counted: bool = True  # by the server: without its `usage` arrivals are counted
    num_cached: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token, in seconds."""
        return None if self.first is None else self.first - self.start

    @property
    def e2e(self) -> float:
        """Time to the end of the answer, in seconds."""
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first one, in seconds."""
        if self.first is None or self.num_output is None or self.num_output < 2:
            return None
        return (self.end - self.first) / (self.num_output - 1)


@dataclass(frozen=True)
class Load:
    """How requests come: `rate` a second at random times (None: all at once), at most `concurrency` at a time."""

    rate: float | None = None
    burstiness: float = 1.0  # the shape of the gamma distribution of the times between requests; 1: Poisson's
    concurrency: int | None = None


@dataclass
class Run:
    """What a load test gave."""

    outcomes: list[Outcome]
    seconds: float  # from the first request to the end of the last answer
    client_cpu_seconds: float  # of this process
    peak_concurrency: int


def arrivals(load: Load, count: int, rng: random.Random) -> Iterator[float]:
    """The times of requests, in seconds since the start."""
    at = 0.0
    for i in range(count):
        if load.rate is not None and i:
            at += rng.gammavariate(load.burstiness, 1 / (load.rate * load.burstiness))
        yield at


class LoadTest:
    """Sends prompts to one model of a server. `fields` go into every body, over what the test sets."""

    def __init__(
        self, client: ApiClient, endpoint: Endpoint, model: str, ignore_eos: bool, fields: dict[str, Any]
    ) -> None:
        self._client = client
        self._path = PATHS[endpoint]
        self._model = model
        self._ignore_eos = ignore_eos
        self._fields = fields
        self._under_way = 0
        self._peak = 0

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The body of a request."""
        body = {
            "model": self._model,
            **prompt.fields,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if prompt.max_tokens is not None:
            body["max_tokens"] = prompt.max_tokens
            if self._ignore_eos:
                body["ignore_eos"] = True
        return {**body, **self._fields}

    async def run(
        self, prompts: list[Prompt], load: Load, rng: random.Random, progress: Callable[[], None] = lambda: None
    ) -> Run:
        """Send all prompts. `progress` is called when an answer has ended. Failed requests are outcomes too."""
        places = asyncio.Semaphore(load.concurrency or len(prompts) or 1)
        self._peak = 0
        cpu, began = time.process_time(), time.perf_counter()

        async def one(prompt: Prompt) -> Outcome:
            try:
                return await self._ask(prompt, began)
            finally:
                places.release()
                progress()

        tasks = []
        for prompt, at in zip(prompts, arrivals(load, len(prompts), rng), strict=True):
            if (wait := began + at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            await places.acquire()
            tasks.append(asyncio.create_task(one(prompt)))
        try:
            outcomes = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        seconds = max((outcome.end for outcome in outcomes), default=0.0)
        return Run(list(outcomes), seconds, time.process_time() - cpu, self._peak)

    async def _ask(self, prompt: Prompt, began: float) -> Outcome:
        outcome = Outcome(time.perf_counter() - began)
        self._under_way += 1
        self._peak = max(self._peak, self._under_way)
        num_arrivals, last = 0, 0.0
        try:
            async for events in self._client.stream(self._path, self.body(prompt)):
                now = time.perf_counter() - began
                for event in events:
                    if _has_tokens(event):
                        if outcome.first is None:
                            outcome.first = now
                        else:
                            outcome.gaps.append(now - last)
                        num_arrivals, last = num_arrivals + 1, now
                    if usage := event.get("usage"):
                        outcome.num_input = _count(usage.get("prompt_tokens"))
                        outcome.num_output = _count(usage.get("completion_tokens"))
                        details = usage.get("prompt_tokens_details") or {}
                        outcome.num_cached = _count(details.get("cached_tokens")) or 0
            if outcome.num_output is None:
                outcome.num_output, outcome.is_counted = num_arrivals, False
            if not num_arrivals and not outcome.num_output:
                outcome.error = "the answer has no tokens"
        except ServerError as error:
            outcome.error = str(error) if error.status is None else f"{error.status}: {error}"
        except (AttributeError, TypeError):
            outcome.error = "an event of the stream has another form than OpenAI's"
        finally:
            self._under_way -= 1
        is_whole = outcome.error is None and num_arrivals > 0
        outcome.end = last if is_whole else time.perf_counter() - began  # what follows the last token is no part of it
        return outcome


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _has_tokens(event: Any) -> bool:
    """Whether a chunk of a chat or of a completion carries some of the answer."""
    for choice in event.get("choices") or ():
        delta = choice.get("delta")
        if delta is None:
            if choice.get("text"):
                return True
        elif any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")):
            return True
    return False
