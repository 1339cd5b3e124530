"""The handler the SDK calls: one job comes in, what the queue is to carry goes out, piece by piece.

A streamed job yields SSE text (or, with RAW_OPENAI_OUTPUT=0, lists of parsed chunks), any other its JSON body once.
Errors: a streamed job yields the error as an SSE event and `[DONE]`; any other yields `{"error": <JSON text>}`. The
SDK makes that a FAILED job whose `error` is `str()` of the value: JSON text comes through unharmed, an object would
arrive as a Python repr.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson

from ember.front.api.exchange import EventStream, Request, Response
from ember.front.errors import DONE, ApiError, encodable, internal_error
from ember.front.worker.coalesce import Pieces, cut
from ember.front.worker.inputs import Job, parse_input, wants_stream
from ember.front.worker.loop import EngineLoop

log = logging.getLogger(__name__)

Answer = Callable[[Request], Awaitable[Response | EventStream]]
Handler = Callable[[Any], AsyncGenerator[Any, None]]


def make_handler(
    loop: EngineLoop, answer: Answer, *, model: str, raw: bool = True, max_events: int | None = None
) -> Handler:
    """The handler of this worker: an async generator function, as the SDK must find it.

    `max_events` is the most SSE events in one streamed piece, for jobs that do not bring their own `max_batch_size`.
    `answer` is run on `loop`, the handler on whichever loop calls it. When the consumer is cancelled, closes the
    generator, or merely ends its task and leaves the generator behind, the job's work on `loop` is cancelled at once.
    """

    async def handler(job: Any) -> AsyncGenerator[Any, None]:
        job_input = job.get("input") if isinstance(job, dict) else None
        stream = wants_stream(job_input)
        source: concurrent.futures.Future[None] | None = None
        try:
            job_id = job.get("id") if isinstance(job, dict) else None
            parsed = parse_input(job_input, model=model, job_id=job_id if isinstance(job_id, str) else None)
            stream = parsed.stream
            pieces = Pieces(max_events=parsed.max_events or max_events)
            source = loop.submit(_produce(answer, parsed, pieces))
            _cancel_with_this_task(source)
            async for events in pieces:
                for output in _outputs(events, raw):
                    yield output
            if pieces.result is not None:
                yield pieces.result
        except ApiError as error:
            for output in _error_outputs(error, stream, raw):
                yield output
        except Exception:
            log.exception("a job failed unexpectedly")
            for output in _error_outputs(internal_error(), stream, raw):
                yield output
        finally:
            if source is not None:
                source.cancel()

    return handler


def _cancel_with_this_task(source: concurrent.futures.Future[None]) -> None:
    """Cancel `source` when the task that asked for the job ends, however it ends.

    A task cancelled while it sends a piece, or that stops after an error, leaves the generator suspended until the
    garbage collector finds it; the engine must not generate that long for nobody.
    """
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(lambda _: source.cancel())


async def _produce(answer: Answer, job: Job, pieces: Pieces) -> None:
    """Runs on the engine's loop: the answer's events into `pieces`, or its body as their result."""
    try:
        response = await answer(job.request)
        if isinstance(response, Response):
            pieces.finish(_body(response))
            return
        async with aclosing(response.events) as events:
            async for event in events:
                await pieces.put(event)
        pieces.finish()
    except asyncio.CancelledError:
        pieces.fail(ApiError(503, "the job was stopped"))
        raise
    except ApiError as error:
        pieces.fail(error)
    except Exception:
        log.exception("%s %s failed unexpectedly", job.request.method, job.request.path)
        pieces.fail(internal_error())


def _body(response: Response) -> Any:
    """What a finished response puts on the queue, the same as a client over HTTP would read.

    Raises ApiError where the response is an error, TypeError where it cannot be encoded: the SDK would drop it.
    """
    if response.status >= 400:
        error = response.body.get("error") if isinstance(response.body, dict) else None
        details = error if isinstance(error, dict) else {"message": str(response.body or response.status)}
        raise ApiError(
            response.status,
            str(details.get("message")),
            type=details.get("type"),
            param=details.get("param"),
            code=details.get("code"),
        )
    if response.body is None:
        return {"status": "ok"}
    return orjson.loads(orjson.dumps(response.body, option=orjson.OPT_NON_STR_KEYS))


def _outputs(events: list[str], raw: bool) -> list[Any]:
    """What to yield for a piece: its text, cut where a single event is beyond the limit, or its parsed chunks."""
    if raw:
        return list(cut(encodable("".join(events))))
    chunks = [chunk for event in events for chunk in _chunks(event)]
    return [chunks] if chunks else []


def _chunks(event: str) -> list[Any]:
    """The JSON documents of one SSE event, without `[DONE]` and comments."""
    lines = [line.removeprefix("data:").strip() for line in encodable(event).splitlines() if line.startswith("data:")]
    return [orjson.loads(line) for line in lines if line and line != "[DONE]"]


def _error_outputs(error: ApiError, stream: bool, raw: bool) -> list[Any]:
    if stream:
        return [error.sse() + DONE] if raw else [[error.body()]]
    return [{"error": orjson.dumps(error.body()["error"]).decode()}]
