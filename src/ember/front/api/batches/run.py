"""Runs the requests of a batch that have no result yet, and appends the results as they come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ember.front.api.batches.lines import BatchLine, Checked, read_lines
from ember.front.api.batches.results import Answer, ResultFile
from ember.front.api.feed import feed

MAX_ATTEMPTS = 3  # of a request that the engine or the server failed at
RETRYABLE = frozenset({408, 425, 429, 502, 503, 504})  # statuses that ask for the same request later
RETRY_SECONDS, MAX_RETRY_SECONDS = 0.5, 30.0

CHUNK_LINES = 32  # that a thread reads or writes at a time

Result = TypeVar("Result")
Ask = Callable[[BatchLine], Awaitable["Reply"]]


class Unreachable(Exception):
    """The server did not answer. The request may be sent again."""


class GaveUp(Exception):
    """The run cannot go on: the server stays unreachable, or the engine has failed for good. The message is one
    line."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and what it says about sending the request again."""

    answer: Answer
    may_retry: bool = True
    retry_after: float | None = None


@dataclass(slots=True)
class Counts:
    """How many requests there are, and how many have results."""

    total: int
    completed: int = 0  # with a status of 2xx
    failed: int = 0

    @property
    def done(self) -> int:
        return self.completed + self.failed


class BatchRun:
    """One batch: its checked input, and its results. Without a file for errors they are among the others.

    Raises ResultsError when there are results of other requests.
    """

    def __init__(self, source: Path, checked: Checked, output: ResultFile, errors: ResultFile | None) -> None:
        self._source = source
        self._output = output
        self._errors = errors or output
        self._done: dict[bytes, bool] = {}
        for file in (output, errors):
            if file is not None:
                self._done |= file.results(checked.places)
        failed = sum(self._done.values())
        self.counts = Counts(len(checked.places), len(self._done) - failed, failed)
        self.unreachable_timeout: float | None = None  # seconds without any answer after which the run ends
        self._unreachable_since: float | None = None

    def waiting(self) -> Iterator[BatchLine]:
        """The requests without a result, in the order of the input."""
        for line in read_lines(self._source):
            if isinstance(line, BatchLine) and line.key not in self._done:
                yield line

    async def run(self, ask: Ask, window: int) -> None:
        """Run what is left. Being cancelled loses only what is under way. Raises ResultsError, and GaveUp where the
        server is unreachable for longer than `unreachable_timeout`."""

        async def work(line: BatchLine) -> None:
            self.add(line, (await self._asked(ask, line)).answer)

        waiting = self.waiting()
        lines: deque[BatchLine] = deque()
        reading = asyncio.Lock()

        async def next_line() -> BatchLine | None:
            """The next line of those that a thread read, which may have to skip most of the input."""
            async with reading:
                if not lines:
                    lines.extend(await finished_in_thread(lambda: list(islice(waiting, CHUNK_LINES))))
                return lines.popleft() if lines else None

        await feed(next_line, work, window)

    def add(self, line: BatchLine, answer: Answer) -> None:
        """Append a result. Raises ResultsError."""
        file = self._errors if answer.is_failure else self._output
        try:
            text = answer.line(line.custom_id)
        except TypeError:
            answer = Answer(0, answer.request_id, None, {"code": "not_json", "message": "The answer is not JSON."})
            file, text = self._errors, answer.line(line.custom_id)
        file.append(text)
        self._done[line.key] = answer.is_failure
        if answer.is_failure:
            self.counts.failed += 1
        else:
            self.counts.completed += 1

    async def _asked(self, ask: Ask, line: BatchLine) -> Reply:
        """The reply to a request, which is sent again where that may help."""
        attempt = 0
        delay = RETRY_SECONDS
        while True:
            wait = delay
            try:
                reply = await ask(line)
            except Unreachable as error:
                self._check_reachable(str(error))
            else:
                self._unreachable_since = None
                status = reply.answer.status
                if not reply.may_retry or (status < 500 and status not in RETRYABLE):
                    return reply
                if status not in RETRYABLE:
                    attempt += 1
                    if attempt == MAX_ATTEMPTS:
                        return reply
                wait = reply.retry_after or delay
            await asyncio.sleep(min(wait, MAX_RETRY_SECONDS))
            delay = min(delay * 2, MAX_RETRY_SECONDS)

    def _check_reachable(self, reason: str) -> None:
        """Raises GaveUp."""
        now = asyncio.get_running_loop().time()
        self._unreachable_since = now if self._unreachable_since is None else self._unreachable_since
        if self.unreachable_timeout is not None and now - self._unreachable_since > self.unreachable_timeout:
            raise GaveUp(f"the server has been unreachable for {now - self._unreachable_since:.0f} seconds: {reason}")


async def finished_in_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run the work in a thread. A cancellation waits until the thread has ended, so that no thread uses a file that was
    closed. Raises what `work` raises."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        task.exception()  # nobody else asks for it
        raise
