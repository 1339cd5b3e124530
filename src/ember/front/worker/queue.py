"""The job loop of our own queue client: jobs are taken while there is room, run, streamed and reported.

A job is taken only when the engine can serve it and one of `concurrency` places is free, and starts the moment it
arrives. Each job has one POST in flight; what is generated meanwhile is joined into the next (`Pieces`). Told to stop,
the open long poll is given up after a moment in which a job may still come; what was delivered is run; what has not
ended after `drain_timeout` ends with an error. Pings and stop signals go on to the last.
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
from ember.front.worker.calls import Calls, QueueError, Refused, TooManyRequests
from ember.front.worker.delivery import delivered
from ember.front.worker.handler import Handling, JobRun
from ember.front.worker.outputs import error_output
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
    """Serves jobs until it is told to stop. `ready` returns when a job can be served; it raises when none ever will."""

    def __init__(
        self,
        calls: Calls,
        handling: Handling,
        concurrency: int,
        ready: Callable[[], Awaitable[Any]],
        drain_timeout: float,
    ) -> None:
        self._calls = calls
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
        """The jobs under way, for the pings."""
        return list(self._running)

    def stop(self, drain_timeout: float | None = None) -> None:
        """Take no more jobs and let `run` return once those under way have ended, or the time for that is up."""
        if drain_timeout is not None:
            self._drain_timeout = drain_timeout
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stopping.set()

    def hurry(self) -> None:
        """Do not wait for the jobs under way: they end with an error now."""
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stopping.set()
        self._hurrying.set()

    async def run(self) -> None:
        """Serve until `stop` and its drain."""
        stops = asyncio.create_task(self._hear_stops()) if self._calls.has_stop_channel else None
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
        """Take jobs and start them until told to stop."""
        failures, empties = Backoff(*_FAILURE_WAITS), Backoff(*_EMPTY_WAITS)
        while not self._stopping.is_set():
            try:
                await unless(self._stopping, self._ready())
            except Exception as error:  # whoever owns the engine ends this loop
                log.debug("the engine cannot serve: %s", error)
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
                    log.error("no job could be taken: %s; it is tried again", error)
                await self._pause(failures.next())
                continue
            if failures.failures:
                log.info("the queue answers again after %d failures", failures.failures)
                failures.reset()
            for job in jobs:
                self._begin(job)
            if jobs or time.monotonic() - asked_at >= _HELD_SECONDS:
                empties.reset()
            else:
                await self._pause(empties.next())

    async def _poll(self, room: int) -> list[Any]:
        """The jobs of one long poll. It is given up when told to stop, but never once its answer has begun."""
        asking = self._calls.ask_for_jobs(room, bool(self._running))
        response = await unless(self._stopping, asking, GRACE_SECONDS)
        return [] if response is None else await self._calls.read_jobs(response)

    def _begin(self, element: Any) -> None:
        delivery = delivered(element)
        if delivery is None:
            return
        job_id = delivery.id
        if job_id in self._running:
            log.warning("job %s was delivered again while it runs; it runs once", job_id)
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
        """Run a job to its end and report it. Cancelled when the platform stops the job, which then needs no report."""
        started = time.monotonic()
        log.debug("job %s started", job_id)
        try:
            result, num_pieces = await self._stream(job_id, job)
            await self._report(job_id, result)
        except asyncio.CancelledError:
            log.info("job %s stopped", job_id)
            raise
        except Exception:
            log.exception("job %s failed outside its handler", job_id)
            with contextlib.suppress(Exception):  # what can be said of it must not be what failed
                await self._calls.send_result(job_id, error_output(internal_error()))
            return
        outcome = "failed" if "error" in result else "ended"
        log.debug("job %s %s: %d pieces in %.2f s", job_id, outcome, num_pieces, time.monotonic() - started)

    async def _stream(self, job_id: str, job: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Send the job's outputs as they come. Returns its result, all of them once more, and how many there were."""
        outputs: list[Any] = []
        async with aclosing(JobRun(self._handling, job).outputs()) as source:
            async for output in source:
                if isinstance(output, dict) and output.get("error"):
                    return {"error": output["error"]}, len(outputs)
                outputs.append(output)
                try:
                    await self._calls.send_piece(job_id, output)
                except Refused as error:  # the result has it all the same
                    log.error("job %s: a piece was refused: %s", job_id, error)
                except QueueError as error:
                    log.error("job %s is given up, its stream is cut: %s", job_id, error)
                    return error_output(ApiError(503, "The stream could not be delivered.")), len(outputs)
        return {"output": outputs}, len(outputs)

    async def _report(self, job_id: str, result: dict[str, Any]) -> None:
        """Send the result; where it is refused, the reason as an error, so that the job does not stay open."""
        try:
            await self._calls.send_result(job_id, result)
        except Refused as error:
            instead = after_refusal(job_id, error, is_error="error" in result)
            if instead is not None:
                with contextlib.suppress(QueueError):
                    await self._calls.send_result(job_id, instead)
        except QueueError as error:
            log.error("job %s: the result is lost: %s", job_id, error)

    # ------------------------------------------------------------------------------------------------- stopping

    async def _hear_stops(self) -> None:
        """Cancel the jobs that the platform wants stopped, to the end of the last one."""
        waits = Backoff(*_FAILURE_WAITS)
        while True:
            asked_at = time.monotonic()
            try:
                job_ids = await self._calls.stopped_jobs()
            except TooManyRequests:
                await asyncio.sleep(_TOO_MANY_SECONDS)
                continue
            except QueueError as error:
                log.debug("stop signals: %s", error)
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
        """Wait for the jobs under way; those that take too long end with an error."""
        if not self._running:
            return
        left = time_left(self._stopped_at, self._drain_timeout)
        log.info("%d jobs have %.0f s to finish", len(self._running), left)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await unless(self._hurrying, self._all_ended())
        if not self._running:
            return
        log.warning("%d jobs are cut short", len(self._running))
        self._handling.fail_all(SHUTTING_DOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPORT_SECONDS):
                await self._all_ended()

    async def _all_ended(self) -> None:
        while self._running:
            await asyncio.wait(self._running.values())
            await asyncio.sleep(0)  # their callbacks take them off


def after_refusal(job_id: str, refusal: Refused, is_error: bool) -> dict[str, str] | None:
    """The result to send in the place of one that the platform has refused; None where that would not end the job."""
    log.error("job %s: the result was refused: %s", job_id, refusal)
    if is_error or refusal.status in (404, 410):  # of the latter the job is gone
        return None
    return error_output(ApiError(502, f"The platform refused the job's result: {refusal}."))


async def keep_pinging(calls: Calls, job_ids: Callable[[], list[str]], seconds: float) -> None:
    """Ping until cancelled. It runs on the loop that does the work: one that hangs falls silent."""
    is_failing = False
    while True:
        try:
            await calls.ping(job_ids())
            is_failing = False
        except QueueError as error:
            log.log(logging.DEBUG if is_failing else logging.WARNING, "a ping failed: %s", error)
            is_failing = True
        await asyncio.sleep(seconds)
