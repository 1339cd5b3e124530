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
from tests.queue_platform.calls import Calls, platform

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


def test_streamed_outputs_over_several_restarts_are_read_once_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    read: list[str] = []

    async def say(calls: Calls, job_id: str, *texts: str) -> None:
        for text in texts:
            assert await calls.report("job-stream", job_id, json.dumps({"output": text})) == 200

    async def read_some(calls: Calls, job_id: str) -> None:
        _, body = await calls.client("GET", f"/stream/{job_id}")
        read.extend(each["output"] for each in body["stream"])

    async def run() -> None:
        async with platform(SqliteStore(path)) as calls:
            job_id = await calls.run(1)
            await calls.take()
            await say(calls, job_id, "a", "b")
            await read_some(calls, job_id)
            await say(calls, job_id, "c")
        async with platform(SqliteStore(path)) as calls:  # with one unread
            await say(calls, job_id, "d", "e")
        async with platform(SqliteStore(path)) as calls:  # with three unread
            await read_some(calls, job_id)
            await say(calls, job_id, "f")
            await read_some(calls, job_id)
        async with platform(SqliteStore(path)) as calls:  # with none unread
            await say(calls, job_id, "g")
        async with platform(SqliteStore(path)) as calls:
            assert calls.endpoint.jobs[job_id].num_streamed == 7
            await read_some(calls, job_id)

    asyncio.run(run())
    assert "".join(read) == "abcdefg"


def test_a_job_that_has_streamed_is_not_begun_anew_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"

    async def run() -> None:
        async with platform(SqliteStore(path)) as calls:
            job_id = await calls.run(1)
            await calls.take("dead")
            await calls.report("job-stream", job_id, '{"output": "a"}', "dead")
            await calls.client("GET", f"/stream/{job_id}")
        async with platform(SqliteStore(path)) as calls:
            calls.endpoint.sweep(time.time() + endpoint.SILENT_SECONDS + 1)
            failed = await calls.status(job_id)
            assert failed["status"] == "FAILED" and "stopped answering" in failed["error"]

    asyncio.run(run())


def test_what_a_retried_job_had_streamed_is_gone_after_a_restart_too(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"

    async def run() -> None:
        async with platform(SqliteStore(path)) as calls:
            job_id = await calls.run(1)
            await calls.take()
            await calls.report("job-stream", job_id, '{"output": "old"}')
            await calls.report("job-done", job_id, '{"error": "no"}')
            await calls.client("POST", f"/retry/{job_id}")
        async with platform(SqliteStore(path)) as calls:
            await calls.take()
            await calls.report("job-stream", job_id, '{"output": "new"}')
            _, body = await calls.client("GET", f"/stream/{job_id}")
            assert [each["output"] for each in body["stream"]] == ["new"]

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
