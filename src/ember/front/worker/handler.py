"""Runs one job: from its input to its outputs for the queue, piece by piece. Both queue clients use this.

The SDK calls an async generator function (`make_handler`), our own client iterates over a `JobRun` itself. Jobs that
are still running when the time to drain is over are ended from outside, with an error (`Handling.fail_all`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.route import NO_ROUTE
from ember.front.api.router import Router
from ember.front.errors import ApiError, internal_error
from ember.front.worker.coalesce import ANY_SIZE, BatchSizes, Pieces
from ember.front.worker.inputs import QueueJob, asked_route, parse_input, wants_stream
from ember.front.worker.outputs import (
    Form,
    ParsedChunks,
    StreamText,
    TokenLists,
    Whole,
    check_result_size,
    error_output,
    output_bytes,
)

log = logging.getLogger(__name__)

Answer = Callable[[Request], Awaitable[Response | EventStream]]
Handler = Callable[[Any], AsyncGenerator[Any, None]]


class Work(Protocol):
    """Work that runs and can be cancelled: a task, or a future of another thread's loop."""

    def cancel(self) -> Any: ...


class Submitter(Protocol):
    """The loop on which a job's work runs: an `EngineLoop`, or `ThisLoop`."""

    def submit(self, coroutine: Coroutine[Any, Any, None]) -> Work: ...


class ThisLoop:
    """Submits work to the running loop, when that loop owns the engine's client."""

    def submit(self, coroutine: Coroutine[Any, Any, None]) -> Work:
        return asyncio.get_running_loop().create_task(coroutine)


@dataclass
class Handling:
    """How this worker handles jobs: `answer` is run on `loop`, whichever loop a job itself runs on, and `router` knows
    the forms of its answers.

    `sizes` are for jobs that do not bring their own; `model` is for requests that name none.
    """

    loop: Submitter
    answer: Answer
    router: Router
    model: str
    raw: bool = True
    native_tokens: bool = False
    sizes: BatchSizes = ANY_SIZE
    runs: set[JobRun] = field(default_factory=set)  # those under way

    def fail_all(self, error: ApiError) -> None:
        """End every running job with this error."""
        for run in list(self.runs):
            run.fail(error)


def make_handler(handling: Handling) -> Handler:
    """The handler for the SDK, which must be an async generator function."""

    async def handler(job: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(JobRun(handling, job).outputs()) as outputs:
            async for output in outputs:
                yield output

    return handler


class JobRun:
    """One running job. Its work is cancelled at once when the consumer of its outputs is cancelled, closes them, or
    ends its task without reading them to the end."""

    def __init__(self, handling: Handling, job: Any) -> None:
        self._handling = handling
        job_id = job.get("id") if isinstance(job, dict) else None
        self._id = job_id if isinstance(job_id, str) else ""
        self._input = job.get("input") if isinstance(job, dict) else None
        self._route = asked_route(self._input, handling.router)
        self._form: Form = self._form_of(wants_stream(self._input), is_native=False)
        self._pieces: Pieces | None = None
        self._work: Work | None = None
        self._size = 0  # bytes of the outputs so far

    def fail(self, error: ApiError) -> None:
        """End the outputs with this error, after those that are ready. Any thread may call this."""
        if self._pieces is not None:
            self._pieces.fail(error)
        if self._work is not None:
            self._work.cancel()

    async def outputs(self) -> AsyncGenerator[Any, None]:
        """The outputs to send, in order. An `{"error": ...}` is the last one and ends the job as FAILED."""
        handling = self._handling
        handling.runs.add(self)
        try:
            job = parse_input(
                self._input,
                handling.router,
                model=handling.model,
                job_id=self._id or None,
                native_tokens=handling.native_tokens,
            )
            self._route = job.route
            form = self._form = self._form_of(job.stream, is_native=job.native_tokens)
            pieces = self._pieces = Pieces(sizes=job.sizes(handling.sizes))
            work = self._work = handling.loop.submit(_produce(handling.answer, job, form, pieces))
            _cancel_with_this_task(work)
            async for encoded in pieces:
                for output in form.pieces(encoded):
                    self._size += output_bytes(output)
                    yield output
            if pieces.result is not None:
                body = form.body(pieces.result)
                check_result_size(output_bytes(body), self._id)
                yield body
        except ApiError as error:
            for output in self._form.failed(error):
                yield output
        except Exception:
            log.exception("a job failed unexpectedly")
            for output in self._form.failed(internal_error()):
                yield output
        finally:
            handling.runs.discard(self)
            if self._work is not None:
                self._work.cancel()
        try:  # the stream may be complete although the platform would not accept the result, which repeats it
            check_result_size(self._size, self._id)
        except ApiError as error:
            yield error_output(error, self._route)

    def _form_of(self, stream: bool, is_native: bool) -> Form:
        if is_native:
            return TokenLists(self._route)
        if not stream or (self._route is not NO_ROUTE and not self._route.streams):
            return Whole(self._route)
        return StreamText(self._route) if self._handling.raw else ParsedChunks(self._route)


def _cancel_with_this_task(work: Work) -> None:
    """Cancel `work` when the task that asked for the job ends, however it ends.

    A task that is cancelled while it sends a piece, or that stops after an error, leaves the generator suspended until
    it is garbage collected. The engine must not continue to generate until then.
    """
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(lambda _: work.cancel())


async def _produce(answer: Answer, job: QueueJob, form: Form, pieces: Pieces) -> None:
    """Put the answer's events into `pieces`, or its response as their result. This runs on the engine's loop."""
    try:
        response = await answer(job.request)
        if isinstance(response, Response):
            pieces.finish(response)
            return
        async with aclosing(response.events) as events:
            async for event in events:
                await pieces.put(form.encode(event))
        if end := form.end():
            await pieces.put(end)
        pieces.finish()
    except asyncio.CancelledError:
        pieces.fail(ApiError(503, "The job was stopped."))
        raise
    except ApiError as error:
        pieces.fail(error)
    except Exception:
        log.exception("%s %s failed unexpectedly", job.request.method, job.request.path)
    finally:
        pieces.fail(internal_error())  # of all that got past the above, also what is no Exception; it does nothing else
