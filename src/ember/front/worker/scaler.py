"""The SDK's job loop with three of its waits taken out; what it says to the platform stays the SDK's own.

The SDK's loop looks for new jobs every 100 ms, counts a job that waits there twice and then sleeps a second, and on
SIGTERM stays in its long poll (up to 90 s), where it loses a job that is delivered. Here a job starts when it arrives,
room is what is not running, and SIGTERM ends the poll, after a moment in which a job may still come. The HTTP calls,
the job's life, pings and stop signals are the SDK's (`get_job`, `handle_job`, `monitor_stop_signals`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import runpod
from runpod.http_client import TooManyRequests
from runpod.serverless.modules import rp_scale

log = logging.getLogger(__name__)

T = TypeVar("T")

TESTED_VERSION = "1.12."
_EMPTY_POLL_SECONDS = 0.1  # an empty answer sooner than this is not a long poll: wait before the next
_BACKOFF_SECONDS = (0.1, 5.0)
_GRACE_SECONDS = 0.3  # for a job that is on its way when the worker is told to stop


def install() -> None:
    """Have the SDK use this loop, where it is the version this was written for."""
    if not str(runpod.__version__).startswith(TESTED_VERSION):
        log.warning("runpod %s: its own job loop is used, as %sx is the tested one", runpod.__version__, TESTED_VERSION)
        return
    rp_scale.JobScaler = Scaler


class Scaler(rp_scale.JobScaler):  # type: ignore[misc]
    """One running task for each job, `concurrency_modifier` of them at most, and one poll for more."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._drained = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.current_concurrency: int = self.concurrency_modifier(1)
        self.jobs_queue: asyncio.Queue[Any] = asyncio.Queue()  # the SDK's handle_job marks each job done in it
        await super().run()

    def kill_worker(self) -> None:
        """Called from the signal handler, at any moment: no job is taken from here on, those running finish."""
        super().kill_worker()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def get_jobs(self, session: Any) -> None:
        """Take jobs and start them, until shutdown; then wait for those that run."""
        backoff = _BACKOFF_SECONDS[0]
        while self.is_alive():
            room = self.current_concurrency - len(self._running)
            if room <= 0:
                await _unless(self._stopping, asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED))
                continue
            asked_at = time.monotonic()
            try:
                poll = asyncio.wait_for(self.jobs_fetcher(session, room), timeout=self.jobs_fetcher_timeout)
                jobs = await _unless(self._stopping, poll, _GRACE_SECONDS) or []
                backoff = _BACKOFF_SECONDS[0]
            except TooManyRequests:
                await self._pause(_BACKOFF_SECONDS[1])
                continue
            except TimeoutError:
                continue
            except Exception as error:
                log.error("no job could be taken: %s: %s", type(error).__name__, error)
                await self._pause(backoff)
                backoff = min(2 * backoff, _BACKOFF_SECONDS[1])
                continue
            for job in jobs:
                self._begin(session, job)
            if not jobs and time.monotonic() - asked_at < _EMPTY_POLL_SECONDS:
                await self._pause(_EMPTY_POLL_SECONDS)
        while self._running:
            await asyncio.wait(self._running)
        self._drained.set()

    def _begin(self, session: Any, job: Any) -> None:
        if not isinstance(job, dict) or not isinstance(job.get("id"), str):
            log.error("the queue sent something that is not a job with an id")
            return
        self.jobs_queue.put_nowait(job)
        self.jobs_queue.get_nowait()
        self.job_progress.add(job["id"])
        task = asyncio.create_task(self._handle(session, job))
        self.jobs_tasks[job["id"]] = task
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _handle(self, session: Any, job: dict[str, Any]) -> None:
        try:
            await self.handle_job(session, job)
        except Exception:
            log.exception("job %s failed outside its handler", job["id"])

    async def run_jobs(self, session: Any) -> None:
        """Jobs run in tasks of their own; there is nothing to look for."""

    async def monitor_stop_signals(self, session: Any) -> None:
        """Jobs can be stopped until the last one has ended."""
        await _unless(self._drained, super().monitor_stop_signals(session))

    async def _pause(self, seconds: float) -> None:
        await _unless(self._stopping, asyncio.sleep(seconds))


async def _unless(event: asyncio.Event, awaitable: Awaitable[T], grace: float = 0.0) -> T | None:
    """The awaitable's result, or None where the event came first and the awaitable did not end `grace` seconds later.

    It is cancelled then. What it returns all the same is not dropped: `wait_for` may have its result already.
    """
    work = asyncio.ensure_future(awaitable)
    stop = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and grace:
            await asyncio.wait((work,), timeout=grace)
        if work.done():
            return work.result()
        work.cancel()
        await asyncio.wait((work,))
        return None if work.cancelled() or work.exception() is not None else work.result()
    finally:
        stop.cancel()
        work.cancel()
