"""The stores of jobs and results: memory only, or a SQLite file that survives the process."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ember.platform.jobs import Job, Policy
from ember.untrusted_json import QUEUE_DEPTH, loads

log = logging.getLogger(__name__)

_COLUMNS = {
    "id": "TEXT PRIMARY KEY",
    "status": "TEXT NOT NULL",
    "created": "REAL NOT NULL",
    "started": "REAL",
    "ended": "REAL",
    "worker": "TEXT",
    "webhook": "TEXT",
    "is_sync": "INTEGER NOT NULL",
    "retries": "INTEGER NOT NULL",
    "num_streamed": "INTEGER NOT NULL",
    "input": "TEXT NOT NULL",  # these are JSON
    "policy": "TEXT NOT NULL",
    "extra": "TEXT NOT NULL",
    "output": "TEXT NOT NULL",
    "error": "TEXT NOT NULL",
}
_JSON = ("input", "policy", "extra", "output", "error")


class StoreError(Exception):
    """The store cannot be used. The message is one line."""


class Store(Protocol):
    """A store of jobs. It is called on the event loop, so calls must be short. A call that raises changed nothing."""

    def load(self) -> list[Job]:
        """All jobs, oldest first."""

    def save(self, *jobs: Job) -> None:
        """Write all of the jobs or none. They are on the disk when this returns."""

    def add_chunk(self, job: Job, number: int, output: Any) -> None:
        """Write a streamed output. Numbers count from 0 over the whole life of a job, also across restarts."""

    def drop_chunks(self, job: Job, before: int) -> None:
        """Delete the streamed outputs whose number is less than `before`, which clients have read."""

    def delete(self, job_id: str) -> None: ...
    def close(self) -> None: ...


def open_store(spec: str) -> Store:
    """Open the store `memory` or `sqlite:FILE`. Raises StoreError."""
    if spec == "memory":
        return MemoryStore()
    kind, _, path = spec.partition(":")
    if kind != "sqlite" or not path:
        raise StoreError(f"the store must be `memory` or `sqlite:FILE`, not {spec!r}")
    return SqliteStore(Path(path))


class MemoryStore:
    """A store that keeps nothing: the endpoint's jobs are in memory anyway."""

    def load(self) -> list[Job]:
        return []

    def save(self, *jobs: Job) -> None:
        pass

    def add_chunk(self, job: Job, number: int, output: Any) -> None:
        pass

    def drop_chunks(self, job: Job, before: int) -> None:
        pass

    def delete(self, job_id: str) -> None:
        pass

    def close(self) -> None:
        pass


class SqliteStore:
    """One row for each job and one for each streamed output that no client has read.

    SQLite's write-ahead log is synced to the disk for jobs, which takes milliseconds. It is not synced for streamed
    outputs, which take tens of microseconds: a crash of the machine, not of the process, may lose the last of them.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
            self._db.execute(f"CREATE TABLE IF NOT EXISTS jobs ({columns})")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS chunks (job TEXT NOT NULL, number INTEGER NOT NULL, output TEXT NOT NULL, "
                "PRIMARY KEY (job, number)) WITHOUT ROWID"
            )
            found = {row[1] for row in self._db.execute("PRAGMA table_info(jobs)")}
        except sqlite3.Error as error:
            raise StoreError(f"sqlite:{path} cannot be used: {error}") from None
        if found != set(_COLUMNS):
            raise StoreError(f"sqlite:{path} has the jobs of another version of Ember; name another file")
        places = ", ".join("?" for _ in _COLUMNS)
        self._insert = f"INSERT OR REPLACE INTO jobs ({', '.join(_COLUMNS)}) VALUES ({places})"

    def load(self) -> list[Job]:
        jobs = []
        for row in self._db.execute(f"SELECT {', '.join(_COLUMNS)} FROM jobs ORDER BY created, id"):
            try:
                jobs.append(self._job(dict(zip(_COLUMNS, row, strict=True))))
            except (ValueError, TypeError) as error:  # the other jobs are loaded
                log.error("the job %s in the store cannot be read and is skipped: %s", row[0], error)
        return jobs

    def _job(self, values: dict[str, Any]) -> Job:
        size = len(values["input"])
        values.update({name: loads(values[name], QUEUE_DEPTH) for name in _JSON})
        values["policy"] = Policy(**values["policy"])
        values["is_sync"] = bool(values["is_sync"])
        chunks = self._db.execute("SELECT output FROM chunks WHERE job = ? ORDER BY number", (values["id"],))
        return Job(**values, size=size, chunks=deque(loads(output, QUEUE_DEPTH) for (output,) in chunks))

    def save(self, *jobs: Job) -> None:
        rows = [_row(job) for job in jobs]
        with self._together(is_forced=True):
            self._db.executemany(self._insert, rows)

    def add_chunk(self, job: Job, number: int, output: Any) -> None:
        text = _text(output)
        with self._together():
            self._db.execute("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)", (job.id, number, text))
            self._db.execute("UPDATE jobs SET num_streamed = ? WHERE id = ?", (number + 1, job.id))

    def drop_chunks(self, job: Job, before: int) -> None:
        with self._together():
            self._db.execute("DELETE FROM chunks WHERE job = ? AND number < ?", (job.id, before))

    def delete(self, job_id: str) -> None:
        with self._together():
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
            self._db.execute("DELETE FROM chunks WHERE job = ?", (job_id,))

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _together(self, is_forced: bool = False) -> Iterator[None]:
        """A transaction. With `is_forced` it returns when the writes are on the disk."""
        self._db.execute(f"PRAGMA synchronous={'FULL' if is_forced else 'NORMAL'}")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def _row(job: Job) -> list[Any]:
    values = {name: getattr(job, name) for name in _COLUMNS} | {"policy": asdict(job.policy)}
    return [_text(value) if name in _JSON else value for name, value in values.items()]


def _text(value: Any) -> str:
    """JSON in ASCII, which can represent the unpaired surrogates that clients send."""
    return json.dumps(value)
