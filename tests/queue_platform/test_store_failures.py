"""A store that cannot be written: what runs goes on and ends, nobody waits for ever, and it is written later."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ember.platform import endpoint
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
        assert await calls.report("job-done", job_id, json.dumps({"output": LARGE})) == 507  # not stored: say so
        _, body = await asyncio.wait_for(waiting, 10)
        assert (body["status"], body["output"]) == ("COMPLETED", LARGE)
        assert (await calls.client("GET", "/health"))[1]["jobs"]["completed"] == 1
        calls.endpoint.sweep(time.time())  # still full
        assert _stored(tmp_path)[job_id].status == "IN_PROGRESS"
        assert await calls.report("job-done", job_id, json.dumps({"output": LARGE})) == 507
        disk.free()
        assert await calls.report("job-done", job_id, json.dumps({"output": "another"})) == 200
        assert _stored(tmp_path)[job_id].output == LARGE  # the first that arrived
        assert (await calls.status(job_id))["output"] == LARGE
        assert calls.endpoint.counts["completed"] == 1

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

        def save(self, *jobs: Any) -> None:
            self._fail()
            super().save(*jobs)

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
        status, body = await calls.client("POST", f"/cancel/{first}")
        assert (status, body["status"]) == (507, "CANCELLED") and "stored" in body["error"]
        calls.endpoint.sweep(time.time() + 90_000)
        assert not calls.endpoint.jobs
        store.is_broken = False
        calls.endpoint.sweep(time.time())
        assert not _stored(tmp_path)

    play(scenario, store=store)


def test_what_was_answered_with_200_holds_after_the_process_was_killed_on_a_full_disk(tmp_path: Path) -> None:
    """Whatever the store refuses is told; a new process on the file, as after a kill, knows all that was promised."""
    disk = SmallDisk(tmp_path / "jobs.db")

    async def scenario(calls: Calls) -> None:
        ids = [await calls.run("x" * 3_000) for _ in range(40)]
        await calls.take_batch(20)
        failed = ids[19]
        await calls.report("job-done", failed, '{"error": "no"}')
        disk.fill()
        promised: dict[str, str] = {}
        for number, job_id in enumerate(ids):
            if number < 10:
                output = json.dumps({"output": "y" * 5_000})
                status, told = await calls.report("job-done", job_id, output), "COMPLETED"
            elif number < 19 or 20 <= number < 30:
                status, told = (await calls.client("POST", f"/cancel/{job_id}"))[0], "CANCELLED"
            elif job_id == failed:
                status, told = (await calls.client("POST", f"/retry/{job_id}"))[0], "IN_QUEUE"
            else:
                continue
            assert status in (200, 507)
            if status == 200:
                promised[job_id] = told
        stored = _stored(tmp_path)
        assert {job_id: stored[job_id].status for job_id in promised} == promised
        promised.pop(failed, None)  # it waits again
        purged, _ = await calls.client("POST", "/purge-queue")
        if purged == 200:
            promised.update(dict.fromkeys(ids[30:], "CANCELLED"))
        assert (await calls.client("POST", "/run", {"input": LARGE}))[0] == 507
        stored = _stored(tmp_path)
        assert {job_id: stored[job_id].status for job_id in promised} == promised
        assert len(promised) < 40, "nothing was refused: the disk was not full"
        disk.free()
        for job_id in ids[10:]:
            assert (await calls.client("POST", f"/cancel/{job_id}"))[0] == 200
        assert {_stored(tmp_path)[job_id].status for job_id in ids[10:]} == {"CANCELLED"}

    play(scenario, store=disk.store)


@pytest.mark.parametrize("report", ["job-done", "job-stream"])
def test_a_job_whose_handing_out_was_not_stored_is_its_workers_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str
) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    ids: list[str] = []

    def fail(*jobs: Any) -> None:
        raise OSError("the disk is gone")

    async def before(calls: Calls) -> None:
        ids.extend([await calls.run(number) for number in range(30)])
        monkeypatch.setattr(store, "save", fail)
        assert len(await calls.take_batch(30)) == 30

    async def after(calls: Calls) -> None:
        assert {(await calls.status(job_id))["status"] for job_id in ids} == {"IN_QUEUE"}
        assert await calls.report(report, ids[3], '{"output": 1}') == 200
        other = [job["id"] for job in await calls.take_batch(30, worker="w2")]
        assert other == [*ids[:3], *ids[4:]]
        assert await calls.report("job-done", ids[3], '{"output": [1]}') == 200
        assert (await calls.status(ids[3]))["workerId"] == "w1"
        assert _stored(tmp_path)[ids[3]].status == "COMPLETED"
        assert await calls.report("job-done", ids[4], '{"output": [1]}') == 200  # it is another's now
        assert (await calls.status(ids[4]))["status"] == "IN_PROGRESS"

    play(before, store=store)
    play(after, store=SqliteStore(tmp_path / "jobs.db"))


def test_a_jobs_state_is_on_the_disk_before_it_is_promised(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    said: list[str] = []

    async def scenario(calls: Calls) -> None:
        store._db.set_trace_callback(said.append)
        ids = [await calls.run(number) for number in range(3)]
        assert len(await calls.take_batch(3)) == 3
        await calls.report("job-stream", ids[0], '{"output": 1}')
        await calls.report("job-done", ids[0], '{"output": [1]}')
        await calls.client("POST", "/purge-queue")

    play(scenario, store=store)
    forced, writes = "", []
    for statement in said:
        if statement.startswith("PRAGMA synchronous="):
            forced = statement.partition("=")[2]
        elif statement.startswith("INSERT OR REPLACE INTO"):
            writes.append((statement.split()[4], forced))
    assert writes == [("jobs", "FULL")] * 6 + [("chunks", "NORMAL"), ("jobs", "FULL")]
    assert said.count("COMMIT") == 6, "jobs that are handed out together are written together"


def test_a_job_that_cannot_be_read_from_the_store_costs_no_other(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")

    async def fill(calls: Calls) -> None:
        for number in range(3):
            await calls.run(number)

    play(fill, store=store)
    store = SqliteStore(tmp_path / "jobs.db")
    store._db.execute("UPDATE jobs SET input = ? WHERE input = '1'", ("[" * 2_000 + "]" * 2_000,))
    store.close()

    async def scenario(calls: Calls) -> None:
        assert [job["input"] for job in await calls.take_batch(5)] == [0, 2]

    play(scenario, store=SqliteStore(tmp_path / "jobs.db"))


def test_jobs_that_are_handed_out_together_have_a_bound_on_their_size(monkeypatch: Any) -> None:
    monkeypatch.setattr(endpoint, "TAKE_BYTES", 1_000_000)

    async def scenario(calls: Calls) -> None:
        for _ in range(5):
            await calls.run(LARGE)
        await calls.run("x" * 2_000_000)
        await calls.run("small")
        taken = [[len(job["input"]) for job in await calls.take_batch(10)] for _ in range(4)]
        assert taken == [[400_000] * 2, [400_000] * 2, [400_000], [2_000_000]]
        assert len(await calls.take_batch(10)) == 1

    play(scenario)


def _stored(directory: Path) -> dict[str, Any]:
    store = SqliteStore(directory / "jobs.db")
    try:
        return {job.id: job for job in store.load()}
    finally:
        store.close()
