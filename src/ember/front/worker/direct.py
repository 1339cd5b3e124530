"""The worker on a queue with our own client: one event loop for the engine, the jobs and the pings.

What comes in is an engine that is already being started. What leaves is an exit code: 0 after a SIGTERM and its
drain, 1 after a failure. The platform is pinged from the start of the boot to the end of the last job. Jobs are taken
when the engine is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from ember.front.signals import on_signals
from ember.front.worker.fitness import Unfit, unfit
from ember.front.worker.handler import Handling, ThisLoop
from ember.front.worker.health import boot_failure, report_unhealthy
from ember.front.worker.queue import REPORT_SECONDS, Queue, keep_pinging
from ember.front.worker.queue_api import Addresses, QueueApi, QueueError, make_session
from ember.settings import variables

if TYPE_CHECKING:
    from ember.front.start import Worker
    from ember.settings import Settings

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0


def run(settings: Settings, worker: Worker) -> int:
    """Serve the queue until SIGTERM or a failure. Returns the exit code."""
    return asyncio.run(_run(settings, worker))


async def _run(settings: Settings, worker: Worker) -> int:
    stopping, hurrying = on_signals()
    try:
        await worker.start()
        if not await asyncio.to_thread(_is_fit, settings):
            return 1
        try:
            addresses = Addresses.from_environment()
        except QueueError as error:
            log.error("%s", error)
            return 1
        async with make_session(addresses.key) as session:
            return await _serve(settings, worker, QueueApi(addresses, session), addresses, stopping, hurrying)
    finally:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await worker.close()


def _is_fit(settings: Settings) -> bool:
    """Whether the host passes the checks, the first failure of which is reported here."""
    try:
        found = unfit(variables("RUNPOD_"), uses_gpu=settings.device != "cpu")
    except ValueError as error:
        found = Unfit("settings", str(error))
    if found is not None:
        log.error("%s; the worker exits", found.reason)
        report_unhealthy(found.reason, found.check)
    return found is None


async def _serve(
    settings: Settings,
    worker: Worker,
    queue_api: QueueApi,
    addresses: Addresses,
    stopping: asyncio.Event,
    hurrying: asyncio.Event,
) -> int:
    queue: Queue | None = None
    background: list[asyncio.Task[None]] = []
    if addresses.ping is not None and addresses.key:
        pinging = keep_pinging(queue_api, lambda: queue.job_ids if queue else [], addresses.ping_seconds)
        background.append(asyncio.create_task(pinging))
    try:
        if not await _booted(worker, stopping):
            return 0 if stopping.is_set() else 1
        queue = _queue(settings, worker, queue_api)
        serving = asyncio.create_task(queue.run())
        background.append(serving)
        return await _until_over(worker, queue, serving, stopping, hurrying)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)


async def _booted(worker: Worker, stopping: asyncio.Event) -> bool:
    """Wait for the engine. False when a signal came first or the boot failed, which is reported here."""
    stop = asyncio.create_task(stopping.wait())
    ready = asyncio.create_task(worker.ready())
    try:
        await asyncio.wait((stop, ready), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            return False
        error = ready.exception()
        if error is not None:
            await asyncio.to_thread(report_unhealthy, boot_failure(error))
        return error is None
    finally:
        stop.cancel()
        ready.cancel()


def _queue(settings: Settings, worker: Worker, queue_api: QueueApi) -> Queue:
    from ember.front.worker.answer import answer_with, concurrency, gate, handling_for

    handling: Handling = handling_for(settings, ThisLoop(), answer_with(worker))
    places = concurrency(settings, worker.services.engine.info.max_num_seqs)
    return Queue(queue_api, handling, places, gate(worker), settings.drain_timeout)


async def _until_over(
    worker: Worker, queue: Queue, serving: asyncio.Task[None], stopping: asyncio.Event, hurrying: asyncio.Event
) -> int:
    """Serve until a signal, or until the engine has failed for good and the jobs in flight have reported it."""
    stop = asyncio.create_task(stopping.wait())
    hurry = asyncio.create_task(hurrying.wait())
    dead = asyncio.create_task(worker.wait_dead())
    try:
        await asyncio.wait((stop, dead, serving), return_when=asyncio.FIRST_COMPLETED)
        if dead.done():
            log.error("the engine failed and is not restarted: %s; the worker exits", dead.result())
            queue.stop(drain_timeout=REPORT_SECONDS)
            await asyncio.wait((serving,))
            await asyncio.to_thread(report_unhealthy, f"the engine has failed for good: {dead.result()}")
            return 1
        queue.stop()
        await asyncio.wait((serving, hurry), return_when=asyncio.FIRST_COMPLETED)
        queue.hurry()
        await serving
        return 0
    finally:
        for task in (stop, hurry, dead):
            task.cancel()
