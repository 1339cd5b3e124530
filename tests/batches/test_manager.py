"""The life of a batch in a server's directory, with requests that are answered by a function of the test."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from ember.front.api.batches import handlers, local, manager, run
from ember.front.api.batches.lines import BatchLine, read_lines
from ember.front.api.batches.manager import Batches, batches_of
from ember.front.api.batches.results import Answer, ResultFile
from ember.front.api.batches.run import Reply
from ember.front.api.batches.store import Record, Store
from ember.front.api.exchange import Request, UploadedFile, new_id
from ember.front.errors import ApiError
from ember.settings import load_settings

OK = Reply(Answer(200, "id", {"text": "fine"}))


class Deployment:
    """A server of the model `m` over a directory. `asked` has the ids of the requests that were run."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.awake = asyncio.Event()
        self.awake.set()
        self.answer: Callable[[str], Awaitable[Reply]] = self._answer_ok
        engine = SimpleNamespace(info=SimpleNamespace(max_num_seqs=4))
        settings = load_settings({"model_name": "m", "batch_dir": str(directory)})
        services: Any = SimpleNamespace(settings=settings, engine=engine, kept={}, closers=[], ready=self.awake.wait)
        self.services = services
        monkeypatch.setattr(local, "ask", self._ask)
        monkeypatch.setattr(manager, "POLL_SECONDS", 0.001)
        monkeypatch.setattr(manager, "RETRY_SECONDS", 0.001)
        self.batches: Batches = batches_of(self.services)
        self.store: Store = self.batches.store

    async def _ask(self, services: Any, line: BatchLine) -> Reply:
        self.asked.append(line.custom_id)
        return await self.answer(line.custom_id)

    async def _answer_ok(self, custom_id: str) -> Reply:
        return OK

    def batch(self, status: str = "validating", results: int = 0, model: str = "m", **fields: Any) -> Record:
        """A batch of four requests, of which the first `results` have one."""
        upload = self.store.files / "upload-1"
        line = {"url": "/v1/completions", "body": {"model": model}}
        upload.write_text("".join(json.dumps({"custom_id": f"r{number}", **line}) + "\n" for number in range(4)))
        file = self.store.keep_upload(upload, "in.jsonl", "batch")
        record = {
            "id": new_id("batch_"),
            "endpoint": "/v1/completions",
            "input_file_id": file["id"],
            "status": status,
            "expires_at": time.time() + 3600,
            "_made": time.time(),
            "_output": new_id("file-"),
            "_errors": new_id("file-"),
            "output_file_id": None,
            "error_file_id": None,
            "cancelling_at": None,
            "errors": None,
            **fields,
        }
        if results:
            text = b"".join(OK.answer.line(f"r{number}") for number in range(results))
            self.store.content(record["_output"]).write_bytes(text)
        self.store.put_batch(record)
        return record

    async def until(self, batch: Record, *statuses: str) -> Record:
        async with asyncio.timeout(20):
            while (found := self.store.batch(batch["id"]))["status"] not in statuses:
                await asyncio.sleep(0.001)
        return found

    async def until_left(self) -> None:
        """Wait until no batch is being run."""
        async with asyncio.timeout(20):
            await asyncio.gather(*self.batches._tasks.values())

    def results(self, batch: Record, name: str = "_output") -> list[str]:
        path = self.store.content(batch[name])
        return sorted(json.loads(line)["custom_id"] for line in path.read_text().splitlines()) if path.exists() else []


Scenario = Callable[[Deployment], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scenario], None]:
    def run_it(scenario: Scenario) -> None:
        async def whole() -> None:
            deployment = Deployment(tmp_path, monkeypatch)
            try:
                await scenario(deployment)
            finally:
                await deployment.batches.close()

        asyncio.run(whole())

    return run_it


def test_a_batch_that_stopped_for_an_error_is_tried_again(play: Any) -> None:
    async def scenario(here: Deployment) -> None:
        put, failures = here.store.put_batch, [ApiError(500, "full"), KeyError("a bug"), OSError(28, "full")]

        def failing(batch: Record) -> None:
            if batch["status"] == "in_progress" and failures:
                raise failures.pop()
            put(batch)

        batch = here.batch()
        here.store.put_batch = failing  # type: ignore[method-assign]
        here.batches.start(batch)
        await here.until(batch, "completed")
        assert not failures and sorted(here.asked) == here.results(batch) == ["r0", "r1", "r2", "r3"]

    play(scenario)


def test_a_batch_that_no_server_runs_can_be_cancelled(play: Any) -> None:
    async def scenario(here: Deployment) -> None:
        batch = here.batch("in_progress", results=2, model="other")
        request = Request("POST", "/", parameters={"batch_id": batch["id"]})
        await handlers.cancel_batch(here.services, request)
        ended = await here.until(batch, "cancelled")
        assert ended["request_counts"] == {"total": 4, "completed": 2, "failed": 0} and not here.asked
        assert not here.store.content(batch["_errors"]).exists() and not here.store.is_to_be_cancelled(batch["id"])

    play(scenario)


@pytest.mark.parametrize("waits_for", ["engine", "place"])
@pytest.mark.parametrize("ending", ["cancelled", "expired"])
def test_a_batch_ends_while_it_waits(play: Any, waits_for: str, ending: str) -> None:
    async def scenario(here: Deployment) -> None:
        first = [here.batch() for _ in range(manager.MAX_BATCHES if waits_for == "place" else 0)]
        here.awake.clear()
        for each in first:
            here.batches.start(each)
        await asyncio.sleep(0)
        batch = here.batch(expires_at=time.time() + (0.01 if ending == "expired" else 3600))
        here.batches.start(batch)
        if ending == "cancelled":
            here.store.ask_to_cancel(batch["id"])
        await here.until(batch, ending)
        assert not here.asked and len(here.results(batch, "_errors")) == (4 if ending == "expired" else 0)
        here.awake.set()
        for each in first:
            await here.until(each, "completed")

    play(scenario)


def test_a_batch_that_another_server_ended_meanwhile_is_left(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check = manager.check_file

    async def scenario(here: Deployment) -> None:
        batch = here.batch("in_progress", results=4)
        over = {**batch, "status": "completed", "completed_at": 1}

        def ended_meanwhile(*arguments: Any) -> Any:
            here.store.content(batch["_output"]).unlink()
            here.store.put_batch(over)
            return check(*arguments)

        monkeypatch.setattr(manager, "check_file", ended_meanwhile)
        here.batches.start(batch)
        await here.until_left()
        assert here.store.batch(batch["id"]) == over and not here.asked
        assert not here.store.content(batch["_output"]).exists()

    play(scenario)


def test_a_batch_is_taken_over_when_its_server_ends(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then its results are locked, and its input is not read at each try."""
    check = Mock(side_effect=manager.check_file)
    monkeypatch.setattr(manager, "check_file", check)

    async def scenario(here: Deployment) -> None:
        batch = here.batch("in_progress", results=1)
        other = ResultFile(here.store.content(batch["_output"]))
        read = Mock(side_effect=here.store.batch)
        monkeypatch.setattr(here.store, "batch", read)
        here.batches.start(batch)
        async with asyncio.timeout(20):
            while read.call_count < 6:
                await asyncio.sleep(0.001)
        assert not here.asked
        other.close()
        await here.until(batch, "completed")
        assert sorted(here.asked) == ["r1", "r2", "r3"] and check.call_count == 1

    play(scenario)


@pytest.mark.parametrize(
    ("status", "fields", "results", "ending"),
    [
        ("in_progress", {"expires_at": 0}, 4, "completed"),  # killed before its ending was written
        ("finalizing", {"expires_at": 0, "_ending": "completed"}, 4, "completed"),
        ("finalizing", {"_ending": "expired"}, 4, "expired"),  # the last results are those of the expiry
        ("finalizing", {"_ending": "expired"}, 1, "expired"),
        ("in_progress", {"expires_at": 0}, 1, "expired"),
    ],
)
def test_a_restart_does_not_change_the_ending(
    play: Any, status: str, fields: dict[str, Any], results: int, ending: str
) -> None:
    async def scenario(here: Deployment) -> None:
        batch = here.batch(status, results, **fields)
        await here.batches.resume()
        ended = await here.until(batch, "completed", "expired", "cancelled", "failed")
        assert ended["status"] == ending and not here.asked
        assert ended["output_file_id"] == batch["_output"] and len(here.results(batch, "_errors")) == 4 - results

    play(scenario)


def test_a_batch_for_another_model_is_left_to_its_server(play: Any) -> None:
    async def scenario(here: Deployment) -> None:
        batch, own = here.batch("in_progress", results=1, model="org/big"), here.batch("in_progress", results=1)
        await here.batches.resume()
        await here.until(own, "completed")
        await here.until_left()
        assert here.store.batch(batch["id"]) == batch and here.results(batch) == ["r0"]
        assert not here.store.content(batch["_errors"]).exists()
        here.asked.clear()
        new = here.batch(model="org/big")  # one that was made here has its answers from here
        here.batches.start(new)
        await here.until(new, "completed")
        assert len(here.asked) == 4

    play(scenario)


def test_the_input_of_a_batch_is_gone(play: Any) -> None:
    async def scenario(here: Deployment) -> None:
        batch = here.batch("in_progress")
        here.store.content(batch["input_file_id"]).unlink()
        await here.batches.resume()
        assert (await here.until(batch, "failed"))["errors"]["data"][0]["code"] == "missing_file"

    play(scenario)


def test_files_are_read_in_threads(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop reads and writes no whole file, neither of requests to run nor of those that expire."""
    threads: set[int] = set()

    def noted(path: Path) -> Iterator[Any]:
        for line in read_lines(path):
            threads.add(threading.get_ident())
            yield line

    async def scenario(here: Deployment) -> None:
        monkeypatch.setattr(run, "read_lines", noted)
        for expires_at in (time.time() + 3600, 0.0):
            batch = here.batch("in_progress", results=1, expires_at=expires_at)
            here.batches.start(batch)
            await here.until(batch, "completed", "expired")
        assert threads and threading.get_ident() not in threads

    play(scenario)


def test_an_error_does_not_tell_where_an_upload_is(play: Any) -> None:
    """Both parts of a form may be files, and a file may stand where a text is wanted."""

    async def scenario(here: Deployment) -> None:
        upload = UploadedFile("in.jsonl", here.store.files / "upload-1")
        form = {"file": upload, "purpose": upload}
        with pytest.raises(ApiError) as caught:
            await handlers.create_file(here.services, Request("POST", "/v1/files", form))
        assert caught.value.message == "purpose must be 'batch', got a file." and caught.value.param == "purpose"

    play(scenario)


def test_nothing_is_left_of_uploads_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    old = ["upload-old", new_id("file-"), "x.tmp"]
    young = ["upload-young", new_id("file-")]
    kept = new_id("file-"), new_id("file-")
    batch = {"id": new_id("batch_"), "status": "in_progress", "_output": kept[1], "_errors": new_id("file-")}
    store.put_batch(batch)
    for name in (*old, *young, *kept):
        store.content(name).write_text("text")
        if name not in young:
            os.utime(store.content(name), (1.0, 1.0))
    store.add_file(kept[0], "in.jsonl", "batch")
    store.remove_orphans()
    left = {path.name for path in store.files.iterdir()}
    assert left == {*young, *kept, f"{kept[0]}.json"} and len(store.all_batches()) == 1

    def full(*arguments: Any) -> None:
        raise ApiError(500, "full")

    monkeypatch.setattr(store, "add_file", full)
    with pytest.raises(ApiError):
        store.keep_upload(store.files / "upload-young", "in.jsonl", "batch")
    assert {path.name for path in store.files.iterdir()} == left - {"upload-young"}


def test_lists_are_read_by_the_call_itself(tmp_path: Path) -> None:
    """Routes make the call in a thread, so nothing may be left to read on the event loop."""
    store = Store(str(tmp_path))
    store.put_batch({"id": new_id("batch_")})
    upload = store.files / "upload-1"
    upload.write_text("text")
    store.keep_upload(upload, "in.jsonl", "batch")
    batches, files = store.all_batches(), store.all_files()
    for path in (*store.batches.iterdir(), *store.files.iterdir()):
        path.unlink()
    assert len(batches) == 1 and len(files) == 1
