"""The job loop of our own queue client: jobs are taken while there is room, run, streamed and reported.

A job is taken only while the engine can serve it and fewer than `concurrency` jobs run. It starts when it arrives. Each
job has one POST in flight; what is generated meanwhile is joined into the next one (`Pieces`).

When the worker is told to stop, the open long poll ends after a short grace period, in which a job may still arrive.
Jobs that were delivered run on. Those that have not ended after `drain_timeout` end with an error. Pings and stop
signals continue until the last job has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from ember.front.errors import ApiError, internal_error, shutting_down
from ember.front.worker.delivery import delivered
from ember.front.worker.handler import Handling, JobRun
from ember.front.worker.outputs import error_output
from ember.front.worker.queue_api import QueueApi, QueueError, Refused, TooManyRequests
from ember.front.worker.waits import Backoff, time_left, unless

log = logging.getLogger(__name__)

GRACE_SECONDS = 0.5  # for a job that is on its way when the worker is told to stop
REPORT_SECONDS = 5.0  # for jobs that were cut short to report their errors
_HELD_SECONDS = 1.0  # an empty answer sooner than this is not a long poll: wait before the next
_EMPTY_WAITS = (0.05, 0.5)
_FAILURE_WAITS = (0.1, 5.0)
_TOO_MANY_SECONDS = 5.0
SHUTTING_DOWN = shutting_down()


class Queue:
    """Serves jobs until it is told to stop. `ready` returns when a job can be served, and raises when none ever can."""

    def __init__(
        self,
        queue_api: QueueApi,
        handling: Handling,
        concurrency: int,
        ready: Callable[[], Awaitable[Any]],
        drain_timeout: float,
    ) -> None:
        self._queue_api = queue_api
        self._handling = handling
        self._concurrency = concurrency
        self._ready = ready
        self._drain_timeout = drain_timeout
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._stopped_at: float | None = None  # on time.monotonic()

    @property
    def job_ids(self) -> list[str]:
        """The ids of the running jobs, for the pings."""
        return list(self._running)

    def stop(self, drain_timeout: float | None = None) -> None:
        """Take no more jobs. `run` returns when the running ones have ended, or when the time to drain is over."""
        if drain_timeout is not None:
            self._drain_timeout = drain_timeout
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stopping.set()

    def hurry(self) -> None:
        """End the running jobs with an error now."""
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stopping.set()
        self._hurrying.set()

    async def run(self) -> None:
        """Serve jobs until `stop` was called and the running jobs have ended."""
        stops = asyncio.create_task(self._hear_stops()) if self._queue_api.has_stop_channel else None
        try:
            await self._take()
            await self._drain()
        finally:
            tasks = [*self._running.values(), *([stops] if stops else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------- taking

    async def _take(self) -> None:
        """Take jobs and start them, until `stop` is called."""
        failures, empties = Backoff(*_FAILURE_WAITS), Backoff(*_EMPTY_WAITS)
        while not self._stopping.is_set():
            try:
                await unless(self._stopping, self._ready())
            except Exception as error:  # the owner of the engine queue_api `stop`
                log.debug("the engine cannot serve jobs: %s", error)
                await self._stopping.wait()
                return
            room = self._concurrency - len(self._running)
            if room <= 0:
                await unless(self._stopping, asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED))
                continue
            if self._stopping.is_set():
                return
            asked_at = time.monotonic()
            try:
                jobs = await self._poll(room)
            except TooManyRequests:
                await self._pause(_TOO_MANY_SECONDS)
                continue
            except QueueError as error:
                if failures.failures == 0:
                    log.error("taking jobs from the queue failed: %s; retrying", error)
                await self._pause(failures.next())
                continue
            if failures.failures:
                log.info("the queue answers again after %d failed requests", failures.failures)
                failures.reset()
            for job in jobs:
                self._begin(job)
            if jobs or time.monotonic() - asked_at >= _HELD_SECONDS:
                empties.reset()
            else:
                await self._pause(empties.next())

    async def _poll(self, room: int) -> list[Any]:
        """The jobs of one long poll. `stop` ends the poll, unless its answer has begun to arrive."""
        asking = self._queue_api.ask_for_jobs(room, bool(self._running))
        response = await unless(self._stopping, asking, GRACE_SECONDS)
        return [] if response is None else await self._queue_api.read_jobs(response)

    def _begin(self, element: Any) -> None:
        delivery = delivered(element)
        if delivery is None:
            return
        job_id = delivery.id
        if job_id in self._running:
            log.warning("job %s was delivered again while it runs; the second delivery is ignored", job_id)
            return
        if delivery.error is None:
            work = self._work(job_id, delivery.job)
        else:
            work = self._report(job_id, delivery.error)
        task = asyncio.create_task(work, name=job_id)
        self._running[job_id] = task
        task.add_done_callback(lambda _: self._running.pop(job_id, None))

    async def _pause(self, seconds: float) -> None:
        await unless(self._stopping, asyncio.sleep(seconds))

    # ------------------------------------------------------------------------------------------------- one job

    async def _work(self, job_id: str, job: dict[str, Any]) -> None:
        """Run a job to its end and report its result. A job that the platform stops is cancelled, and needs no
        report."""
        started = time.monotonic()
        log.debug("job %s started", job_id)
        try:
            result, num_pieces = await self._stream(job_id, job)
            await self._report(job_id, result)
        except asyncio.CancelledError:
            log.info("job %s was stopped by the platform", job_id)
            raise
        except Exception:
            log.exception("job %s failed outside its handler", job_id)
            with contextlib.suppress(Exception):  # the report may fail for the same reason
                await self._queue_api.send_result(job_id, error_output(internal_error()))
            return
        outcome = "failed" if "error" in result else "ended"
        log.debug("job %s %s: %d pieces in %.2f s", job_id, outcome, num_pieces, time.monotonic() - started)

    async def _stream(self, job_id: str, job: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Send the job's outputs as they come. Returns its result, which repeats all of them, and their number."""
        outputs: list[Any] = []
        async with aclosing(JobRun(self._handling, job).outputs()) as source:
            async for output in source:
                if isinstance(output, dict) and output.get("error"):
                    return {"error": output["error"]}, len(outputs)
                outputs.append(output)
                try:
                    await self._queue_api.send_piece(job_id, output)
                except Refused as error:  # the result repeats it
                    log.error("job %s: the platform refused a piece of its output: %s", job_id, error)
                except QueueError as error:
                    log.error("job %s ends with an error: a piece of its stream was lost: %s", job_id, error)
                    return error_output(ApiError(503, "The stream could not be delivered.")), len(outputs)
        return {"output": outputs}, len(outputs)

    async def _report(self, job_id: str, result: dict[str, Any]) -> None:
        """Send the result. When the platform refuses it, send the reason as an error, so that the job ends."""
        try:
            await self._queue_api.send_result(job_id, result)
        except Refused as error:
            instead = after_refusal(job_id, error, is_error="error" in result)
            if instead is not None:
                with contextlib.suppress(QueueError):
                    await self._queue_api.send_result(job_id, instead)
        except QueueError as error:
            log.error("job %s: its result is lost: %s", job_id, error)

    # ------------------------------------------------------------------------------------------------- stopping

    async def _hear_stops(self) -> None:
        """Cancel the jobs that the platform stops, for as long as jobs run."""
        waits = Backoff(*_FAILURE_WAITS)
        while True:
            asked_at = time.monotonic()
            try:
                job_ids = await self._queue_api.stopped_jobs()
            except TooManyRequests:
                await asyncio.sleep(_TOO_MANY_SECONDS)
                continue
            except QueueError as error:
                log.debug("asking for stopped jobs failed: %s", error)
                await asyncio.sleep(waits.next())
                continue
            for job_id in job_ids:
                task = self._running.get(job_id)
                if task is not None:
                    task.cancel()
            if job_ids or time.monotonic() - asked_at >= _HELD_SECONDS:
                waits.reset()
            else:
                await asyncio.sleep(waits.next())

    async def _drain(self) -> None:
        """Wait for the running jobs. Those that have not ended in time end with an error."""
        if not self._running:
            return
        left = time_left(self._stopped_at, self._drain_timeout)
        log.info("waiting up to %.0f s for %d running jobs", left, len(self._running))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await unless(self._hurrying, self._all_ended())
        if not self._running:
            return
        log.warning("%d jobs did not end in time and end with an error", len(self._running))
        self._handling.fail_all(SHUTTING_DOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPORT_SECONDS):
                await self._all_ended()

    async def _all_ended(self) -> None:
        while self._running:
            await asyncio.wait(self._running.values())
            await asyncio.sleep(0)  # their callbacks remove them


def after_refusal(job_id: str, refusal: Refused, is_error: bool) -> dict[str, str] | None:
    """The result to send instead of one that the platform refused; None when nothing would end the job."""
    log.error("job %s: the platform refused its result: %s", job_id, refusal)
    if is_error or refusal.status in (404, 410):  # the platform no longer has the job
        return None
    return error_output(ApiError(502, f"The platform refused the job's result: {refusal}."))


async def keep_pinging(queue_api: QueueApi, job_ids: Callable[[], list[str]], seconds: float) -> None:
    """Ping until cancelled. This runs on the loop that does the work, so a loop that hangs stops pinging."""
    is_failing = False
    while True:
        try:
            await queue_api.ping(job_ids())
            is_failing = False
        except QueueError as error:
            log.log(logging.DEBUG if is_failing else logging.WARNING, "a ping failed: %s", error)
            is_failing = True
        await asyncio.sleep(seconds)
