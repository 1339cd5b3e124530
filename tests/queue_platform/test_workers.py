"""Real worker processes on the platform: the SDK's loop and our own client, with a fake engine behind both."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ember.front.worker.fitness import GIB, Host, unfit
from ember.platform import worker_routes
from ember.platform.server import PlatformThread, worker_environment
from ember.platform.store import MemoryStore
from tests.support.processes import ROOT, Process

SCRIPT = str(ROOT / "tests/faces/face_process.py")
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


@contextmanager
def endpoint(client: str, workers: int = 1, key: str | None = None, **env: str) -> Iterator[tuple[str, list[Process]]]:
    """The URL of an endpoint with that many workers, and these."""
    platform = PlatformThread(MemoryStore(), "127.0.0.1", 0, [key] if key else [])
    platform.start()
    processes: list[Process] = []
    try:
        for number in range(workers):
            own = {**worker_environment(platform.url, f"worker-{number}", key), "RUNPOD_PING_INTERVAL": "1000", **env}
            options = {"settings": {"queue_client": client, "max_concurrency": 8}}
            processes.append(Process(SCRIPT, json.dumps(options), env=own))
        yield f"{platform.url}/v2/test", processes
    finally:
        for process in processes:
            process.__exit__(None, None, None)
        platform.stop()


@contextmanager
def running(client: str, workers: int = 1, key: str | None = None) -> Iterator[str]:
    with endpoint(client, workers, key) as (url, _):
        yield url


def call(url: str, body: Any = None, key: str | None = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as response:
        return json.loads(response.read())


def chat(**body: Any) -> dict[str, Any]:
    return {"openai_route": "/v1/chat/completions", "openai_input": {"messages": [], **body}}


def until_final(url: str, job_id: str) -> Any:
    deadline = time.monotonic() + 60
    while (body := call(f"{url}/status/{job_id}"))["status"] not in FINAL:
        assert time.monotonic() < deadline, body
        time.sleep(0.02)
    return body


@pytest.mark.parametrize("client", ["runpod", "direct"])
def test_jobs_through_a_worker(client: str) -> None:
    with running(client) as url:
        whole = call(f"{url}/runsync", {"input": chat(words=1)})
        assert whole["status"] == "COMPLETED", whole
        assert whole["output"][0]["object"] == "chat.completion"
        assert whole["workerId"] == "worker-0"

        job_id = call(f"{url}/run", {"input": chat(stream=True, words=30, pace=0.01)})["id"]
        pieces: list[str] = []
        while True:
            body = call(f"{url}/stream/{job_id}")
            pieces += [each["output"] for each in body["stream"]]
            if body["status"] in FINAL and not body["stream"]:
                break
        assert len(pieces) > 3, "it was not streamed"
        text = "".join(pieces)
        assert text.count("data: ") == 31 and text.endswith("data: [DONE]\n\n")
        assert "".join(until_final(url, job_id)["output"]) == text

        failed = call(f"{url}/runsync", {"input": chat(fail="bad")})
        assert failed["status"] == "FAILED"
        assert json.loads(failed["error"])["param"] == "temperature"

        stopped = call(f"{url}/run", {"input": chat(stream=True, words=10_000, pace=0.01)})["id"]
        assert call(f"{url}/stream/{stopped}")["stream"]
        assert call(f"{url}/cancel/{stopped}", {})["status"] == "CANCELLED"
        again = call(f"{url}/runsync", {"input": chat(words=1)})
        assert again["status"] == "COMPLETED"
        deadline = time.monotonic() + 20
        while (health := call(f"{url}/health"))["workers"]["running"]:
            assert time.monotonic() < deadline, health
        assert health["jobs"]["completed"] == 3 and health["workers"]["ready"] == 1


@pytest.mark.parametrize("client", ["runpod", "direct"])
def test_a_key_that_workers_and_clients_need(client: str) -> None:
    with running(client, key="the-key") as url:
        assert call(f"{url}/runsync", {"input": chat(words=1)}, "the-key")["status"] == "COMPLETED"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            call(f"{url}/health")


def test_many_workers_share_the_queue() -> None:
    with running("direct", workers=3) as url:
        jobs = [call(f"{url}/run", {"input": chat(words=10, pace=0.02)})["id"] for _ in range(60)]
        bodies = [until_final(url, job_id) for job_id in jobs]
        assert {body["status"] for body in bodies} == {"COMPLETED"}
        assert len({body["workerId"] for body in bodies}) > 1


def test_a_port_that_is_taken() -> None:
    first = PlatformThread(MemoryStore(), "127.0.0.1", 0, [])
    first.start()
    try:
        port = int(first.url.rpartition(":")[2])
        second = PlatformThread(MemoryStore(), "127.0.0.1", port, [])
        with pytest.raises(OSError):
            second.start()
    finally:
        first.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "platform" and thread.is_alive()]


HANDLER = """
import runpod
def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value
outputs = {"large": "x" * 300_000, "deep": nested(500), "fine": {"ok": nested(100)}}
def handler(job):
    return outputs[job["input"]]
def generator(job):
    yield "first"
    yield outputs[job["input"]]
    yield "last"
runpod.serverless.start({"handler": %s, "return_aggregate_stream": True})
"""


@pytest.mark.parametrize("kind", ["handler", "generator"])
def test_any_handler_on_the_sdk_whose_result_is_refused_fails_its_job(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(worker_routes, "MAX_BODY_BYTES", 100_000)
    platform = PlatformThread(MemoryStore(), "127.0.0.1", 0, [])
    platform.start()
    env = {**worker_environment(platform.url, "sdk"), "RUNPOD_SKIP_GPU_CHECK": "true"}
    env |= {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_AI_API_KEY": ""}  # without a key it does not ping
    try:
        with Process("-c", HANDLER % kind, env=env):
            url = f"{platform.url}/v2/test"
            jobs = {name: call(f"{url}/run", {"input": name})["id"] for name in ("large", "deep", "fine")}
            bodies = {name: until_final(url, job_id) for name, job_id in jobs.items()}
            assert {name: body["status"] for name, body in bodies.items()} == {
                **dict.fromkeys(("large", "deep"), "FAILED"),
                "fine": "COMPLETED",
            }
            assert "larger than" in bodies["large"]["error"]
            assert "levels deep" in bodies["deep"]["error"]
    finally:
        platform.stop()


def test_a_host_that_is_unfit_is_reported_to_the_platform() -> None:
    with endpoint("direct", RUNPOD_MIN_MEMORY_GB="1000000") as (url, (process,)):
        assert process.wait(60) == 1
        (line,) = [line for line in process.log().splitlines() if "ERROR" in line]
        assert "of memory are free, less than RUNPOD_MIN_MEMORY_GB=1e+06; the worker exits" in line
        assert call(f"{url}/health")["workers"]["unhealthy"] == 1


@pytest.mark.parametrize(
    ("environ", "host", "check"),
    [
        ({}, Host(), None),
        ({}, Host(GIB // 5), "memory"),
        ({}, Host(3 * GIB, 5.0), None),
        ({"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false"}, Host(3 * GIB, 50.0), "memory"),
        ({"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false"}, Host(5 * GIB, 9.9), "disk"),
        ({"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true"}, Host(0, 0.0, True), None),
        ({}, Host(8 * GIB, 0.4), "disk"),
        ({"RUNPOD_MIN_DISK_PERCENT": "0"}, Host(8 * GIB, 0.0), None),
        ({}, Host(8 * GIB, 50.0, True), "gpu"),
        ({"RUNPOD_SKIP_GPU_CHECK": "true"}, Host(8 * GIB, 50.0, True), None),
        ({}, Host(8 * GIB, 50.0, True, 11.7), "cuda_version"),
        ({}, Host(8 * GIB, 50.0, True, 12.8), None),
        ({"RUNPOD_MIN_CUDA_VERSION": "13.0"}, Host(8 * GIB, 50.0, True, 12.8), "cuda_version"),
    ],
)
def test_the_checks_of_a_host(environ: dict[str, str], host: Host, check: str | None) -> None:
    found = unfit(environ, host)
    assert (found and found.check) == check
    assert found is None or "\n" not in found.reason


def test_a_worker_on_a_cpu_needs_no_driver_of_a_gpu() -> None:
    assert unfit({}, Host(8 * GIB, 50.0, has_gpu=True), uses_gpu=False) is None


@pytest.mark.parametrize("value", ["much", "-1", "nan", "1e99"])
def test_a_threshold_that_is_no_number(value: str) -> None:
    with pytest.raises(ValueError, match="RUNPOD_MIN_MEMORY_GB=.* must be a number from 0 to"):
        unfit({"RUNPOD_MIN_MEMORY_GB": value}, Host())
