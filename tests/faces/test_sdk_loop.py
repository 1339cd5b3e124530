"""The real runpod SDK in a subprocess, against the fake queue, with a fake engine behind the handler."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.faces.fakes import event
from tests.support.fake_queue import FakeQueue
from tests.support.processes import ROOT, Process, children

SCRIPT = str(ROOT / "tests/faces/face_process.py")


@pytest.fixture
def queue() -> Iterator[FakeQueue]:
    with FakeQueue() as queue:
        yield queue


def start(queue: FakeQueue, env: dict[str, str] | None = None, **options: Any) -> Process:
    return Process(SCRIPT, json.dumps(options), env={**queue.env(), **(env or {})})


def chat(**body: Any) -> dict[str, Any]:
    return {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [], **body}}


def text_of(words: int) -> str:
    return "".join(event(f"wört {number}") for number in range(words)) + "data: [DONE]\n\n"


def test_a_worker_from_boot_to_sigterm(queue: FakeQueue) -> None:
    with start(queue, boot=1.0) as worker:
        whole = queue.submit(chat(words=2))
        time.sleep(0.5)
        assert queue.takes == 0  # no job is taken before the engine is ready
        record = queue.wait(whole)
        assert record.status == "COMPLETED"
        assert record.output == [{"object": "chat.completion", "echo": {"messages": [], "words": 2, "model": "m"}}]

        streams = [queue.submit(chat(words=40, pace=0.01, stream=True)) for _ in range(30)]
        garbage = [
            queue.submit(job_input)
            for job_input in (
                None,
                "text",
                [1],
                {"foo": 1},
                5,
                {"prompt": "a", "max_batch_size": {}},
                {"prompt": "\ud800"},
            )
        ]
        for record in queue.wait_all(streams):
            assert record.status == "COMPLETED"
            assert record.text == text_of(40)
            assert "".join(record.output) == record.text
        for record in queue.wait_all(garbage):
            assert record.status == "FAILED"
            assert json.loads(record.error)["code"] == 400

        bad = queue.wait(queue.submit(chat(fail="bad")))
        assert json.loads(bad.error)["param"] == "temperature"
        bad_stream = queue.wait(queue.submit(chat(fail="bad", stream=True)))
        assert bad_stream.events()[0]["error"]["code"] == 400
        crash = queue.wait(queue.submit(chat(fail="crash")))
        assert "path.py" not in crash.error
        assert queue.wait(queue.submit({"openai_route": "/v1/models"})).output == [{"object": "list", "query": {}}]

        running = queue.submit(chat(words=60, pace=0.01, stream=True))
        queue.wait_pieces(running, 3)
        worker.terminate()
        assert queue.wait(running).text == text_of(60)
        assert worker.wait(10) == 0  # the open long poll does not hold it
        assert queue.pings


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_boot_ends_it_in_order(queue: FakeQueue, number: int) -> None:
    with start(queue, boot=60.0) as worker:
        worker.wait_log("the fake boots", 20)
        worker.popen.send_signal(number)
        assert worker.wait(5) == 0
        assert "the fake is closed" in worker.log()
        assert "Traceback" not in worker.log()
        assert queue.takes == 0


def test_a_job_that_is_on_its_way_at_sigterm_is_run(queue: FakeQueue) -> None:
    queue.deliver_delay = 0.15
    with start(queue) as worker:
        queue.wait(queue.submit(chat()))
        job = queue.submit(chat(words=3, pace=0.1, stream=True))
        queue.wait_taken(job)
        worker.terminate()
        assert queue.wait(job, 10).text == text_of(3)
        assert worker.wait(10) == 0


def test_cancel_reaches_the_engine(queue: FakeQueue) -> None:
    with start(queue) as worker:
        queue.stream_delay = 0.2  # the job is then stopped while it sends a piece
        stopped = queue.submit(chat(words=5000, pace=0.005, stream=True))
        other = queue.submit(chat(words=50, pace=0.02, stream=True))
        queue.wait_pieces(stopped, 2)
        queue.cancel(stopped)
        assert queue.wait(other).text == text_of(50)
        pieces = len(queue.jobs[stopped].pieces)
        time.sleep(0.5)
        assert len(queue.jobs[stopped].pieces) == pieces
        assert queue.jobs[stopped].done is None
        assert f"aborted {stopped}" in worker.log()
        assert f"aborted {other}" not in worker.log()
        worker.terminate()
        assert worker.wait(10) == 0


def test_slow_queue_gets_joined_events(queue: FakeQueue) -> None:
    with start(queue):
        queue.stream_delay = 0.2
        record = queue.wait(queue.submit(chat(words=100, pace=0.01, stream=True)))
        assert record.text == text_of(100)
        assert len(record.pieces) < 30
        assert record.pieces[0][1].count("data: ") < 20


def test_jobs_beyond_the_concurrency_wait(queue: FakeQueue) -> None:
    with start(queue, settings={"max_concurrency": 1}):
        records = queue.wait_all([queue.submit(chat(words=5, pace=0.02, stream=True)) for _ in range(4)])
        for before, after in pairwise(records):
            assert before.done is not None and after.taken is not None
            assert before.done <= after.taken


def test_a_queue_that_does_not_hold_the_poll_is_not_flooded() -> None:
    with FakeQueue(poll_seconds=0) as queue, start(queue):
        queue.wait(queue.submit(chat()))
        takes = queue.takes
        time.sleep(1)
        assert queue.takes - takes < 30
        assert queue.wait(queue.submit(chat())).status == "COMPLETED"


def test_boot_failure_is_one_line_and_a_ping(queue: FakeQueue) -> None:
    with start(queue, boot_error="MODEL_NAME=m: there is no such model") as worker:
        assert worker.wait(20) == 1
        (line,) = [line for line in worker.log().splitlines() if "ERROR" in line]
        assert "there is no such model" in line
        assert "Traceback" not in worker.log()
        assert queue.takes == 0
        assert any(ping.get("status") == "unhealthy" and "no such model" in ping["reason"] for ping in queue.pings)


def test_dead_engine_fails_its_jobs_and_ends_the_worker(queue: FakeQueue) -> None:
    with start(queue) as worker:
        others = [queue.submit(chat(words=1000, pace=0.01, stream=True)) for _ in range(10)]
        for job in others:
            queue.wait_pieces(job, 1)
        died_at = time.monotonic()
        queue.submit(chat(words=1000, pace=0.01, stream=True, die=True))
        for record in queue.wait_all(others, 10):
            assert record.done is not None and record.done - died_at < 2
            assert record.events()[-1]["error"]["type"] == "EngineDeadError"
        assert worker.wait(10) == 1


def test_the_ping_process_ends_with_a_killed_worker(queue: FakeQueue) -> None:
    with start(queue) as worker:
        queue.wait(queue.submit(chat()))
        queue.wait_for(lambda: queue.pings, 10, "a ping")
        below = children(worker.popen.pid)
        assert below
        os.kill(worker.popen.pid, signal.SIGKILL)
        worker.wait()
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}").exists() for pid in below):
            assert time.monotonic() < deadline, below
            time.sleep(0.02)


def test_nothing_said_to_the_worker_is_logged(queue: FakeQueue) -> None:
    with start(queue) as worker:
        queue.wait(queue.submit({"prompt": "a secret thing", "stream": True}))
        worker.terminate()
        out = worker.output()
        assert "secret" not in out + worker.log()
