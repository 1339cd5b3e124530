"""Keeps a store as the endpoint's jobs are, also one that fails for a while (a full disk): nothing waits for a store.

What could not be written is written whole as soon as it can be. Until then no answer promises it: a new job is refused,
and whoever ends a job hears that this is not stored yet (`is_stored`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ember.platform.jobs import Job, PlatformError
from ember.platform.store import Store

log = logging.getLogger(__name__)

_ALL = 2**62  # more than any number of a streamed output


class Keeper:
    """What the endpoint tells of its jobs; of these calls only `add` raises."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._late: dict[str, Job] = {}  # as they are, to be written
        self._gone: set[str] = set()  # to be deleted
        self._is_failing = False
        self._held: dict[str, Job] | None = None  # what `together` will write

    def add(self, job: Job) -> None:
        """A new job. Raises PlatformError 507 where it cannot be written."""
        try:
            self._store.save(job)
        except Exception as error:
            log.error("a job was refused, as it cannot be stored: %s", error)
            raise PlatformError(507, f"the job cannot be stored: {error}") from None

    def save(self, job: Job) -> None:
        if self._held is not None:
            self._held[job.id] = job
        else:
            self._save([job])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Collects what is saved inside the block and writes it once at the end, as each write waits for the disk."""
        self._held = {}
        try:
            yield
        finally:
            jobs, self._held = list(self._held.values()), None
            if jobs:
                self._save(jobs)

    def is_stored(self, job: Job) -> bool:
        """Whether a new process would find the job as it is; what is late is tried once more."""
        return job.id not in self._late or self._write(job)

    def add_chunk(self, job: Job) -> None:
        """The last of the job's streamed outputs is new."""
        self._try(job, lambda: self._store.add_chunk(job, job.num_streamed - 1, job.chunks[-1]))

    def drop_chunks(self, job: Job) -> None:
        """Clients have had all streamed outputs but those that are still in the job."""
        self._try(job, lambda: self._store.drop_chunks(job, job.num_taken))

    def save_later(self, job: Job) -> None:
        """The job and its streamed outputs, with the next `catch_up`."""
        self._late[job.id] = job

    def delete(self, job: Job) -> None:
        self._late.pop(job.id, None)
        if self._held is not None:
            self._held.pop(job.id, None)
        self._gone.add(job.id)
        self._delete(job.id)

    def catch_up(self) -> None:
        """Write what could not be written before."""
        is_written = all(self._write(job) for job in list(self._late.values()))
        is_written = is_written and all(self._delete(job_id) for job_id in list(self._gone))
        if is_written and self._is_failing:
            log.info("the store is complete again")
            self._is_failing = False

    def _save(self, jobs: Sequence[Job]) -> None:
        ready = [job for job in jobs if job.id not in self._late]
        try:
            self._store.save(*ready)
        except Exception as error:
            self._say(error)
            self._late.update({job.id: job for job in ready})

    def _try(self, job: Job, write: Callable[[], None]) -> None:
        if job.id in self._late:  # in its turn, with all that is missing
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
        log.log(level, "the store cannot be written: %s", error)
        self._is_failing = True
