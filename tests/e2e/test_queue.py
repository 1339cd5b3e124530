"""`handler.py` as the platform runs it: the real SDK, the real engine, the fake queue."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import pytest

from tests.e2e.conftest import BOOT_SECONDS
from tests.support.fake_queue import FakeQueue, JobRecord
from tests.support.processes import Process, children

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def chat(**body: Any) -> dict[str, Any]:
    return {"openai_route": CHAT, "openai_input": {"messages": MESSAGES, "temperature": 0, **body}}


def wait_gone(pid: int) -> None:
    """An engine that is cut off before it was configured ends when it has imported torch."""
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, "the engine outlives the worker"
        time.sleep(0.05)


def content_of(record: JobRecord) -> str:
    """The text of a streamed chat."""
    parts = [choice["delta"].get("content") or "" for event in record.events() for choice in event["choices"]]
    return "".join(parts)


@pytest.mark.usefixtures("worker")
def test_shapes(queue: FakeQueue) -> None:
    whole = queue.wait(queue.submit(chat(max_tokens=8)))
    assert whole.status == "COMPLETED", whole.error
    (body,) = whole.output
    assert body["object"] == "chat.completion"
    assert body["model"] == "demo"

    streamed = queue.wait(queue.submit(chat(max_tokens=8, stream=True)))
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert content_of(streamed) == body["choices"][0]["message"]["content"]
    assert "".join(streamed.output) == streamed.text

    native = queue.wait(queue.submit({"messages": MESSAGES, "sampling_params": {"max_tokens": 8, "temperature": 0}}))
    assert native.output[0]["choices"][0]["message"] == body["choices"][0]["message"]

    templated = queue.wait(
        queue.submit(
            {
                "prompt": MESSAGES[0]["content"],
                "apply_chat_template": True,
                "sampling_params": {"max_tokens": 8, "temperature": 0},
            }
        )
    )
    assert templated.output[0]["choices"][0]["message"] == body["choices"][0]["message"]

    prompt = queue.wait(queue.submit({"prompt": "The capital of", "sampling_params": {"max_tokens": 4}}))
    assert prompt.output[0]["object"] == "text_completion"

    models = queue.wait(queue.submit({"openai_route": "/v1/models"}))
    assert models.output[0]["data"][0]["id"] == "demo"
    assert queue.wait(queue.submit({"route": "/health"})).status == "COMPLETED"


@pytest.mark.usefixtures("worker")
def test_thirty_streams_at_once(queue: FakeQueue) -> None:
    alone = content_of(queue.wait(queue.submit(chat(max_tokens=24, stream=True))))
    records = queue.wait_all([queue.submit(chat(max_tokens=24, stream=True)) for _ in range(30)])
    assert {record.status for record in records} == {"COMPLETED"}
    assert {content_of(record) for record in records} == {alone}
    assert all(record.text.endswith("data: [DONE]\n\n") for record in records)


@pytest.mark.usefixtures("worker")
def test_garbage_between_good_jobs(queue: FakeQueue) -> None:
    garbage: list[Any] = [
        None,
        "text",
        5,
        [1],
        {},
        {"foo": 1},
        {"openai_input": "x"},
        {"prompt": "a", "sampling_params": [1]},
    ]
    garbage += [chat(temperature=99), chat(max_tokens=-1), {"route": "/nowhere"}, chat(model="another")]
    # What json reads and UTF-8, or 64 bits, cannot hold.
    garbage += [
        chat(model="\ud800"),
        chat(cache_salt="\ud800"),
        {"openai_route": "/v1/models/\ud800"},
        chat(seed=2**70),
    ]
    garbage += [{"messages": [{"role": "\ud800", "content": "hi"}]}, {"prompt": "a", "\ud800": 1}]
    good, bad = [], []
    for job_input in garbage:
        good.append(queue.submit(chat(max_tokens=6)))
        bad.append(queue.submit(job_input))
    for record in queue.wait_all(bad):
        assert record.status == "FAILED", record
        error = json.loads(record.error)
        assert 400 <= error["code"] < 500
        assert set(error) == {"message", "type", "param", "code"}
        assert "traceback" not in error["message"].lower()
    for record in queue.wait_all(good):
        assert record.status == "COMPLETED"


@pytest.mark.usefixtures("worker")
def test_error_of_a_stream_is_an_event(queue: FakeQueue) -> None:
    record = queue.wait(queue.submit(chat(temperature=99, stream=True)))
    (event,) = record.events()
    assert event["error"]["code"] == 400
    assert record.text.endswith("data: [DONE]\n\n")


@pytest.mark.usefixtures("worker")
def test_cancel_in_mid_stream(queue: FakeQueue) -> None:
    """The cancelled job falls silent; the others, and the next, are none the worse."""
    stopped = queue.submit(chat(max_tokens=500, ignore_eos=True, stream=True))
    other = queue.submit(chat(max_tokens=24, stream=True))
    queue.wait_pieces(stopped, 2)
    queue.cancel(stopped)
    assert queue.wait(other).status == "COMPLETED"
    time.sleep(0.3)
    pieces = len(queue.jobs[stopped].pieces)
    assert queue.wait(queue.submit(chat(max_tokens=24, stream=True))).status == "COMPLETED"
    record = queue.jobs[stopped]
    assert len(record.pieces) == pieces
    assert "[DONE]" not in record.text


def test_killed_engine_fails_its_jobs_at_once(queue: FakeQueue, worker: Process) -> None:
    """Every job in flight has its error within two seconds; the engine is started again and serves the next."""
    jobs = [queue.submit(chat(max_tokens=500, ignore_eos=True, stream=True)) for _ in range(8)]
    for job in jobs:
        queue.wait_pieces(job, 1)
    running = [job for job in jobs if queue.jobs[job].done is None]
    assert running
    (engine,) = [pid for pid, command in children(worker.popen.pid).items() if "ember.engine" in command]
    killed_at = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    for record in queue.wait_all(running, 10):
        assert record.done is not None
        if record.done > killed_at and "[DONE]" in record.text and "error" not in record.text:
            continue  # it had just finished
        assert record.done - killed_at < 2
        assert record.events()[-1]["error"]["code"] == 500
    again = queue.wait(queue.submit(chat(max_tokens=6)), BOOT_SECONDS)
    assert again.status == "COMPLETED", again.error


def test_sigterm_finishes_what_runs(queue: FakeQueue, worker: Process) -> None:
    """The last test of the module: it ends the worker."""
    running = queue.submit(chat(max_tokens=100, stream=True))
    queue.wait_pieces(running, 1)
    worker.terminate()
    assert queue.wait(running).text.endswith("data: [DONE]\n\n")
    assert worker.wait(20) == 0


CLIENTS = pytest.mark.parametrize("client", ["runpod", "direct"])


def environment(queue: FakeQueue, client: str, **settings: str) -> dict[str, str]:
    return {**queue.env(), "MODEL_NAME": "demo", "QUEUE_CLIENT": client, **settings}


@CLIENTS
def test_a_job_on_its_way_at_sigterm_is_run_and_reported(client: str) -> None:
    with FakeQueue() as queue, Process("handler.py", env=environment(queue, client)) as worker:
        queue.wait(queue.submit(chat(max_tokens=1)), BOOT_SECONDS)
        queue.deliver_delay = 0.15
        job = queue.submit(chat(max_tokens=6, stream=True))
        queue.wait_taken(job)
        worker.terminate()
        assert queue.wait(job, 10).text.endswith("data: [DONE]\n\n")
        assert worker.wait(10) == 0


@CLIENTS
@pytest.mark.parametrize("after", [0.3, 1.2])
def test_sigterm_during_the_boot(after: float, client: str) -> None:
    with FakeQueue() as queue, Process("handler.py", env=environment(queue, client)) as worker:
        (engine,) = worker.wait_children()
        time.sleep(after)
        if queue.takes:
            pytest.skip("it has booted already")
        worker.terminate()
        assert worker.wait(5) == 0
        assert "Traceback" not in worker.log()
        wait_gone(engine)


@CLIENTS
def test_without_restarts_a_dead_engine_ends_the_worker(client: str) -> None:
    with (
        FakeQueue() as queue,
        Process("handler.py", env=environment(queue, client, ENGINE_RESTARTS="0")) as worker,
    ):
        job = queue.submit(chat(max_tokens=500, ignore_eos=True, stream=True))
        queue.wait_pieces(job, 1, BOOT_SECONDS)
        (engine,) = [pid for pid, command in children(worker.popen.pid).items() if "ember.engine" in command]
        os.kill(engine, signal.SIGKILL)
        assert queue.wait(job, 10).status == "COMPLETED"
        assert worker.wait(15) != 0


@CLIENTS
def test_boot_failures_end_the_worker_with_one_line(client: str) -> None:
    with FakeQueue() as queue:
        with Process("handler.py", env={**queue.env(), "QUEUE_CLIENT": client}) as worker:
            assert worker.wait(30) == 1
            assert "MODEL_NAME is not set" in worker.log()
            assert "Traceback" not in worker.log()
        with Process("handler.py", env=environment(queue, client, MODEL_NAME="/no/such/model")) as worker:
            assert worker.wait(60) == 1
            assert "/no/such/model" in worker.log()
            assert "Traceback" not in worker.log()
        assert queue.takes == 0
        assert sum(ping.get("status") == "unhealthy" for ping in queue.pings) == 2


def test_native_jobs_as_lists_of_tokens() -> None:
    """The form of older workers; a job may ask for the other one."""
    with FakeQueue() as queue, Process("handler.py", env=environment(queue, "direct", NATIVE_OUTPUT="tokens")):
        sampling = {"max_tokens": 8, "temperature": 0.8, "seed": 7, "n": 2}
        native = {"messages": MESSAGES, "sampling_params": sampling}
        whole = queue.wait(queue.submit(native), BOOT_SECONDS)
        (output,) = whole.output
        texts = [choice["tokens"][0] for choice in output["choices"]]
        assert len(texts) == 2 and all(texts)
        assert set(output) == {"choices", "usage"}

        streamed = queue.wait(queue.submit({**native, "stream": True}))
        assert streamed.status == "COMPLETED"
        assert streamed.output[-1]["usage"] == output["usage"]
        for index, text in enumerate(texts):
            parts = [token for piece in streamed.output for token in piece["choices"][index]["tokens"]]
            assert "".join(parts) == text

        refused = queue.wait(queue.submit({"prompt": "a", "stream": True, "sampling_params": {"temperature": 99}}))
        assert (refused.status, refused.pieces) == ("FAILED", [])
        as_openai = queue.wait(queue.submit({**native, "use_openai_format": True}))
        assert [choice["message"]["content"] for choice in as_openai.output[0]["choices"]] == texts


def local(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of `python handler.py <arguments>`, with no model named."""
    with Process("handler.py", *arguments) as process:
        out = process.output(BOOT_SECONDS)
        document: dict[str, Any] = json.loads(out)
        return process.wait(), document


def test_local_job() -> None:
    code, document = local("--test_input", json.dumps({"input": chat(max_tokens=6)}))
    assert code == 0
    assert document["status"] == "COMPLETED"
    assert document["output"]["choices"][0]["message"]["content"]


def test_local_job_of_the_repository() -> None:
    code, document = local()
    assert (code, document["status"]) == (0, "COMPLETED")


def test_local_job_that_does_not_boot() -> None:
    with Process(
        "handler.py", "--test_input", json.dumps({"input": chat()}), env={"MODEL_NAME": "/no/such"}
    ) as process:
        document = json.loads(process.output(BOOT_SECONDS))
        assert process.wait() == 1
        assert (document["id"], document["status"]) == ("local_test", "FAILED")
        assert "/no/such" in document["error"]
        assert len(process.log().splitlines()) == 1


def test_local_job_that_is_stopped() -> None:
    with Process("handler.py", "--test_input", json.dumps({"input": chat(max_tokens=4)})) as process:
        (engine,) = process.wait_children()
        time.sleep(0.5)
        process.terminate()
        assert process.wait(5) == 143
        wait_gone(engine)


def test_local_job_that_fails() -> None:
    code, document = local("--test_input", json.dumps({"input": chat(temperature=99)}))
    assert (code, document["status"]) == (1, "FAILED")
    assert json.loads(document["error"])["code"] == 400
