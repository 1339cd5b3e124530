"""Jobs and results over a restart of the platform."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from ember.platform import endpoint
from ember.platform.store import MemoryStore, SqliteStore, StoreError, open_store
from tests.queue_platform.calls import platform

GIVEN: dict[str, Any] = {"text": "日本", "half": "\ud800", "large": 2**70, "none": None}


def test_jobs_and_results_outlive_the_platform(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"

    async def before() -> dict[str, str]:
        async with platform(SqliteStore(path)) as calls:
            names = ("done", "failed", "running", "waiting", "low", "cancelled")
            jobs = {name: await calls.run({**GIVEN, "name": name}) for name in names[:3]}
            assert len(await calls.take_batch(3)) == 3
            await calls.report("job-done", jobs["done"], json.dumps({"output": GIVEN}))
            await calls.report("job-done", jobs["failed"], '{"error": "no"}')
            for text in ("a", "b", "c"):
                await calls.report("job-stream", jobs["running"], json.dumps({"output": text}))
                if text == "a":
                    await calls.client("GET", f"/stream/{jobs['running']}")
            jobs["low"] = await calls.run(2, policy={"lowPriority": True})
            jobs["waiting"] = await calls.run(1, webhook="http://127.0.0.1:9/x", policy={"ttl": 11_000})
            jobs["cancelled"] = await calls.run(3)
            await calls.client("POST", f"/cancel/{jobs['cancelled']}")
            return jobs

    async def after(jobs: dict[str, str]) -> None:
        async with platform(SqliteStore(path)) as calls:
            assert (await calls.status(jobs["done"]))["output"] == GIVEN
            assert (await calls.status(jobs["failed"]))["error"] == "no"
            assert (await calls.status(jobs["cancelled"]))["status"] == "CANCELLED"
            _, health = await calls.client("GET", "/health")
            assert health["jobs"] == {"completed": 1, "failed": 1, "retried": 0, "inProgress": 1, "inQueue": 2}
            # The worker of the running job has not noticed; what its client has not read yet is still there.
            await calls.report("job-stream", jobs["running"], '{"output": "d"}')
            _, streamed = await calls.client("GET", f"/stream/{jobs['running']}")
            assert [each["output"] for each in streamed["stream"]] == ["b", "c", "d"]
            await calls.report("job-done", jobs["running"], '{"output": ["a", "b", "c", "d"]}')
            assert (await calls.status(jobs["running"]))["status"] == "COMPLETED"
            taken = await calls.take_batch(5)
            assert [job["id"] for job in taken] == [jobs["waiting"], jobs["low"]]
            assert taken[0]["webhook"] == "http://127.0.0.1:9/x"
            calls.endpoint.sweep(time.time() + 12)
            assert (await calls.client("GET", f"/status/{jobs['waiting']}"))[0] == 404

    async def at_last(jobs: dict[str, str]) -> None:
        async with platform(SqliteStore(path)) as calls:
            assert (await calls.status(jobs["running"]))["output"] == ["a", "b", "c", "d"]
            assert (await calls.client("GET", f"/status/{jobs['waiting']}"))[0] == 404
            calls.endpoint.sweep(time.time() + 90_000)
        rows = sqlite3.connect(path)
        assert rows.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
        assert rows.execute("SELECT count(*) FROM chunks").fetchone() == (0,)

    jobs = asyncio.run(before())
    asyncio.run(after(jobs))
    asyncio.run(at_last(jobs))


def test_a_worker_that_died_with_the_platform(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"

    async def run() -> None:
        async with platform(SqliteStore(path)) as calls:
            job_id = await calls.run(1)
            await calls.take("dead")
        async with platform(SqliteStore(path)) as calls:
            calls.endpoint.sweep(time.time() + endpoint.SILENT_SECONDS + 1)
            assert (await calls.take("alive"))["id"] == job_id

    asyncio.run(run())


def test_stores_by_name(tmp_path: Path) -> None:
    assert isinstance(open_store("memory"), MemoryStore)
    store = open_store(f"sqlite:{tmp_path}/a.db")
    assert isinstance(store, SqliteStore) and store.load() == []
    store.close()


@pytest.mark.parametrize("spec", ["sqlite:", "redis:x", "", "sqlite:/no/such/directory/a.db"])
def test_stores_that_cannot_be(spec: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(spec)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_store_of_ours(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("not a database, but long enough to be looked at" * 10)
    with pytest.raises(StoreError, match="text.db"):
        SqliteStore(text)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE jobs (id TEXT)")
    with pytest.raises(StoreError, match="another version"):
        SqliteStore(other)
