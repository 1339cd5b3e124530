"""`ember batch IN OUT`: run a file of requests with a model in this process, or against a server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from ember.cli.api_client import ServerError, connect
from ember.front.api.batches import local
from ember.front.api.batches.lines import BatchLine, Checked, check_file
from ember.front.api.batches.local import batch_route
from ember.front.api.batches.results import Answer, ResultFile, ResultsError
from ember.front.api.batches.run import Ask, BatchRun, GaveUp, Reply, Unreachable
from ember.front.api.exchange import request_id
from ember.front.api.router import check_task
from ember.front.errors import ApiError
from ember.front.link.engine import EngineError
from ember.front.signals import on_signals
from ember.settings import Settings

CONNECTIONS = 64  # requests to a server under way at a time
PATIENCE_SECONDS = 120.0  # for which a server may be gone
SHOW_SECONDS = 0.2
LISTED_FAULTS = 5


class BatchError(Exception):
    """The batch cannot be run. The message is for the person who started it."""


def run(
    source: Path,
    output: Path,
    errors: Path | None,
    settings: Settings,
    url: str | None,
    key: str | None,
    window: int | None,
) -> int:
    """Run what has no result yet. Returns the exit status: 0, 1 where a request failed, 130 after a signal. Raises
    BatchError."""
    paths = [source, output, *([] if errors is None else [errors])]
    if len({path.resolve() for path in paths}) < len(paths):
        raise BatchError("the input, the results and the errors must be different files")
    try:
        checked = check_file(source, refuse_url=partial(_refused, settings) if url is None else lambda path: None)
    except OSError as error:
        raise BatchError(f"{source}: {error.strerror}") from None
    if checked.num_faults:
        shown = [f"line {fault.number}: {fault.message}" for fault in checked.faults[:LISTED_FAULTS]]
        more = checked.num_faults - len(shown)
        raise BatchError("; ".join([f"{source}: {shown[0]}", *shown[1:], *([f"and {more} more"] if more else [])]))
    with contextlib.ExitStack() as stack:
        try:
            files = [stack.enter_context(contextlib.closing(ResultFile(path))) for path in paths[1:]]
            batch = BatchRun(source, checked, files[0], files[1] if errors is not None else None)
        except (ResultsError, OSError) as error:
            raise BatchError(str(error)) from None
        batch.unreachable_timeout = None if url is None else PATIENCE_SECONDS
        found = batch.counts.done
        if found:
            print(f"{found} of {batch.counts.total} requests have results already", file=sys.stderr)
        opened = _served(url, key) if url is not None else _local(settings, source, checked)
        is_whole = found == batch.counts.total or asyncio.run(_run(batch, opened, window))
    counts = batch.counts
    print(f"{counts.done} of {counts.total} requests have results; {counts.failed} of them failed", file=sys.stderr)
    if not is_whole:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 1 if counts.failed else 0


def _refused(settings: Settings, url: str) -> str | None:
    """Why no route of this worker answers a request of a batch at this path."""
    try:
        batch_route(url, settings)
    except ApiError as error:
        return error.message
    return None


Opened = contextlib.AbstractAsyncContextManager[tuple[Ask, int]]


async def _run(batch: BatchRun, opened: Opened, window: int | None) -> bool:
    """Run the batch until it is done, or a signal comes. Returns whether it is done. Raises BatchError."""
    stopping, _ = on_signals()
    stop = asyncio.create_task(stopping.wait())
    work = asyncio.create_task(_work(batch, opened, window))
    showing = asyncio.create_task(_show(batch))
    try:
        await asyncio.wait((stop, work), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))
            return False
        await work
        return True
    except (ResultsError, GaveUp, EngineError) as error:
        raise BatchError(" ".join(str(error).split())) from None
    finally:
        stop.cancel()
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


async def _work(batch: BatchRun, opened: Opened, window: int | None) -> None:
    async with opened as (ask, usual_window):
        await batch.run(ask, window or usual_window)


@asynccontextmanager
async def _local(settings: Settings, source: Path, checked: Checked) -> AsyncIterator[tuple[Ask, int]]:
    """Load the model, and yield the function that answers a request by the routes of this process, and how many run at
    a time. Raises EngineError, and BatchError for an input with requests that the model cannot answer."""
    from ember.front.start import launch

    logging.getLogger("ember.requests").setLevel(logging.WARNING)  # a line for each request is of no use here
    worker = launch(settings)
    worker.engine.admission.refuses = False
    try:
        await worker.start()
        services = await worker.ready()
        for url, number in checked.urls.items():
            try:
                check_task(batch_route(url, settings), services)
            except ApiError as error:
                raise BatchError(f"{source}: line {number}: {error.message}") from None
        yield partial(local.ask, services), 2 * services.engine.info.max_num_seqs
    finally:
        await worker.close()


@asynccontextmanager
async def _served(url: str, key: str | None) -> AsyncIterator[tuple[Ask, int]]:
    """Connect to a server of the OpenAI API, and yield the function that sends a request to it, and how many run at a
    time. `url` may end with `/v1`, which the paths of requests begin with."""
    async with connect(url, key) as client:

        async def ask(line: BatchLine) -> Reply:
            name = request_id()
            try:
                status, headers, body = await client.exchange(line.url, line.body, {"X-Request-Id": name})
            except ServerError as error:
                raise Unreachable(str(error)) from None
            if status == 401:
                raise GaveUp(f"{client.url} refuses the API key (API_KEY or OPENAI_API_KEY): {body}")
            answer = Answer(status, headers.get("X-Request-Id", name), body)
            may_retry = headers.get("x-should-retry") != "false"
            return Reply(answer, may_retry, _seconds(headers.get("retry-after")))

        yield ask, CONNECTIONS


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(0.0, float(text))
    except ValueError:  # a date
        return None


async def _show(batch: BatchRun) -> None:
    """Show the progress on a terminal."""
    from tqdm import tqdm

    counts = batch.counts
    with tqdm(total=counts.total, initial=counts.done, desc="Requests", dynamic_ncols=True, disable=None) as bar:
        try:
            while not bar.disable:
                await asyncio.sleep(SHOW_SECONDS)
                bar.update(counts.done - bar.n)
        finally:
            bar.update(counts.done - bar.n)
