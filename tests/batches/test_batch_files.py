"""Batch files: checked inputs, results that a killed run leaves whole, and runs that go on where one stopped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ember.cli.batch import _served
from ember.front.api.batches.lines import BatchLine, check_file
from ember.front.api.batches.results import Answer, ResultFile, ResultsError
from ember.front.api.batches.run import BatchRun, GaveUp, Reply, Unreachable
from tests.support.processes import ROOT, Process


def request(custom_id: Any, **fields: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": {}, **fields})


def batch_of(tmp_path: Path, count: int) -> BatchRun:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(request(f"r{number}") + "\n" for number in range(count)))
    return BatchRun(
        source, check_file(source), ResultFile(tmp_path / "out.jsonl"), ResultFile(tmp_path / "errors.jsonl")
    )


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


OK = Reply(Answer(200, "id", {"text": "fine"}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object, got [1]"),
        (request(5), "custom_id must be a text of 1 to 512 characters, got 5"),
        (request("a", method="GET"), "method must be 'POST', got 'GET'"),
        (request("a", url="http://x/v1"), "url must be the path of a route"),
        (request("a", body="x"), "body must be an object, got 'x'"),
        (request("a", body={"stream": True}), "cannot be a stream"),
        (request("first"), "that of line 1 too"),
        (request("a", url="/v1/embeddings"), "the batch is for '/v1/completions'"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text("\ufeff" + request("first") + "\n\n" + line + "\n" + request("last"))
    checked = check_file(tmp_path / "in.jsonl", "/v1/completions")
    assert [fault.number for fault in checked.faults] == [3] and message in checked.faults[0].message
    assert set(checked.places.values()) >= {1, 4}


def test_what_the_model_cannot_answer_is_named_and_nothing_runs(tmp_path: Path) -> None:
    """A path without a route is found before the model is loaded, and a route of other models when it is."""
    for url, message in (
        ("/bad_url", "line 2: No route answers a POST of '/bad_url'."),
        ("/v1/files", "line 2: /v1/files cannot be used in a batch."),
        ("/v1/responses/resp_1/cancel", "line 2: /v1/responses/{response_id}/cancel cannot be used in a batch."),
        ("/generate_stream", "line 2: /generate_stream cannot be used in a batch."),
        ("/ping", "line 2: No route answers a POST of '/ping'."),
        ("/v1/embeddings", "line 2: /v1/embeddings needs a model that does embed. The model `demo` does generate."),
    ):
        lines = [request("a", body={"prompt": "A fox"}), request("b", url=url), request("c", url=url)]
        (tmp_path / "in.jsonl").write_text("\n".join(lines))
        with Process("-m", "ember", "batch", "in.jsonl", "out.jsonl", "--model", "demo", cwd=tmp_path) as refused:
            assert refused.wait(60) == 1 and f"in.jsonl: {message}" in refused.log()
        assert not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_request_ends_with_a_message(tmp_path: Path, number: int) -> None:
    os.mkfifo(tmp_path / "in.jsonl")
    with Process("-m", "ember", "batch", "in.jsonl", "out.jsonl", "--model", "demo", cwd=tmp_path) as early:
        with (tmp_path / "in.jsonl").open("w"):  # once the command has opened the other end
            early.popen.send_signal(number)
            assert early.wait() == 130
        assert early.log() == "interrupted: run the same command again\n"


def test_a_file_of_too_many_requests_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(request(f"r{number}") + "\n" for number in range(4)) + "{")
    checked = check_file(tmp_path / "in.jsonl", None, 3)
    assert [(fault.number, fault.code) for fault in checked.faults] == [(4, "too_many_requests")]
    assert check_file(tmp_path / "in.jsonl", None, 4).faults[0].code == "invalid_json_line"


def test_results_of_other_requests_and_of_another_run_are_refused(tmp_path: Path) -> None:
    batch = batch_of(tmp_path, 2)
    with pytest.raises(ResultsError, match="being written by another run"):
        ResultFile(tmp_path / "out.jsonl")
    for file in (batch._output, batch._errors):
        file.close()
    checked = check_file(tmp_path / "in.jsonl")
    foreign = json.dumps({"custom_id": "r9", "response": None}) + "\n"
    for content, reason in (("notes\n", "line 1 is no result"), (foreign, "the input lacks")):
        (tmp_path / "out.jsonl").write_text(content)
        with closing(ResultFile(tmp_path / "out.jsonl")) as file, pytest.raises(ResultsError, match=reason):
            BatchRun(tmp_path / "in.jsonl", checked, file, None)
        assert (tmp_path / "out.jsonl").read_text() == content


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What is under way at the end is lost, what has a result is not run again, and a torn line is cut off."""
    asked: Counter[str] = Counter()

    async def interrupted(batch: BatchRun) -> None:
        stuck = asyncio.Event()

        async def ask(line: BatchLine) -> Reply:
            asked[line.custom_id] += 1
            if len(asked) == 16:
                stuck.set()
            if len(asked) > 12:
                await asyncio.Event().wait()
            return Reply(Answer(400, "id", {"error": "wrong"})) if line.custom_id == "r3" else OK

        task = asyncio.create_task(batch.run(ask, window=4))
        await stuck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    batch = batch_of(tmp_path, 40)
    asyncio.run(interrupted(batch))
    assert (batch.counts.completed, batch.counts.failed) == (11, 1) and len(asked) == 16
    for file, torn in ((batch._output, '{"id": "bat'), (batch._errors, "{" * 200_000)):
        file.close()
        with file.path.open("a") as end:
            end.write(torn)
    again = batch_of(tmp_path, 40)
    assert again.counts.done == 12
    finished = set(asked) - {line.custom_id for line in again.waiting()}
    asked.clear()

    async def answer(line: BatchLine) -> Reply:
        asked[line.custom_id] += 1
        return OK

    asyncio.run(again.run(answer, window=4))
    assert not finished & set(asked) and again.counts.done == 40
    names = [each["custom_id"] for name in ("out.jsonl", "errors.jsonl") for each in results(tmp_path / name)]
    assert sorted(names) == sorted(f"r{number}" for number in range(40))
    (failed,) = results(tmp_path / "errors.jsonl")
    assert failed["response"] == {"status_code": 400, "request_id": "id", "body": {"error": "wrong"}}


def test_what_may_succeed_later_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ember.front.api.batches.run.RETRY_SECONDS", 0.001)
    busy, broken = Reply(Answer(503, "", None), retry_after=0.001), Reply(Answer(500, "", "no"))
    guilty = Reply(Answer(500, "", "no"), may_retry=False)
    replies: dict[str, list[Any]] = {
        "r0": [busy, busy, busy, busy, OK],
        "r1": [broken, broken, broken],
        "r2": [Unreachable("gone"), broken, OK],
        "r3": [guilty],
        "r4": [Reply(Answer(200, "", b"bytes"))],
    }

    async def ask(line: BatchLine) -> Reply:
        reply = replies[line.custom_id].pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    batch = batch_of(tmp_path, 5)
    asyncio.run(batch.run(ask, window=2))
    assert not any(replies.values())
    assert {each["custom_id"] for each in results(tmp_path / "out.jsonl")} == {"r0", "r2"}
    errors = {each["custom_id"]: each for each in results(tmp_path / "errors.jsonl")}
    assert errors.keys() == {"r1", "r3", "r4"} and errors["r4"]["error"]["code"] == "not_json"


def test_a_server_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    async def run() -> None:
        async with _served("http://127.0.0.1:9/v1/", None) as (ask, _):
            await batch.run(ask, window=2)

    batch = batch_of(tmp_path, 2)
    batch.unreachable_timeout = -1.0
    with pytest.raises(GaveUp, match="http://127.0.0.1:9: "):
        asyncio.run(run())
    assert batch.counts.done == 0


def test_a_server_gets_the_key_and_its_answers_are_kept(tmp_path: Path) -> None:
    async def answer(http: web.Request) -> web.Response:
        if http.headers["Authorization"] != "Bearer k":
            return web.Response(status=401, text="who?")
        return web.json_response({"path": http.path, **await http.json()}, headers={"X-Request-Id": "theirs"})

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/root/v1/completions", answer)
        async with TestServer(app) as server, _served(str(server.make_url("/root/v1")), "k") as (ask, _):
            reply = await ask(BatchLine(1, "a", "/v1/completions", {"prompt": "x"}))
            assert reply.answer == Answer(200, "theirs", {"path": "/root/v1/completions", "prompt": "x"})
            async with _served(str(server.make_url("/root")), "other") as (ask, _):
                with pytest.raises(GaveUp, match="refuses the API key.*who"):
                    await ask(BatchLine(1, "a", "/v1/completions", {}))

    asyncio.run(run())


def test_results_go_to_a_regular_file_and_a_refused_key_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="not a regular file"):
        ResultFile(Path("/dev/full"))

    async def run() -> None:
        app = web.Application()

        async def refuse(_: web.Request) -> web.Response:
            return web.json_response({"error": "who?"}, status=401)

        app.router.add_post("/v1/completions", refuse)
        async with TestServer(app) as server, _served(str(server.make_url("/")), "key") as (ask, _):
            batch = batch_of(tmp_path, 20)
            with pytest.raises(GaveUp, match="refuses the API key"):
                await batch.run(ask, 4)
            assert batch.counts.done == 0

    asyncio.run(run())


def test_the_example_of_the_page_survives_kill_9(tmp_path: Path) -> None:
    """The run of many copies of the example's requests is killed when some have results, and starts again."""
    page = (ROOT / "docs" / "cli.md").read_text()
    lines = re.findall(r"^```jsonl\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    command = re.findall(r"^ember (batch .*)$", page, re.MULTILINE)[0].split()
    requests = [
        {**json.loads(line), "custom_id": f"{json.loads(line)['custom_id']}{number}"}
        for number in range(40)
        for line in lines.splitlines()
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(each) + "\n" for each in requests))
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    arguments = ("-m", "ember", *command, "--max-num-seqs", "2")
    with Process(*arguments, cwd=tmp_path) as first:
        deadline = time.monotonic() + 60
        while not (output.exists() and output.read_text().count("\n") > 5):
            assert time.monotonic() < deadline and first.popen.poll() is None
            time.sleep(0.01)
        first.popen.send_signal(signal.SIGKILL)
        first.wait()
    before = output.read_text()
    assert before.count("\n") < 80
    with Process("-m", "ember", *command, cwd=tmp_path) as second:
        assert second.wait(120) == 1  # as a request failed
        assert "120 of 120 requests have results; 40 of them failed" in second.log()
        assert "requests have results already" in second.log()
    assert output.read_text().startswith(before.rpartition("\n")[0])
    found = [each["custom_id"] for path in (output, errors) for each in results(path)]
    assert sorted(found) == sorted(each["custom_id"] for each in requests)
    assert all(each["response"]["status_code"] == 200 and each["error"] is None for each in results(output))
    with Process("-m", "ember", "batch", "in.jsonl", "in.jsonl", "--model", "demo", cwd=tmp_path) as same:
        assert same.wait() == 1 and "must be different files" in same.log()
