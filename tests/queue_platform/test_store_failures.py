"""A store that cannot be written: what runs goes on and ends, nobody waits for ever, and it is written later."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from ember.platform.store import SqliteStore
from tests.queue_platform.calls import Calls, platform, play

LARGE = "x" * 400_000


class SmallDisk:
    """A SQLite store on a disk that can be full: SQLite itself then refuses to grow the file."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(path)

    def fill(self) -> None:
        (pages,) = self.store._db.execute("PRAGMA page_count").fetchone()
        self.store._db.execute(f"PRAGMA max_page_count = {pages}")

    def free(self) -> None:
        self.store._db.execute("PRAGMA max_page_count = 1000000")


def test_a_job_ends_for_its_waiters_on_a_full_disk_and_is_stored_later(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "jobs.db")

    async def scenario(calls: Calls) -> None:
        waiting = asyncio.create_task(calls.client("POST", "/runsync", {"input": 1}))
        job_id = (await calls.take())["id"]
        disk.fill()
        assert await calls.report("job-done", job_id, json.dumps({"output": LARGE})) == 200
        _, body = await asyncio.wait_for(waiting, 10)
        assert (body["status"], body["output"]) == ("COMPLETED", LARGE)
        assert (await calls.client("GET", "/health"))[1]["jobs"]["completed"] == 1
        calls.endpoint.sweep(time.time())  # still full
        assert _stored(tmp_path)[job_id].status == "IN_PROGRESS"
        disk.free()
        calls.endpoint.sweep(time.time())
        assert _stored(tmp_path)[job_id].output == LARGE

    play(scenario, store=disk.store, poll=5)


def test_the_webhook_is_sent_all_the_same(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "jobs.db")
    received: list[Any] = []

    async def hook(http: web.Request) -> web.Response:
        received.append(await http.json())
        return web.Response()

    async def run() -> None:
        app = web.Application(client_max_size=2**20)
        app.router.add_post("/hook", hook)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with platform(disk.store) as calls:
            job_id = await calls.run(1, webhook=f"http://127.0.0.1:{runner.addresses[0][1]}/hook")
            await calls.take()
            disk.fill()
            await calls.report("job-done", job_id, json.dumps({"output": LARGE}))
            async with asyncio.timeout(10):
                while not received:
                    await asyncio.sleep(0.01)
        await runner.cleanup()

    asyncio.run(run())
    assert received[0]["output"] == LARGE


def test_a_job_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "jobs.db")

    async def scenario(calls: Calls) -> None:
        disk.fill()
        status, body = await calls.client("POST", "/run", {"input": LARGE})
        assert status == 507 and "full" in body["error"]
        assert not calls.endpoint.jobs
        assert await calls.take() is None
        disk.free()
        job_id = await calls.run(LARGE)
        assert (await calls.take())["id"] == job_id

    play(scenario, store=disk.store)


def test_streamed_outputs_on_a_full_disk_reach_the_client_and_then_the_disk(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "jobs.db")

    async def scenario(calls: Calls) -> None:
        job_id = await calls.run(1)
        await calls.take()
        disk.fill()
        for text in ("a" + LARGE, "b" + LARGE, "c" + LARGE):
            assert await calls.report("job-stream", job_id, json.dumps({"output": text})) == 200
            if text[0] == "a":
                _, body = await calls.client("GET", f"/stream/{job_id}")
                assert [each["output"] for each in body["stream"]] == [text]
        disk.free()
        calls.endpoint.sweep(time.time())
        stored = _stored(tmp_path)[job_id]
        assert [text[0] for text in stored.chunks] == ["b", "c"] and stored.num_streamed == 3

    play(scenario, store=disk.store)


def test_jobs_are_handed_out_and_forgotten_on_a_full_disk(tmp_path: Path) -> None:
    class Broken(SqliteStore):
        """Every write fails, also those that need no room."""

        is_broken = False

        def save(self, job: Any) -> None:
            self._fail()
            super().save(job)

        def delete(self, job: Any) -> None:
            self._fail()
            super().delete(job)

        def _fail(self) -> None:
            if self.is_broken:
                raise OSError("the disk is gone")

    store = Broken(tmp_path / "jobs.db")

    async def scenario(calls: Calls) -> None:
        first, second = await calls.run(1), await calls.run(2)
        store.is_broken = True
        assert [job["id"] for job in await calls.take_batch(2)] == [first, second]
        assert (await calls.client("POST", f"/cancel/{first}"))[1]["status"] == "CANCELLED"
        calls.endpoint.sweep(time.time() + 90_000)
        assert not calls.endpoint.jobs
        store.is_broken = False
        calls.endpoint.sweep(time.time())
        assert not _stored(tmp_path)

    play(scenario, store=store)


def _stored(directory: Path) -> dict[str, Any]:
    store = SqliteStore(directory / "jobs.db")
    try:
        return {job.id: job for job in store.load()}
    finally:
        store.close()
