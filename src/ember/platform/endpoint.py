"""The endpoint: its jobs, its queue and its workers, including timeouts and lost workers.

Everything runs on one event loop, so there are no locks. Clients wait for a job's event `changed`. Workers wait for
`_arrived` (a new job) and `_told` (a job to stop).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ember.platform.jobs import (
    CANCELLED,
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    IN_QUEUE,
    TIMED_OUT,
    Job,
    PlatformError,
    split_chunk,
)
from ember.platform.keeper import Keeper
from ember.platform.store import Store

log = logging.getLogger(__name__)

RESULT_SECONDS = {False: 1800.0, True: 60.0}  # how long results are kept, of /run and of /runsync
TAKE_BYTES = 32 * 2**20  # maximum size of the requests of jobs that are handed out together
MAX_RETRIES = 2  # for a job whose worker was lost
SILENT_SECONDS = 60.0  # silence after which a worker that has pinged counts as lost
FORGET_SECONDS = 300.0  # silence after which a worker is no longer listed


@dataclass(slots=True)
class WorkerSeen:
    """What is known of a worker from its calls. Times are those of `time.time()`."""

    id: str
    last_call: float
    last_ping: float | None = None
    unhealthy: str | None = None
    jobs: set[str] = field(default_factory=set)
    to_stop: list[str] = field(default_factory=list)


class Endpoint:
    """The queue and its jobs. `on_final` is called with each job that has just ended, for its webhook."""

    def __init__(self, store: Store, on_final: Callable[[Job], None] = lambda job: None) -> None:
        self.jobs: dict[str, Job] = {}
        self.workers: dict[str, WorkerSeen] = {}
        self.counts = {"completed": 0, "failed": 0, "retried": 0}
        self._keeper = Keeper(store)
        self._on_final = on_final
        self._queues: tuple[deque[Job], deque[Job]] = (deque(), deque())  # jobs of ordinary and of low priority
        self._arrived = asyncio.Event()
        self._told = asyncio.Event()
        for job in store.load():
            self._restore(job)

    def _restore(self, job: Job) -> None:
        """Add a job from the store. A job in progress stays so: its worker may not have noticed the restart."""
        self.jobs[job.id] = job
        if job.status == IN_QUEUE:
            self._queues[job.policy.low_priority].append(job)
        elif job.status == IN_PROGRESS and job.worker is not None:
            worker = self._worker(job.worker)
            worker.last_ping = time.time()
            worker.jobs.add(job.id)
        elif job.status in (COMPLETED, FAILED):
            self.counts["completed" if job.status == COMPLETED else "failed"] += 1

    # ------------------------------------------------------------------ for clients

    def submit(self, job: Job) -> Job:
        """Store and enqueue a new job. Raises PlatformError 507 if it cannot be stored."""
        self._keeper.add(job)
        self.jobs[job.id] = job
        self._enqueue(job)
        return job

    def get(self, job_id: str) -> Job:
        """The job with this id. Raises PlatformError 404."""
        job = self.jobs.get(job_id)
        if job is None:
            raise PlatformError(404, f"the job {job_id[:100]} does not exist; results are kept for a limited time")
        return job

    def newest(self, count: int) -> list[Job]:
        """The jobs that were submitted last, newest first."""
        return list(islice(reversed(self.jobs.values()), count))

    async def wait_final(self, job: Job, seconds: float) -> None:
        """Wait until the job has ended, at most `seconds`."""
        deadline = time.monotonic() + seconds
        while not job.is_final and await _wait(job.changed, deadline):
            pass

    async def wait_chunks(self, job: Job, seconds: float) -> None:
        """Wait until the job has unread streamed outputs or has ended, at most `seconds`."""
        deadline = time.monotonic() + seconds
        while not (job.chunks or job.is_final) and await _wait(job.changed, deadline):
            pass

    def take_chunks(self, job: Job) -> list[Any]:
        """Remove and return the streamed outputs that no client has read."""
        chunks = list(job.chunks)
        job.chunks.clear()
        if chunks:
            self._keeper.drop_chunks(job)
        return chunks

    def put_chunks_back(self, job: Job, chunks: list[Any], retries: int) -> None:
        """Put back outputs that did not reach a client. `retries`: the job's retries when they were taken; after a
        further retry they are outdated and dropped."""
        if job.retries == retries and job.id in self.jobs:
            job.chunks.extendleft(reversed(chunks))
            self._keeper.save_later(job)
            job.notify()

    def cancel(self, job: Job) -> None:
        """End a job at once and tell its worker to stop. A job that has ended is not changed."""
        if not job.is_final:
            self._stop(job, CANCELLED)

    def retry(self, job: Job) -> None:
        """Run a job again under its id. Raises PlatformError 400 unless it has failed or timed out."""
        if job.status not in (FAILED, TIMED_OUT):
            raise PlatformError(400, f"only FAILED or TIMED_OUT jobs can be retried; this one is {job.status}")
        self._requeue(job)

    def purge(self) -> list[Job]:
        """Cancel the queued jobs and return them."""
        waiting = [job for queue in self._queues for job in queue]
        with self._keeper.together():
            for job in waiting:
                self._stop(job, CANCELLED)
        return waiting

    def is_stored(self, job: Job) -> bool:
        """Whether the job's state is in the store. A state that is not is written now, if possible."""
        return self._keeper.is_stored(job)

    def health(self) -> dict[str, Any]:
        now = time.time()
        alive = [worker for worker in self.workers.values() if now - worker.last_call < SILENT_SECONDS]
        ill = sum(worker.unhealthy is not None for worker in alive)
        running = sum(bool(worker.jobs) for worker in alive if worker.unhealthy is None)
        return {
            "jobs": {
                **self.counts,
                "inProgress": sum(job.status == IN_PROGRESS for job in self.jobs.values()),
                "inQueue": sum(map(len, self._queues)),
            },
            "workers": {
                "idle": len(alive) - ill - running,
                "initializing": 0,
                "ready": len(alive) - ill,
                "running": running,
                "throttled": 0,
                "unhealthy": ill,
            },
        }

    # ------------------------------------------------------------------ for workers

    async def take(self, worker_id: str, count: int, seconds: float, is_gone: Callable[[], bool]) -> list[Job]:
        """Wait at most `seconds` for a job and return up to `count`. `is_gone`: whether the worker has disconnected."""
        self._worker(worker_id)
        deadline = time.monotonic() + seconds
        while not any(self._queues):
            if not await _wait(self._arrived, deadline):
                return []
        if is_gone():
            return []
        worker = self._worker(worker_id)
        taken: list[Job] = []
        size = 0
        with self._keeper.together():
            while len(taken) < count and (job := self._next(TAKE_BYTES - size if taken else None)) is not None:
                self._begin(job, worker)
                taken.append(job)
                size += job.size
        return taken

    def put_back(self, jobs: list[Job]) -> None:
        """Requeue jobs that did not reach their worker, because it disconnected."""
        with self._keeper.together():
            for job in jobs:
                if job.status == IN_PROGRESS:
                    self._release(job)
                    job.reset()
                    self._keeper.save(job)
                    self._enqueue(job, first=True)

    async def stops(self, worker_id: str, seconds: float) -> list[str]:
        """Wait at most `seconds` for a job that the worker has to stop, and return the ids of all of them."""
        deadline = time.monotonic() + seconds
        while not self._worker(worker_id).to_stop:
            if not await _wait(self._told, deadline):
                return []
        worker = self._worker(worker_id)
        ids, worker.to_stop = worker.to_stop, []
        return ids

    def stream(self, worker_id: str, job_id: str, output: Any) -> None:
        """Add a streamed output to a job. It is dropped if the job is no longer this worker's."""
        job = self._running(worker_id, job_id)
        if job is None:
            return
        for part in split_chunk(output):
            job.chunks.append(part)
            job.num_streamed += 1
            self._keeper.add_chunk(job)
        job.notify()

    def progress(self, worker_id: str, job_id: str, output: Any) -> None:
        """Set the progress of a running job, which /status shows."""
        job = self._running(worker_id, job_id)
        if job is not None:
            job.output = output
            self._keeper.save(job)
            job.notify()

    def done(self, worker_id: str, job_id: str, output: Any, error: Any) -> None:
        """End a job with its result. The result is dropped if the job is no longer this worker's."""
        job = self._running(worker_id, job_id)
        if job is not None:
            job.output, job.error = output, error
            self._finish(job, FAILED if error else COMPLETED)

    def refuse(self, worker_id: str, job_id: str, reason: str) -> None:
        """Fail a job because a report of it was refused, and tell its worker to stop."""
        job = self._running(worker_id, job_id) if job_id in self.jobs else None
        if job is not None:
            job.error = reason
            self._stop(job, FAILED)

    def ping(self, worker_id: str, unhealthy: str | None) -> None:
        worker = self._worker(worker_id)
        worker.last_ping = worker.last_call
        if unhealthy is not None and worker.unhealthy != unhealthy:
            log.warning("worker %s reports that it is unhealthy: %s", worker_id, unhealthy)
        worker.unhealthy = unhealthy

    # ------------------------------------------------------------------ time

    def sweep(self, now: float) -> None:
        """Periodic work: end jobs past their time limit, requeue jobs of lost workers, delete old results, and retry
        failed writes to the store. `now` is time.time()."""
        with self._keeper.together():
            self._age(now)
        self._keeper.catch_up()

    def _age(self, now: float) -> None:
        for job in list(self.jobs.values()):
            if now - job.created > job.policy.ttl:
                if not job.is_final:
                    self._stop(job, TIMED_OUT)
                self._forget(job)
            elif job.status == IN_PROGRESS and now - (job.started or now) > job.policy.execution_timeout:
                job.error = f"job timed out after {job.policy.execution_timeout:g} seconds"
                self._stop(job, TIMED_OUT)
            elif job.ended is not None and now > (job.kept_until or job.ended + RESULT_SECONDS[job.is_sync]):
                self._forget(job)
        for worker in list(self.workers.values()):
            if worker.last_ping is not None and now - worker.last_call > SILENT_SECONDS:
                self._bury(worker)
            if not worker.jobs and now - worker.last_call > FORGET_SECONDS:
                del self.workers[worker.id]

    def _bury(self, worker: WorkerSeen) -> None:
        """Requeue the jobs of a lost worker. Jobs with too many retries or with streamed output fail instead."""
        for job in [self.jobs[job_id] for job_id in worker.jobs if job_id in self.jobs]:
            log.warning("worker %s stopped pinging while it ran job %s", worker.id, job.id)
            if job.retries < MAX_RETRIES and job.num_streamed == 0:
                self._requeue(job)
            else:
                job.error = f"the worker {worker.id} stopped answering while it ran this job"
                self._finish(job, FAILED)
        worker.jobs.clear()
        worker.last_ping = None

    # ------------------------------------------------------------------ inside

    def _worker(self, worker_id: str) -> WorkerSeen:
        now = time.time()
        worker = self.workers.setdefault(worker_id, WorkerSeen(worker_id, now))
        worker.last_call = now
        return worker

    def _running(self, worker_id: str, job_id: str) -> Job | None:
        """The job if this worker runs it, else None. Raises PlatformError 404 for an unknown job.

        A queued job that a worker reports was handed out before a restart, while the store could not be written. It
        becomes that worker's job.
        """
        worker = self._worker(worker_id)
        job = self.get(job_id)
        if job.status == IN_QUEUE and job.retries == 0:
            self._queues[job.policy.low_priority].remove(job)
            self._begin(job, worker)
        return job if job.status == IN_PROGRESS and job.worker == worker_id else None

    def _begin(self, job: Job, worker: WorkerSeen) -> None:
        job.status = IN_PROGRESS
        job.started = time.time()
        job.worker = worker.id
        worker.jobs.add(job.id)
        if job.id in worker.to_stop:  # from an earlier attempt
            worker.to_stop.remove(job.id)
        self._keeper.save(job)
        job.notify()

    def _next(self, max_size: int | None) -> Job | None:
        """Remove and return the next job of the queue, unless its request is larger than `max_size` bytes."""
        queue = next((queue for queue in self._queues if queue), None)
        if queue is None or (max_size is not None and queue[0].size > max_size):
            return None
        return queue.popleft()

    def _enqueue(self, job: Job, first: bool = False) -> None:
        queue = self._queues[job.policy.low_priority]
        queue.appendleft(job) if first else queue.append(job)
        job.notify()
        self._arrived.set()
        self._arrived = asyncio.Event()

    def _requeue(self, job: Job) -> None:
        self._release(job)
        job.chunks.clear()
        self._keeper.drop_chunks(job)
        job.reset()
        job.retries += 1
        self.counts["retried"] += 1
        self._keeper.save(job)
        self._enqueue(job)

    def _stop(self, job: Job, status: str) -> None:
        """End a job and tell its worker to stop."""
        if job.status == IN_PROGRESS and job.worker in self.workers:
            self.workers[job.worker].to_stop.append(job.id)
            self._told.set()
            self._told = asyncio.Event()
        for queue in self._queues:
            if job in queue:
                queue.remove(job)
        self._finish(job, status)

    def _finish(self, job: Job, status: str) -> None:
        self._release(job)
        job.status = status
        job.ended = time.time()
        if status in (COMPLETED, FAILED):
            self.counts["completed" if status == COMPLETED else "failed"] += 1
        self._keeper.save(job)
        job.notify()
        self._on_final(job)

    def _release(self, job: Job) -> None:
        if job.worker in self.workers:
            self.workers[job.worker].jobs.discard(job.id)

    def _forget(self, job: Job) -> None:
        del self.jobs[job.id]
        self._keeper.delete(job)
        job.notify()


async def _wait(event: asyncio.Event, deadline: float) -> bool:
    """Wait for an event. Returns whether it was set before the deadline, a time of `time.monotonic()`."""
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    try:
        async with asyncio.timeout(left):
            await event.wait()
    except TimeoutError:
        return False
    return True
