"""The job loop of the runpod SDK, without three of its waits. All requests to the platform stay the SDK's own.

The SDK's loop looks for new jobs every 100 ms. It counts a job that waits there twice, and then sleeps a second. On
SIGTERM it stays in its long poll for up to 90 s, and loses a job that is delivered in it.

Here a job starts when it arrives, and jobs are taken while fewer than the allowed number run. SIGTERM ends the long
poll after a short grace period, in which a job may still arrive. Jobs that have not ended when the time to drain is
over end with an error. Each job of an answer is read by itself, and a job whose result is refused ends with an error.
The HTTP requests, the handling of a job, pings and stop signals are the SDK's (`get_job`, `handle_job`,
`monitor_stop_signals`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

import runpod
from runpod.http_client import TooManyRequests
from runpod.serverless.modules import rp_http, rp_scale

from ember.front.worker.delivery import Delivery, delivered, path_id, read_answer
from ember.front.worker.handler import Handling
from ember.front.worker.queue import GRACE_SECONDS, REPORT_SECONDS, SHUTTING_DOWN, after_refusal
from ember.front.worker.queue_api import QueueError, Refused, is_refusal
from ember.front.worker.waits import Backoff, time_left, unless
from ember.untrusted_json import UntrustedJsonError

log = logging.getLogger(__name__)

TESTED_VERSION = "1.12."
_EMPTY_POLL_SECONDS = 0.1  # an empty answer sooner than this did not wait for jobs, so the loop pauses
_FAILURE_WAITS = (0.1, 5.0)
_TOO_MANY_SECONDS = 5.0
_READ_BY_SDK = frozenset({"input", "webhook", "batchId"})  # keys of a job; its handler reads the input alone


def install(handling: Handling, ready: Callable[[], Future[Any]], drain_timeout: float) -> None:
    """Make the SDK use this loop, if its version is the tested one. `ready` ends when the engine can serve."""
    if not str(runpod.__version__).startswith(TESTED_VERSION):
        log.warning(
            "runpod %s is not the tested version %sx, so its own job loop runs", runpod.__version__, TESTED_VERSION
        )
        return
    rp_scale.JobScaler = lambda config: Scaler(config, handling, ready, drain_timeout)


class Scaler(rp_scale.JobScaler):  # type: ignore[misc]
    """Runs each job in a task, at most `concurrency_modifier` at once, and polls for more."""

    def __init__(
        self, config: dict[str, Any], handling: Handling, ready: Callable[[], Future[Any]], drain_timeout: float
    ) -> None:
        super().__init__(config)
        self._handling = handling
        self._ready = ready
        self._drain_timeout = drain_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._drained = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._stopped_at: float | None = None  # on time.monotonic()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.current_concurrency: int = self.concurrency_modifier(1)
        self.jobs_queue: asyncio.Queue[Any] = asyncio.Queue()  # the SDK's handle_job marks each job done in it
        await super().run()

    def kill_worker(self) -> None:
        """Take no more jobs, and let those that run finish. A second call ends them. The signal handler calls this, at
        any moment."""
        event = self._stopping if self.is_alive() else self._hurrying
        self._stopped_at = self._stopped_at or time.monotonic()
        super().kill_worker()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(event.set)

    async def get_jobs(self, session: Any) -> None:
        """Take jobs and start them until the worker shuts down, then wait for the running ones."""
        backoff = Backoff(*_FAILURE_WAITS)
        while self.is_alive():
            try:
                await unless(self._stopping, asyncio.wrap_future(self._ready()))
            except Exception as error:  # the process ends when the running jobs have reported it
                log.debug("the engine cannot serve jobs: %s", error)
                await self._stopping.wait()
                break
            if not self.is_alive():
                break
            room = self.current_concurrency - len(self._running)
            if room <= 0:
                await unless(self._stopping, asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED))
                continue
            asked_at = time.monotonic()
            try:
                asking = self.jobs_fetcher(_JobTake(session), room)
                # It may lose a cancellation to an answer of the same turn, whose jobs are then not lost.
                poll = asyncio.wait_for(asking, timeout=self.jobs_fetcher_timeout)  # noqa: TID251
                jobs = await unless(self._stopping, poll, GRACE_SECONDS) or []
                backoff.reset()
            except TooManyRequests:
                await self._pause(_TOO_MANY_SECONDS)
                continue
            except TimeoutError:
                continue
            except Exception as error:
                log.error("taking jobs from the queue failed: %s: %s; retrying", type(error).__name__, error)
                await self._pause(backoff.next())
                continue
            for job in jobs:
                self._begin(session, job)
            if not jobs and time.monotonic() - asked_at < _EMPTY_POLL_SECONDS:
                await self._pause(_EMPTY_POLL_SECONDS)
        await self._drain()
        self._drained.set()

    async def _drain(self) -> None:
        """Wait for the running jobs. Those that have not ended in time end with an error."""
        if self._running:
            left = time_left(self._stopped_at, self._drain_timeout)
            await unless(self._hurrying, asyncio.wait(self._running, timeout=left))
        if self._running:
            log.warning("%d jobs did not end in time and end with an error", len(self._running))
            self._handling.fail_all(SHUTTING_DOWN)
            await asyncio.wait(self._running, timeout=REPORT_SECONDS)
        for task in self._running:
            task.cancel()

    def _begin(self, session: Any, element: Any) -> None:
        delivery = delivered(element)
        if delivery is None:
            return
        name = delivery.path_id
        if name in self.jobs_tasks:
            log.warning("job %s was delivered again while it runs; the second delivery is ignored", delivery.id)
            return
        task = asyncio.create_task(self._handle(session, delivery))
        self.jobs_tasks[name] = task  # the SDK removes it by this id
        self._running.add(task)
        task.add_done_callback(lambda _: self._ended(name, task))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self.jobs_tasks.get(name) is task:
            del self.jobs_tasks[name]

    async def stop_job(self, job_id: str) -> bool:
        try:
            return bool(await super().stop_job(path_id(job_id)))
        except UnicodeEncodeError:  # no id that was ever delivered
            return False

    async def _handle(self, session: Any, delivery: Delivery) -> None:
        """Run one job with the SDK's `handle_job`. The SDK puts the job's id into addresses and into a header
        unchanged, and copies some keys of the job. So it gets the percent-encoded id, and those keys alone."""
        job = {name: value for name, value in delivery.job.items() if name in _READ_BY_SDK}
        job["id"] = delivery.path_id
        try:
            if delivery.error is not None:
                await rp_http.send_result(session, delivery.error, job, is_stream=True)
                return
            self.jobs_queue.put_nowait(job)
            self.jobs_queue.get_nowait()
            self.job_progress.add(job["id"])
            reports = _JobReports(session, rp_http.JOB_DONE_URL.replace("$ID", job["id"]))
            await self.handle_job(reports, job)
            if reports.refused is not None:
                instead = after_refusal(delivery.id, reports.refused, reports.is_error)
                if instead is not None:
                    await rp_http.send_result(session, instead, job, is_stream=True)
        except Exception:
            log.exception("job %s failed outside its handler", delivery.id)

    async def run_jobs(self, session: Any) -> None:
        """Do nothing: jobs are started by `get_jobs`."""

    async def monitor_stop_signals(self, session: Any) -> None:
        """Listen for stop signals until the last job has ended."""
        await unless(self._drained, super().monitor_stop_signals(session))

    async def _pause(self, seconds: float) -> None:
        await unless(self._stopping, asyncio.sleep(seconds))


class _JobTake:
    """The SDK's session for one job-take. It reads each job of the answer by itself, so a broken one costs no other."""

    def __init__(self, session: Any) -> None:
        self._session = session

    @contextlib.asynccontextmanager
    async def get(self, url: str) -> AsyncIterator[_Answer]:
        async with self._session.get(url) as response:
            yield _Answer(response)


class _JobReports:
    """The SDK's session for one job's pieces and result. It keeps a refusal of the result, which the SDK only logs."""

    def __init__(self, session: Any, result_url: str) -> None:
        self._session = session
        self._result_url = result_url  # without the query that the SDK adds
        self.headers: dict[
            str, str
        ] = {}  # the SDK writes the job's id into its session's headers, which all jobs would share
        self.refused: Refused | None = None
        self.is_error = False  # whether the refused result is an error

    async def request(self, method: str, url: str, headers: dict[str, str], **options: Any) -> Any:
        response = await self._session.request(method, url, headers={**self.headers, **headers}, **options)
        if url.startswith(self._result_url) and is_refusal(response.status):
            self.refused = Refused(response.status, await response.text(errors="replace"))
            self.is_error = str(options.get("data")).startswith('{"error"')
        return response


class _Answer:
    """A response whose JSON is the list of its jobs, each to be passed to `delivered`."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    async def json(self) -> list[Any]:
        """Raises QueueError when the answer is not JSON. The SDK would take a ValueError for an empty answer."""
        content = await self._response.read()
        try:
            return await read_answer(content) if content.strip() else []
        except UntrustedJsonError as error:
            raise QueueError(f"the answer is not JSON: {error}") from None
