"""What a worker does on the queue, whichever client speaks for it: the SDK, or our own. A fake engine is behind both.

Where the SDK cannot do it, the test says so: `SDK_CANNOT` names the test and the reason, and the test must then fail.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ember.front.worker.coalesce import MAX_PIECE_BYTES
from tests.faces.fakes import frame
from tests.support.fake_queue import FakeQueue
from tests.support.processes import ROOT, Process, children

SCRIPT = str(ROOT / "tests/faces/face_process.py")
DONE = "data: [DONE]\n\n"

SDK_CANNOT = {
    "test_a_job_whose_delivery_has_begun_at_sigterm_is_run": "it reads the answer in the call that is given up",
    "test_pings_from_the_start_of_the_boot": "it pings only once it is started, which takes jobs too",
    "test_an_outage_in_mid_stream_loses_nothing": "it tries a piece three times in five seconds, then drops it",
}

# How long to wait for the end of a job that only our own client brings to one.
PATIENCE = {"direct": 30.0, "runpod": 3.0}


@pytest.fixture(params=["direct", "runpod"])
def client(request: pytest.FixtureRequest) -> str:
    reason = SDK_CANNOT.get(request.node.originalname)
    if request.param == "runpod" and reason:
        request.applymarker(pytest.mark.xfail(strict=True, reason=f"the SDK cannot: {reason}"))
    return str(request.param)


@pytest.fixture
def queue() -> Iterator[FakeQueue]:
    with FakeQueue() as queue:
        yield queue


Start = Callable[..., Process]


@pytest.fixture
def start(queue: FakeQueue, client: str) -> Start:
    """Starts a worker on the queue: `start(boot=1.0, settings={...})`."""

    def start(settings: dict[str, Any] | None = None, **options: Any) -> Process:
        options["settings"] = {"queue_client": client, **(settings or {})}
        return Process(SCRIPT, json.dumps(options), env=queue.env())

    return start


def chat(**body: Any) -> dict[str, Any]:
    return {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [], **body}}


def text_of(words: int, word: str = "wört ") -> str:
    return "".join(frame(f"{word}{number}") for number in range(words)) + DONE


def test_a_worker_from_boot_to_sigterm(queue: FakeQueue, start: Start) -> None:
    with start(boot=1.0) as worker:
        whole = queue.submit(chat(words=2))
        time.sleep(0.5)
        assert queue.takes == 0  # no job is taken before the engine is ready
        record = queue.wait(whole)
        assert record.status == "COMPLETED"
        body = {"object": "chat.completion", "echo": {"messages": [], "words": 2, "model": "m"}}
        assert record.output == record.streamed == [body]

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
            assert "".join(record.output) == record.text  # the result has the stream once more
        for record in queue.wait_all(garbage):
            assert record.status == "FAILED"
            assert json.loads(record.error)["code"] == 400

        bad = queue.wait(queue.submit(chat(fail="bad")))
        assert json.loads(bad.error)["param"] == "temperature"
        bad_stream = queue.wait(queue.submit(chat(fail="bad", stream=True)))
        assert bad_stream.events()[0]["error"]["code"] == 400
        crash = queue.wait(queue.submit(chat(fail="crash")))
        assert set(json.loads(crash.error)) == {"message", "type", "param", "code"}
        assert "path.py" not in crash.error
        assert queue.wait(queue.submit({"openai_route": "/v1/models"})).output == [{"object": "list", "query": {}}]

        running = queue.submit(chat(words=60, pace=0.01, stream=True))
        queue.wait_pieces(running, 3)
        worker.terminate()
        assert queue.wait(running).text == text_of(60)
        assert worker.wait(10) == 0  # the open long poll does not hold it
        assert queue.pings


# ------------------------------------------------------------------------------------------------------ taking jobs


TOO_DEEP = "[" * 1_500 + "]" * 1_500
TOO_LONG = "7" * 5_000
ODD_INPUTS = [TOO_DEEP, TOO_LONG, f'{{"prompt": {TOO_DEEP}}}', "nul"]


def test_a_job_that_cannot_be_read_fails_and_costs_no_other(queue: FakeQueue, start: Start) -> None:
    with start() as worker:
        queue.wait_for(lambda: queue.takes or queue.calls["job-take-batch"], 30, "the first job-take")
        odd = {f"odd-{number}": text for number, text in enumerate(ODD_INPUTS)}
        elements = [f'{{"id": "{name}", "input": {text}}}' for name, text in odd.items()]
        elements.append(f'{{"input": {{"id": "other", "n": [{TOO_LONG}]}}, "id": "last"}}')
        jobs: list[Any] = []
        for element, name in zip(elements, [*odd, "last"], strict=True):
            jobs += [(chat(words=2), None, None), (None, name, element)]
        ids = queue.submit_all(jobs)
        for job_id, record in zip(ids, queue.wait_all(ids), strict=True):
            if job_id in odd or job_id == "last":
                assert record.status == "FAILED"
                assert "The job cannot be read: " in json.loads(record.error)["message"]
            else:
                assert record.status == "COMPLETED", record
        assert queue.wait(queue.submit(None, "alone", f'{{"id": "alone", "input": {TOO_DEEP}}}')).status == "FAILED"
        nobodys = queue.submit_all([(None, "nobodys", TOO_DEEP), (chat(words=1), None, None)])
        assert queue.wait(nobodys[1]).status == "COMPLETED"
        worker.terminate()
        assert worker.wait(10) == 0


ODD_IDS = [
    "a/b",
    "a?b=c",
    "a#b",
    "a%2Fb",
    "../../job-done/w/x",
    "a b",
    "a\nX-Evil: 1",
    "a\r\n\r\nGET /",
    "日本",
    "$ID",
    '"',
    "&b",
]


def test_odd_ids_are_one_part_of_an_address(queue: FakeQueue, start: Start) -> None:
    with start({"max_concurrency": 32}):
        for job_id in ODD_IDS:
            queue.submit(chat(words=5, pace=0.01, stream=True), job_id)
            queue.submit(chat(words=5_000, pace=0.01, stream=True), job_id + "2")
        for job_id in ODD_IDS:
            record = queue.wait(job_id)
            assert record.status == "COMPLETED" and record.text == text_of(5)
            queue.wait_pieces(job_id + "2", 2)
            queue.cancel(job_id + "2")
        pinged = len(queue.pings)
        queue.wait_for(lambda: queue.pings[pinged + 1 :] and "job_id" not in queue.pings[-1], 30, "the ends")
        assert queue.wait(queue.submit(chat(words=1))).status == "COMPLETED"
        assert set(queue.jobs) == {*ODD_IDS, *(job_id + "2" for job_id in ODD_IDS), f"job-{2 * len(ODD_IDS) + 1}"}


def test_ids_that_no_address_can_carry_cost_no_other(queue: FakeQueue, start: Start) -> None:
    with start():
        jobs: list[Any] = []
        for number, odd in enumerate(["..", ".", "", "\ud800", "x" * 100_000, 5, None, {"a": 1}, True]):
            element = json.dumps({"id": odd, "input": chat(words=1)})
            jobs += [(None, f"odd-{number}", element), (chat(words=1), None, None)]
        ids = queue.submit_all(jobs)
        assert {record.status for record in queue.wait_all(ids[1::2])} == {"COMPLETED"}
        keys = {"self": 1, "__class__": "x", "__dict__": 3, "refresh_worker": True, "batchId": 5, "webhook": [1]}
        job_id = queue.submit(None, "keys", json.dumps({"id": "keys", "input": chat(words=1), **keys}))
        assert queue.wait(job_id).status == "COMPLETED"
        assert queue.wait(queue.submit(chat(words=1))).status == "COMPLETED"


def test_jobs_beyond_the_concurrency_wait(queue: FakeQueue, start: Start) -> None:
    with start({"max_concurrency": 1}):
        records = queue.wait_all([queue.submit(chat(words=5, pace=0.02, stream=True)) for _ in range(4)])
        for before, after in pairwise(records):
            assert before.done is not None and after.taken is not None
            assert before.done <= after.taken


def test_no_more_jobs_than_the_concurrency_are_taken(queue: FakeQueue, start: Start) -> None:
    """Also when several are delivered at once, and places become free one by one."""
    with start({"max_concurrency": 4}):
        assert most_at_once(queue, [chat(words=1 + n % 5, pace=0.02, stream=True) for n in range(16)]) == 4


def most_at_once(queue: FakeQueue, inputs: list[Any]) -> int:
    """How many of these jobs ran at the same time."""
    records = queue.wait_all([queue.submit(each) for each in inputs])
    assert {record.status for record in records} == {"COMPLETED"}, queue.summary()
    times = [(record.taken or 0.0, 1) for record in records] + [(record.done or 0.0, -1) for record in records]
    running, most = 0, 0
    for _, change in sorted(times):
        running += change
        most = max(most, running)
    return most


@pytest.mark.parametrize("wanted", [None, 6])
def test_no_more_jobs_are_taken_than_may_wait(queue: FakeQueue, start: Start, wanted: int | None) -> None:
    """They would be refused, which over the queue is a failed job; and an idle worker could have had them."""
    settings = {"max_num_queued_reqs": 2, **({} if wanted is None else {"max_concurrency": wanted})}
    with start(settings) as worker:
        assert most_at_once(queue, [chat(words=2, pace=0.02, tokens=9) for _ in range(12)]) == 2
        said = [line for line in worker.log().splitlines() if "MAX_CONCURRENCY=6" in line]
        assert len(said) == (0 if wanted is None else 1)
        assert all("MAX_NUM_QUEUED_REQS=2" in line for line in said)


def test_no_job_is_taken_while_the_tokens_that_may_wait_do(queue: FakeQueue, start: Start) -> None:
    """But for the one of the poll that was open before; nothing that was taken is refused."""
    with start({"max_num_queued_tokens": 100, "max_concurrency": 8}):
        queue.wait(queue.submit(chat()))
        waiting = queue.wait_taken(queue.submit(chat(words=1, pace=60, tokens=120))).id
        time.sleep(0.3)
        later = []
        for _ in range(3):
            later.append(queue.submit(chat(words=1, tokens=120)))
            time.sleep(0.3)
        assert all(queue.jobs[job].taken is None for job in later[1:])
        queue.cancel(waiting)
        assert {record.status for record in queue.wait_all(later)} == {"COMPLETED"}, queue.summary()


def test_as_many_jobs_as_the_engine_batches_run_at_once(queue: FakeQueue, start: Start) -> None:
    """The concurrency is max_num_seqs, 64 here, where it is not set: none of these ends before the last has begun."""
    with start():
        jobs = [queue.submit(chat(words=400, pace=0.01, stream=True)) for _ in range(64)]
        for job in jobs:
            queue.wait_pieces(job, 1)
        assert all(queue.jobs[job].done is None for job in jobs)


@pytest.mark.parametrize("answer", [None, 400])
def test_a_queue_that_does_not_hold_the_poll_is_not_flooded(client: str, answer: int | None) -> None:
    with FakeQueue(poll_seconds=0) as queue:
        options = {"settings": {"queue_client": client}}
        with Process(SCRIPT, json.dumps(options), env=queue.env()):
            queue.wait(queue.submit(chat()))
            queue.fail = lambda call, number: answer if call.startswith("job-take") else None
            before = queue.calls["job-take-batch"]
            time.sleep(1)
            assert queue.calls["job-take-batch"] - before < 30
            queue.fail = lambda call, number: None
            assert queue.wait(queue.submit(chat())).status == "COMPLETED"


def test_a_queue_in_trouble_is_asked_again(queue: FakeQueue, start: Start) -> None:
    def fail(call: str, number: int) -> int | None:
        return (500, 503, 404)[number % 3] if call.startswith("job-take") and number <= 3 else None

    queue.fail = fail
    with start():
        assert queue.wait(queue.submit(chat())).status == "COMPLETED"
        assert queue.calls["job-take-batch"] >= 4


# ------------------------------------------------------------------------------------------------------ pieces


def test_slow_queue_gets_joined_events(queue: FakeQueue, start: Start) -> None:
    with start():
        queue.stream_delay = 0.2
        record = queue.wait(queue.submit(chat(words=100, pace=0.01, stream=True)))
        assert record.text == text_of(100)
        assert len(record.pieces) < 30
        assert record.pieces[0][1].count("data: ") < 20


def test_one_piece_of_a_job_is_in_flight(queue: FakeQueue, start: Start) -> None:
    with start():
        queue.stream_delay = 0.05
        record = queue.wait(queue.submit(chat(words=50, pace=0.005, stream=True)))
        assert all(later - earlier >= 0.05 for (earlier, _), (later, _) in pairwise(record.pieces))


def test_pieces_stay_below_the_platforms_limit(queue: FakeQueue, start: Start) -> None:
    with start():
        queue.stream_delay = 0.1
        word = "日" * 100_000  # three bytes each
        record = queue.wait(queue.submit(chat(words=20, word=word, stream=True)))
        assert record.text == text_of(20, word)
        assert len(record.pieces) > 5
        assert max(len(json.dumps(piece, ensure_ascii=False).encode()) for piece in record.streamed) < 1_000_000
        assert MAX_PIECE_BYTES < 1_000_000


def test_batch_sizes_of_settings_and_jobs(queue: FakeQueue, start: Start) -> None:
    with start({"default_batch_size": 8, "min_batch_size": 2, "batch_size_growth_factor": 2}):
        usual = queue.wait(queue.submit(chat(words=29, pace=0.01, stream=True)))
        counts = [piece.count("data: ") for piece in usual.streamed]
        assert sum(counts) == 30 and max(counts) <= 8
        assert all(count >= least for count, least in zip(counts[:-1], (2, 4, 8, 8, 8), strict=False))
        own = {"max_batch_size": 3, "min_batch_size": 3, "batch_size_growth_factor": 1}
        record = queue.wait(queue.submit({**chat(words=11, pace=0.01, stream=True), **own}))
        assert [piece.count("data: ") for piece in record.streamed] == [3, 3, 3, 3]


def test_every_third_call_fails(queue: FakeQueue, start: Start) -> None:
    """One job after the other: of calls side by side, all three attempts of one may be a third call."""
    with start():
        queue.fail = lambda call, number: 500 if number % 3 == 0 and call != "job-stop" else None
        for words in (30, 30, 1, 1, 1):
            record = queue.wait(queue.submit(chat(words=words, pace=0.01, stream=words > 1)))
            assert record.status == "COMPLETED"
            assert "".join(map(str, record.output)) == "".join(map(str, record.streamed))
            if words > 1:
                assert record.text == text_of(words)


def test_an_outage_in_mid_stream_loses_nothing(queue: FakeQueue, start: Start, client: str) -> None:
    with start():
        job = queue.submit(chat(words=150, pace=0.01, stream=True))
        queue.wait_pieces(job, 5)
        queue.is_down = True
        time.sleep(7)  # the words have long been generated
        queue.is_down = False
        record = queue.wait(job, PATIENCE[client])
        assert record.status == "COMPLETED"
        assert record.text == text_of(150)
        assert queue.wait(queue.submit(chat())).status == "COMPLETED"


def test_an_outage_of_an_idle_worker_is_survived(queue: FakeQueue, start: Start) -> None:
    with start() as worker:
        queue.wait(queue.submit(chat()))
        queue.is_down = True
        job = queue.submit(chat())  # ends the open poll
        time.sleep(1)
        queue.is_down = False
        if queue.jobs[job].taken is not None:  # handed out into the cut connection
            job = queue.submit(chat())
        assert queue.wait(job).status == "COMPLETED"
        assert "Traceback" not in worker.log()


# ------------------------------------------------------------------------------------------------------ results


def test_a_result_beyond_the_platforms_limit_is_an_error(queue: FakeQueue, start: Start) -> None:
    queue.max_result_bytes = 10_000_000
    with start():
        whole = queue.wait(queue.submit(chat(word="x" * 10_500_000)))
        assert whole.status == "FAILED"
        error = json.loads(whole.error)
        assert (error["code"], error["type"]) == (413, "PayloadTooLargeError")
        assert "10 MB" in error["message"]
        stream = queue.wait(queue.submit(chat(words=12, word="x" * 900_000, stream=True)))
        assert stream.text == text_of(12, "x" * 900_000)
        assert json.loads(stream.error)["code"] == 413
        queue.max_result_bytes = 20_000_000
        sync = queue.wait(queue.submit(chat(word="x" * 10_500_000), "sync-1"))
        assert sync.status == "COMPLETED"


def test_a_refused_result_is_reported_as_an_error(queue: FakeQueue, start: Start) -> None:
    queue.max_result_bytes = 1000
    with start():
        for body in ({}, {"stream": True, "words": 3}):
            record = queue.wait(queue.submit(chat(word="x" * 2000, **body)))
            assert record.status == "FAILED"
            error = json.loads(record.error)
            assert error["code"] == 502 and error["message"].endswith("HTTP 400: too large.")
        queue.max_result_bytes = 10  # nothing can be said of this job, and it is not tried for ever
        queue.submit(chat(word="x" * 2000))
        done = queue.calls["job-done"]
        queue.wait_for(lambda: queue.calls["job-done"] == done + 2, 30, "both results")
        queue.max_result_bytes = 10**6
        assert queue.wait(queue.submit(chat(words=1))).status == "COMPLETED"
        assert queue.calls["job-done"] == done + 3


def test_every_call_names_its_job(queue: FakeQueue, start: Start) -> None:
    with start():
        queue.wait_all([queue.submit(chat(words=10, pace=0.01, stream=True)) for _ in range(20)])
        assert queue.wrong_headers == []


# ------------------------------------------------------------------------------------------------------ stopping


def test_cancel_reaches_the_engine(queue: FakeQueue, start: Start) -> None:
    with start() as worker:
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


def test_cancel_before_the_first_token(queue: FakeQueue, start: Start) -> None:
    with start() as worker:
        job = queue.submit(chat(words=1, pace=60))
        queue.wait_taken(job)
        time.sleep(0.2)
        queue.cancel(job)
        worker.wait_log(f"aborted {job}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_boot_ends_it_in_order(queue: FakeQueue, start: Start, number: int) -> None:
    with start(boot=60.0) as worker:
        worker.wait_log("the fake boots", 20)
        worker.popen.send_signal(number)
        assert worker.wait(5) == 0
        assert "the fake is closed" in worker.log()
        assert "Traceback" not in worker.log()
        assert queue.takes == 0


def test_a_job_that_is_on_its_way_at_sigterm_is_run(queue: FakeQueue, start: Start) -> None:
    queue.deliver_delay = 0.15
    with start() as worker:
        queue.wait(queue.submit(chat()))
        job = queue.submit(chat(words=3, pace=0.1, stream=True))
        queue.wait_taken(job)
        worker.terminate()
        assert queue.wait(job, 10).text == text_of(3)
        assert worker.wait(10) == 0


def test_a_job_whose_delivery_has_begun_at_sigterm_is_run(queue: FakeQueue, start: Start, client: str) -> None:
    queue.deliver_delay = queue.body_delay = 2.0
    with start() as worker:
        worker.wait_log("the fake boots")
        job = queue.submit(chat(words=3, pace=0.1, stream=True))
        queue.wait_taken(job)
        time.sleep(0.3)
        worker.terminate()
        assert queue.wait(job, PATIENCE[client]).text == text_of(3)
        assert worker.wait(10) == 0


def test_what_has_not_ended_after_the_drain_is_told_so(queue: FakeQueue, start: Start) -> None:
    with start({"drain_timeout": 0.5}) as worker:
        stream = queue.submit(chat(words=5000, pace=0.01, stream=True))
        whole = queue.submit(chat(words=1, pace=60))
        short = queue.submit(chat(words=5, pace=0.01, stream=True))
        queue.wait_pieces(stream, 1)
        queue.wait_taken(whole)
        worker.terminate()
        assert worker.wait(15) == 0
        assert queue.jobs[short].text == text_of(5)
        assert queue.jobs[stream].events()[-1]["error"]["code"] == 503
        assert queue.jobs[stream].text.endswith(DONE)
        assert queue.jobs[whole].status == "FAILED"
        assert json.loads(queue.jobs[whole].error)["code"] == 503


def test_a_second_signal_ends_the_drain(queue: FakeQueue, start: Start) -> None:
    with start({"drain_timeout": 600}) as worker:
        job = queue.submit(chat(words=50_000, pace=0.01, stream=True))
        queue.wait_pieces(job, 1)
        worker.terminate()
        time.sleep(0.3)
        worker.terminate()
        assert worker.wait(15) == 0
        assert queue.jobs[job].events()[-1]["error"]["code"] == 503


# ------------------------------------------------------------------------------------------------------ health


def test_pings_from_the_start_of_the_boot(queue: FakeQueue, start: Start) -> None:
    with start(boot=3.0) as worker:
        worker.wait_log("the fake boots")
        time.sleep(1.5)
        assert queue.pings
        job = queue.submit(chat(words=300, pace=0.01, stream=True))
        queue.wait_pieces(job, 1)
        queue.wait_for(lambda: any(ping.get("job_id") == job for ping in queue.pings), 10, "a ping with the job")


def test_pings_end_with_a_killed_worker(queue: FakeQueue, start: Start) -> None:
    with start() as worker:
        queue.wait(queue.submit(chat()))
        queue.wait_for(lambda: queue.pings, 10, "a ping")
        below = children(worker.popen.pid)
        os.kill(worker.popen.pid, signal.SIGKILL)
        worker.wait()
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}").exists() for pid in below):
            assert time.monotonic() < deadline, below
            time.sleep(0.02)
        pings = len(queue.pings)
        time.sleep(1.5)
        assert len(queue.pings) == pings


def test_boot_failure_is_one_line_and_a_ping(queue: FakeQueue, start: Start) -> None:
    with start(boot_error="MODEL_NAME=m: there is no such model") as worker:
        assert worker.wait(20) == 1
        (line,) = [line for line in worker.log().splitlines() if "ERROR" in line]
        assert "there is no such model" in line
        assert "Traceback" not in worker.log()
        assert queue.takes == 0
        assert any(ping.get("status") == "unhealthy" and "no such model" in ping["reason"] for ping in queue.pings)


def test_dead_engine_fails_its_jobs_and_ends_the_worker(queue: FakeQueue, start: Start) -> None:
    with start() as worker:
        others = [queue.submit(chat(words=1000, pace=0.01, stream=True)) for _ in range(10)]
        for job in others:
            queue.wait_pieces(job, 1)
        died_at = time.monotonic()
        queue.submit(chat(words=1000, pace=0.01, stream=True, die=True))
        for record in queue.wait_all(others, 10):
            assert record.done is not None and record.done - died_at < 2
            assert record.events()[-1]["error"]["type"] == "EngineDeadError"
        assert worker.wait(10) == 1
        assert any(ping.get("status") == "unhealthy" for ping in queue.pings)


def test_nothing_said_to_the_worker_is_logged(queue: FakeQueue, start: Start) -> None:
    with start() as worker:
        queue.wait(queue.submit({"prompt": "a secret thing", "stream": True, "word": "secret word"}))
        queue.wait(queue.submit({"prompt": "a secret thing", "fail": "crash"}))
        worker.terminate()
        out = worker.output()
        assert "secret" not in out + worker.log()
        assert "test-key" not in out + worker.log()
