"""The platform's two sides, call by call: what clients see of a job, and what workers are given and may report."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ember.platform import client_routes, endpoint, webhooks
from ember.platform.jobs import MAX_CHUNK_BYTES, split_chunk
from tests.queue_platform.calls import Calls, platform, play


def test_a_job_from_queue_to_result() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run({"prompt": "hi"})
        assert await calls.status(job_id) == {"id": job_id, "status": "IN_QUEUE"}
        assert await calls.take() == {"id": job_id, "input": {"prompt": "hi"}}
        running = await calls.status(job_id)
        assert (running["status"], running["workerId"]) == ("IN_PROGRESS", "w1")
        assert running["delayTime"] >= 0 and "executionTime" not in running
        assert await calls.report("job-done", job_id, '{"output": [{"text": "日本"}]}') == 200
        done = await calls.status(job_id)
        assert (done["status"], done["output"]) == ("COMPLETED", [{"text": "日本"}])
        assert done["executionTime"] >= 0
        assert (await calls.client("POST", f"/status/{job_id}"))[1] == done
        assert await calls.take() is None

    play(scenario)


def test_any_id_and_none_are_the_same_endpoint() -> None:
    async def scenario(calls: Calls) -> None:
        url = calls.platform.url
        async with calls.session.post(f"{url}/v2/LOCAL/run", json={"input": {"n": 1}}) as response:
            job_id = (await response.json())["id"]
        async with calls.session.post(f"{url}/run", json={"input": {"n": 2}}) as response:
            assert response.status == 200
        assert [job["input"]["n"] for job in await calls.take_batch(5)] == [1, 2]
        async with calls.session.get(f"{url}/v2/other/status/{job_id}") as response:
            assert (await response.json())["status"] == "IN_PROGRESS"

    play(scenario)


def test_what_json_allows_arrives_unharmed() -> None:
    given = {"half": "\ud800", "large": 2**70, "key\ud800": 1, "text": "日本", "number": 1e300}

    async def scenario(calls: Calls) -> None:
        data = json.dumps({"input": given}).encode()
        async with calls.session.post(calls.base + "/run", data=data) as response:
            job_id = (await response.json())["id"]
        assert (await calls.take())["input"] == given
        await calls.report("job-done", job_id, json.dumps({"output": given}))
        assert (await calls.status(job_id))["output"] == given

    play(scenario)


def test_runsync_waits() -> None:
    async def scenario(calls: Calls) -> None:
        waiting = asyncio.create_task(calls.client("POST", "/runsync", {"input": {"a": 1}}))
        job = await calls.take()
        assert job["id"].startswith("sync-")
        assert not waiting.done()
        await calls.report("job-done", job["id"], '{"output": 5}')
        status, body = await waiting
        assert (status, body["status"], body["output"]) == (200, "COMPLETED", 5)
        _, early = await calls.client("POST", "/runsync?wait=1000", {"input": {"a": 2}})
        assert early["status"] == "IN_QUEUE" and "output" not in early
        for wait in ("0", "300001", "x", "-5", "²"):
            assert (await calls.client("POST", f"/runsync?wait={wait}", {"input": 1}))[0] == 400

    play(scenario, poll=5)


def test_stream_gives_each_output_once() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run({"stream": True})
        await calls.take()
        for text in ("a", "b"):
            await calls.report("job-stream", job_id, json.dumps({"output": text}))
        _, body = await calls.client("GET", f"/stream/{job_id}")
        assert body == {"status": "IN_PROGRESS", "stream": [{"output": "a"}, {"output": "b"}]}
        waiting = asyncio.create_task(calls.client("GET", f"/stream/{job_id}"))
        await asyncio.sleep(0.05)
        await calls.report("job-stream", job_id, '{"output": {"c": 1}}')
        assert (await waiting)[1]["stream"] == [{"output": {"c": 1}}]
        await calls.report("job-done", job_id, '{"output": ["a", "b", {"c": 1}]}')
        assert (await calls.client("POST", f"/stream/{job_id}"))[1] == {"status": "COMPLETED", "stream": []}
        assert (await calls.status(job_id))["output"] == ["a", "b", {"c": 1}]

    play(scenario)


def test_a_large_chunk_is_split_between_characters() -> None:
    text = "é" * MAX_CHUNK_BYTES
    parts = split_chunk("x" + text)
    assert "".join(parts) == "x" + text
    assert len(parts) == 3
    assert all(len(part.encode()) <= MAX_CHUNK_BYTES for part in parts)
    assert split_chunk({"a": text}) == [{"a": text}]


def test_cancel_tells_the_worker() -> None:
    async def scenario(calls: Calls) -> None:
        queued = await calls.run(1)
        assert (await calls.client("POST", f"/cancel/{queued}"))[1] == {"id": queued, "status": "CANCELLED"}
        assert await calls.take() is None
        running = await calls.run(2)
        await calls.take()
        hearing = asyncio.create_task(calls.stops())
        await asyncio.sleep(0.05)
        assert (await calls.client("GET", f"/cancel/{running}"))[1]["status"] == "CANCELLED"
        assert await hearing == [running]
        assert await calls.stops() == []
        assert await calls.report("job-done", running, '{"output": 1}') == 200
        assert (await calls.status(running))["status"] == "CANCELLED"
        assert "output" not in await calls.status(running)
        done = await calls.run(3)
        await calls.take()
        await calls.report("job-done", done, '{"output": 1}')
        assert (await calls.client("POST", f"/cancel/{done}"))[1]["status"] == "COMPLETED"

    play(scenario)


def test_retry_of_what_failed() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run({"x": 1})
        assert (await calls.client("POST", f"/retry/{job_id}"))[0] == 400
        await calls.take()
        await calls.report("job-done", job_id, '{"error": "no"}')
        failed = await calls.status(job_id)
        assert (failed["status"], failed["error"]) == ("FAILED", "no")
        assert (await calls.client("POST", f"/retry/{job_id}"))[1] == {"id": job_id, "status": "IN_QUEUE"}
        again = await calls.status(job_id)
        assert "error" not in again and again["retries"] == 1
        assert (await calls.take())["id"] == job_id
        await calls.report("job-done", job_id, '{"output": "yes"}')
        assert (await calls.status(job_id))["output"] == "yes"

    play(scenario)


TOO_LONG = [start + "9" * count for start in ("000000200000", "000001") for count in (9, 5000)]  # begin as good ones do


def test_numbers_in_queries() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run(1)
        for number in (*TOO_LONG, "5000000000", "-1", "1.5", "", "x", "²"):
            for method, path in (
                ("POST", "/runsync?wait="),
                ("GET", f"/status/{job_id}?ttl="),
                ("GET", "/job-take-batch/w?batch_size="),
            ):
                status, body = await calls.client(method, path + number, {"input": 1} if method == "POST" else None)
                assert status == 400 and "must be between" in body["error"], (path, number)
        assert list(calls.endpoint.jobs) == [job_id]
        assert (await calls.client("GET", f"/status/{job_id}?ttl=10000"))[0] == 200
        assert (await calls.client("GET", "/job-take-batch/w?batch_size=10000"))[1][0]["id"] == job_id

    play(scenario)


def test_an_old_stop_order_does_not_meet_the_next_try() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run(1, policy={"executionTimeout": 5000})
        other = await calls.run(2)
        assert len(await calls.take_batch(2)) == 2
        calls.endpoint.sweep(time.time() + 6)
        await calls.client("POST", f"/cancel/{other}")
        assert (await calls.status(job_id))["status"] == "TIMED_OUT"
        await calls.client("POST", f"/retry/{job_id}")
        assert (await calls.take())["id"] == job_id
        assert await calls.stops() == [other]
        await calls.report("job-done", job_id, '{"output": 1}')
        assert (await calls.status(job_id))["status"] == "COMPLETED"

    play(scenario)


def test_what_a_leaving_client_has_not_read_is_there_for_the_next() -> None:
    texts = [f"{number} " + "x" * 900_000 for number in range(30)]

    async def scenario(calls: Calls) -> None:
        job_id = await calls.run(1)
        await calls.take()
        for text in texts:
            await calls.report("job-stream", job_id, json.dumps({"output": text}))
        host, port = calls.platform.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1000)
        writer.write(f"GET /stream/{job_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert not calls.endpoint.jobs[job_id].chunks
        writer.transport.abort()
        _, body = await calls.client("GET", f"/stream/{job_id}")
        assert [each["output"] for each in body["stream"]] == texts

    play(scenario)


def test_purge_and_health() -> None:
    async def scenario(calls: Calls) -> None:
        running = await calls.run(0)
        await calls.take()
        waiting = [await calls.run(number) for number in range(3)]
        _, health = await calls.client("GET", "/health")
        assert health["jobs"] == {"completed": 0, "failed": 0, "retried": 0, "inProgress": 1, "inQueue": 3}
        assert (health["workers"]["running"], health["workers"]["idle"]) == (1, 0)
        assert (await calls.client("POST", "/purge-queue"))[1] == {"removed": 3, "status": "completed"}
        assert (await calls.status(waiting[0]))["status"] == "CANCELLED"
        assert (await calls.status(running))["status"] == "IN_PROGRESS"
        await calls.client("GET", "/ping/w2?status=unhealthy&check=gpu&reason=it+is+gone&runpod_version=1")
        _, health = await calls.client("POST", "/health")
        assert health["workers"]["unhealthy"] == 1

    play(scenario)


def test_low_priority_waits_for_the_others() -> None:
    async def scenario(calls: Calls) -> None:
        for number, low in ((1, True), (2, False), (3, True), (4, False)):
            await calls.run(number, policy={"lowPriority": low})
        assert [job["input"] for job in await calls.take_batch(9)] == [2, 4, 1, 3]

    play(scenario)


def test_time_ends_jobs() -> None:
    async def scenario(calls: Calls) -> None:
        slow = await calls.run(1, policy={"executionTimeout": 5000})
        await calls.take()
        old = await calls.run(2, policy={"ttl": 10_000})
        kept = await calls.run(3)
        now = time.time()
        calls.endpoint.sweep(now + 4)
        assert (await calls.status(slow))["status"] == "IN_PROGRESS"
        calls.endpoint.sweep(now + 6)
        timed_out = await calls.status(slow)
        assert timed_out["status"] == "TIMED_OUT" and "5 seconds" in timed_out["error"]
        assert await calls.stops() == [slow]
        calls.endpoint.sweep(now + 11)
        assert (await calls.client("GET", f"/status/{old}"))[0] == 404
        assert (await calls.take())["id"] == kept
        await calls.report("job-done", kept, '{"output": 1}')
        calls.endpoint.sweep(time.time() + 1700)
        assert (await calls.status(kept))["output"] == 1
        await calls.client("GET", f"/status/{kept}?ttl=3600000")
        calls.endpoint.sweep(time.time() + 1900)
        assert (await calls.status(kept))["output"] == 1
        calls.endpoint.sweep(time.time() + 3700)
        assert (await calls.client("GET", f"/status/{kept}"))[0] == 404
        assert not calls.endpoint.jobs

    play(scenario)


def test_jobs_of_a_worker_that_went_silent() -> None:
    async def scenario(calls: Calls) -> None:
        untouched, begun, lost = [await calls.run(name) for name in ("untouched", "begun", "lost")]
        await calls.take_batch(2)
        await calls.report("job-stream", begun, '{"output": "a"}')
        await calls.client("GET", "/ping/w1?gpu=x")
        later = time.time() + endpoint.SILENT_SECONDS + 1
        calls.endpoint.sweep(later)
        assert (await calls.status(untouched))["status"] == "IN_QUEUE"
        failed = await calls.status(begun)  # a client has read a part of it
        assert failed["status"] == "FAILED" and "stopped answering" in failed["error"]
        assert await calls.report("job-done", untouched, '{"output": "late"}') == 200
        assert [job["id"] for job in await calls.take_batch(5, "w2")] == [lost, untouched]
        assert (await calls.status(untouched))["retries"] == 1
        for worker in ("w2", "w3"):
            await calls.client("GET", f"/ping/{worker}?gpu=x")
            calls.endpoint.sweep(time.time() + endpoint.SILENT_SECONDS + 1)
            await calls.take_batch(5, "w3")
        assert (await calls.status(untouched))["status"] == "FAILED"
        assert (await calls.client("GET", "/health"))[1]["jobs"]["retried"] == 4

    play(scenario)


def test_a_worker_that_leaves_while_it_waits_loses_nothing() -> None:
    async def scenario(calls: Calls) -> None:
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.2):
                await calls.take("gone")
        job_id = await calls.run(1)
        assert (await calls.take("here"))["id"] == job_id

    play(scenario, poll=5)


def test_results_and_bodies_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_routes, "RUN_BYTES", 1 << 20)

    async def scenario(calls: Calls) -> None:
        status, body = await calls.client("POST", "/run", {"input": "x" * (1 << 20)})
        assert status == 413 and "1 MB" in body["error"]
        job_id = await calls.run(1)
        await calls.take()
        assert await calls.report("job-done", job_id, json.dumps({"output": "x" * (10 << 20)})) == 400
        failed = await calls.status(job_id)
        assert failed["status"] == "FAILED" and "10 MB" in failed["error"]

    play(scenario)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"inputs": 1},
        {"input": None},
        {"input": 1, "policy": {"ttl": 1}},
        {"input": 1, "policy": {"executionTimeout": True}},
        {"input": 1, "policy": {"executionTimeout": 1e12}},
        {"input": 1, "policy": {"lowPriority": "yes"}},
        {"input": 1, "policy": [1]},
        {"input": 1, "webhook": "file:///etc/passwd"},
        {"input": 1, "webhook": 5},
    ],
)
def test_requests_that_make_no_sense(body: Any) -> None:
    async def scenario(calls: Calls) -> None:
        status, answer = await calls.client("POST", "/run", body)
        assert status == 400
        assert set(answer) == {"error"}
        assert not calls.endpoint.jobs

    play(scenario)


def test_calls_that_make_no_sense() -> None:
    async def scenario(calls: Calls) -> None:
        assert (await calls.client("GET", "/status/nothing"))[0] == 404
        assert (await calls.client("GET", "/nowhere"))[0] == 404
        assert (await calls.client("DELETE", "/health"))[0] == 405
        assert await calls.report("job-done", "nothing", "{}") == 404
        job_id = await calls.run(1)
        for text in ("", "{", "[]", "[" * 100_000):
            assert await calls.report("job-done", job_id, text) == 400
        assert await calls.report("job-stream", job_id, "{}") == 400
        assert (await calls.client("GET", "/job-take-batch/w?batch_size=x"))[0] == 400
        async with calls.session.get(calls.base + '/run?input={"a":1}') as response:
            assert response.status == 200
        async with calls.session.get(calls.base + "/run?input={") as response:
            assert response.status == 400
        packed = {"Content-Encoding": "gzip"}
        async with calls.session.post(calls.base + "/run", data=b"not packed at all", headers=packed) as response:
            assert response.status == 400

    play(scenario)


def test_progress_and_its_end() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run(1)
        await calls.take()
        await calls.report("job-done", job_id, '{"status": "IN_PROGRESS", "output": "half"}')
        assert (await calls.status(job_id))["output"] == "half"
        await calls.report("job-done", job_id, '{"output": "whole"}')
        await calls.report("job-done", job_id, '{"status": "IN_PROGRESS", "output": "late"}')
        done = await calls.status(job_id)
        assert (done["status"], done["output"]) == ("COMPLETED", "whole")

    play(scenario)


def test_webhook_is_sent_until_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "WAIT_SECONDS", 0.02)
    received: list[Any] = []
    answers = [500, 302, 200, 200]
    arrived = asyncio.Event()

    async def hook(http: web.Request) -> web.Response:
        received.append(await http.json())
        arrived.set()
        return web.Response(status=answers.pop(0))

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/hook", hook)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        async with platform() as calls:
            job_id = await calls.run(1, webhook=url)
            assert (await calls.take())["webhook"] == url
            await calls.report("job-done", job_id, '{"output": 7}')
            while len(received) < 3:
                arrived.clear()
                await asyncio.wait_for(arrived.wait(), 20)
            await asyncio.sleep(0.1)
            assert len(received) == 3
            assert {(body["id"], body["status"], body["output"]) for body in received} == {(job_id, "COMPLETED", 7)}
        await runner.cleanup()

    asyncio.run(run())


def test_keys() -> None:
    async def scenario(calls: Calls) -> None:
        for path in ("/health", "/job-take/w", "/openai/v1/models", "/nowhere"):
            assert (await calls.client("GET", path))[0] == 401, path
            assert (await calls.client("GET", path, Authorization="Bearer on"))[0] == 401, path
        assert (await calls.client("GET", "/health", Authorization="Bearer one"))[0] == 200
        assert (await calls.client("GET", "/health", Authorization="two"))[0] == 200  # as workers send it
        for name in ("x-api-key", "api-key"):
            assert [(await calls.client("GET", "/health", **{name: key}))[0] for key in ("two", "tw")] == [200, 401]

    play(scenario, keys=("one", "two"))


def test_openai_requests_become_jobs() -> None:
    async def scenario(calls: Calls) -> None:
        asked = asyncio.create_task(calls.client("GET", "/openai/v1/models"))
        job = await calls.take()
        assert job["input"] == {"openai_route": "/v1/models"}
        await calls.report("job-done", job["id"], '{"output": [{"object": "list"}]}')
        assert await asked == (200, {"object": "list"})
        asked = asyncio.create_task(calls.client("POST", "/openai/v1/chat/completions", {"messages": []}))
        job = await calls.take()
        assert job["input"] == {"openai_route": "/v1/chat/completions", "openai_input": {"messages": []}}
        error = {"message": "bad", "type": "BadRequestError", "param": None, "code": 400}
        await calls.report("job-done", job["id"], json.dumps({"error": json.dumps(error)}))
        assert await asked == (500, {"error": error})
        kept = {"type": "invalid_request_error", "message": "bad", "details": {"error_code": "one"}}
        ended = {"type": "api_error", "message": "bad"}  # of a worker that ended
        for told, expected in ((json.dumps(kept), kept), ("bad", ended)):
            asked = asyncio.create_task(calls.client("POST", "/openai/v1/messages", {}))
            await calls.report("job-done", (await calls.take())["id"], json.dumps({"error": told}))
            assert await asked == (500, {"type": "error", "error": expected})
        asked = asyncio.create_task(calls.client("DELETE", "/openai/v1/responses/resp_1"))
        job = await calls.take()
        assert job["input"] == {"route": "/v1/responses/resp_1", "method": "DELETE"}
        await calls.report("job-done", job["id"], '{"output": [{"deleted": true}]}')
        assert await asked == (200, {"deleted": True})
        events = "/openai/v1/responses/resp_1?stream=true&starting_after=2"
        getting = asyncio.create_task(calls.session.get(calls.base + events))
        job = await calls.take()
        assert job["input"] == {"openai_route": events.removeprefix("/openai")}
        await calls.report("job-stream", job["id"], '{"output": "event: a\\n\\n"}')
        await calls.report("job-done", job["id"], '{"output": ["event: a\\n\\n"]}')
        assert await (await getting).text() == "event: a\n\n"
        asked = asyncio.create_task(calls.client("POST", "/openai/v1/completions", {}))
        job = await calls.take()
        await calls.report("job-done", job["id"], json.dumps({"error": "it broke"}))
        assert (await asked)[1]["error"]["message"] == "it broke"
        form = aiohttp.FormData({"file": "x", "model": "y"})
        async with calls.session.post(calls.base + "/openai/v1/audio/transcriptions", data=form) as response:
            assert response.status == 415

    play(scenario, poll=5)


def test_openai_stream_is_the_texts_in_order() -> None:
    async def scenario(calls: Calls) -> None:
        async def asks() -> str:
            url = calls.base + "/openai/v1/chat/completions"
            async with calls.session.post(url, json={"stream": True}) as response:
                assert response.status == 200
                assert response.content_type == "text/event-stream"
                return await response.text()

        asked = asyncio.create_task(asks())
        job = await calls.take()
        for text in ("data: 1\n\n", "data: é\n\ndata: 3\n\n"):
            await calls.report("job-stream", job["id"], json.dumps({"output": text}))
        await calls.report("job-stream", job["id"], json.dumps({"output": [{"a": 1}, {"b": 2}]}))
        await calls.report("job-stream", job["id"], json.dumps({"output": "data: [DONE]\n\n"}))
        await calls.report("job-done", job["id"], '{"output": []}')
        assert await asked == ('data: 1\n\ndata: é\n\ndata: 3\n\ndata: {"a": 1}\n\ndata: {"b": 2}\n\ndata: [DONE]\n\n')
        asked = asyncio.create_task(asks())
        job = await calls.take()
        await calls.report("job-stream", job["id"], json.dumps({"output": "data: 1\n\n"}))
        await calls.report("job-done", job["id"], json.dumps({"error": "it broke"}))
        text = await asked
        assert text.startswith("data: 1\n\n") and "it broke" in text

    play(scenario, poll=5)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_job(stream: bool) -> None:
    async def scenario(calls: Calls) -> None:
        asked = asyncio.create_task(calls.client("POST", "/openai/v1/completions", {"stream": stream}))
        job = await calls.take()
        if stream:
            await calls.report("job-stream", job["id"], '{"output": "data: 1\\n\\n"}')
            await asyncio.sleep(0.05)
        asked.cancel()
        assert await calls.stops() == [job["id"]]
        assert (await calls.status(job["id"]))["status"] == "CANCELLED"

    play(scenario, poll=5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"policy": {"foo": 1}}, "policy.foo is unknown; allowed are executionTimeout, lowPriority and ttl"),
        ({"policy": {"executiontimeout": 5000}}, "executiontimeout"),
        ({"s3Config": 7}, "s3Config must be an object"),
    ],
)
def test_mistyped_options_of_a_job_are_refused(fields: Any, says: str) -> None:
    async def scenario(calls: Calls) -> None:
        status, body = await calls.client("POST", "/run", {"input": {"a": 1}, **fields})
        assert status == 400 and says in body["error"]

    play(scenario)


def test_unknown_fields_of_a_job_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(calls: Calls) -> None:
        for _ in range(2):
            assert (await calls.client("POST", "/run", {"input": {"a": 1}, "zork": 1, "id": "x"}))[0] == 200

    play(scenario)
    said = [record.getMessage() for record in caplog.records if "zork" in record.getMessage()]
    assert len(said) == 1 and "no effect" in said[0]
