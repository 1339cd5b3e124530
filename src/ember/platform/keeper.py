"""Keeps the store in sync with the endpoint's jobs, also across failures of the store (a full disk).

Nothing waits for a failing store. Failed writes are repeated as soon as possible. Until then no response promises them:
a new job is refused, and the end of a job is answered with an error (`is_stored`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ember.platform.jobs import Job, PlatformError
from ember.platform.store import Store

log = logging.getLogger(__name__)

_ALL = 2**62  # larger than the number of any streamed output


class Keeper:
    """Writes the endpoint's changes of jobs to the store. Only `add` raises."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._late: dict[str, Job] = {}  # jobs whose state has still to be written
        self._gone: set[str] = set()  # ids of jobs that have still to be deleted
        self._is_failing = False
        self._held: dict[str, Job] | None = None  # jobs that `together` will write

    def add(self, job: Job) -> None:
        """Write a new job. Raises PlatformError 507 if it cannot be written."""
        try:
            self._store.save(job)
        except Exception as error:
            log.error("a job was refused because it cannot be stored: %s", error)
            raise PlatformError(507, f"the job cannot be stored: {error}") from None

    def save(self, job: Job) -> None:
        if self._held is not None:
            self._held[job.id] = job
        else:
            self._save([job])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Collect the jobs saved inside the block and write them at its end, since each write waits for the disk."""
        self._held = {}
        try:
            yield
        finally:
            jobs, self._held = list(self._held.values()), None
            if jobs:
                self._save(jobs)

    def is_stored(self, job: Job) -> bool:
        """Whether the job's state is in the store. A state that is not is written now, if possible."""
        return job.id not in self._late or self._write(job)

    def add_chunk(self, job: Job) -> None:
        """Write the last of the job's streamed outputs."""
        self._try(job, lambda: self._store.add_chunk(job, job.num_streamed - 1, job.chunks[-1]))

    def drop_chunks(self, job: Job) -> None:
        """Delete the streamed outputs that clients have read: all but those still in the job."""
        self._try(job, lambda: self._store.drop_chunks(job, job.num_taken))

    def save_later(self, job: Job) -> None:
        """Write the job and its streamed outputs at the next `catch_up`."""
        self._late[job.id] = job

    def delete(self, job: Job) -> None:
        self._late.pop(job.id, None)
        if self._held is not None:
            self._held.pop(job.id, None)
        self._gone.add(job.id)
        self._delete(job.id)

    def catch_up(self) -> None:
        """Repeat the writes that failed before."""
        is_written = all(self._write(job) for job in list(self._late.values()))
        is_written = is_written and all(self._delete(job_id) for job_id in list(self._gone))
        if is_written and self._is_failing:
            log.info("the store works again and is complete")
            self._is_failing = False

    def _save(self, jobs: Sequence[Job]) -> None:
        ready = [job for job in jobs if job.id not in self._late]
        try:
            self._store.save(*ready)
        except Exception as error:
            self._say(error)
            self._late.update({job.id: job for job in ready})

    def _try(self, job: Job, write: Callable[[], None]) -> None:
        if job.id in self._late:  # `catch_up` writes the whole job
            return
        try:
            write()
        except Exception as error:
            self._say(error)
            self._late[job.id] = job

    def _write(self, job: Job) -> bool:
        try:
            self._store.drop_chunks(job, _ALL)
            self._store.save(job)
            for number, output in enumerate(job.chunks, job.num_taken):
                self._store.add_chunk(job, number, output)
        except Exception as error:
            self._say(error)
            return False
        del self._late[job.id]
        return True

    def _delete(self, job_id: str) -> bool:
        try:
            self._store.delete(job_id)
        except Exception as error:
            self._say(error)
            return False
        self._gone.discard(job_id)
        return True

    def _say(self, error: Exception) -> None:
        level = logging.DEBUG if self._is_failing else logging.ERROR
        log.log(level, "a write to the store failed and will be repeated: %s", error)
        self._is_failing = True
