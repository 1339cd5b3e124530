"""What comes from outside and is odd: it is refused with a reason that names it, or it is stored and handed out."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ember.front.api.routes import ROUTER
from ember.front.worker.delivery import delivered, read_answer
from ember.front.worker.inputs import parse_input
from ember.logs import Formatter
from ember.platform import webhooks, worker_routes
from ember.platform.jobs import is_webhook
from ember.platform.store import SqliteStore
from ember.untrusted_json import MAX_DEPTH
from tests.queue_platform.calls import Calls, platform, play

DEEP = "[" * 1_500 + "]" * 1_500
LONG = "7" * 5_000


async def post(calls: Calls, path: str, data: str | bytes) -> tuple[int, Any]:
    body = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    async with calls.session.post(calls.base + path, data=body) as response:
        return response.status, await response.json(loads=json.loads)


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


# ------------------------------------------------------------------------------------------------------ jobs


@pytest.mark.parametrize("path", ["/run", "/runsync?wait=1000", "/openai/v1/chat/completions"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f'{{"input": {DEEP}}}', f"more than {MAX_DEPTH} levels deep"),
        (f'{{"input": {nested(MAX_DEPTH)}}}', f"more than {MAX_DEPTH} levels deep"),
        (f'{{"input": 1, "s3Config": {{"a": {DEEP}}}}}', "levels deep"),
        (f'{{"input": {LONG}}}', "integer of more than"),
        (f'{{"input": 1, "policy": {{"ttl": -{LONG}}}}}', "integer of more than"),
        (b'{"input": "\xff"}', "UTF-8"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "levels deep"),
    ],
)
def test_what_no_worker_could_read_is_refused(path: str, body: str | bytes, said: str) -> None:
    async def scenario(calls: Calls) -> None:
        status, answer = await post(calls, path, body)
        assert status == 400 and said in answer["error"], answer
        assert not calls.endpoint.jobs
        query = {"input": body if isinstance(body, str) else "{"}
        if len(query["input"]) < 6_000 and not path.startswith("/openai"):
            async with calls.session.get(calls.base + path, params=query) as response:
                assert response.status == 400

    play(scenario)


def test_what_is_accepted_is_stored_handed_out_and_read_by_the_worker(tmp_path: Path) -> None:
    """At the limits of depth and digits, in every encoding of JSON, over a restart, beside an ordinary job."""
    inputs = [nested(MAX_DEPTH - 1), "7" * 4_300, '"\\ud800"', "NaN", '{"a": 1, "a": 2}', '"\\u0000\\u2028"', "1e999"]
    path = tmp_path / "jobs.db"

    async def run() -> None:
        async with platform(SqliteStore(path)) as calls:
            for number, text in enumerate(inputs):
                encoding = ["utf-8", "utf-8-sig", "utf-16", "utf-32-be"][number % 4]
                status, answer = await post(calls, "/run", f'{{"input": {text}}}'.encode(encoding))
                assert status == 200, answer
        async with platform(SqliteStore(path)) as calls:
            async with calls.session.get(f"{calls.base}/job-take-batch/w1?batch_size=20") as response:
                elements = await read_answer(await response.read())
            jobs = [delivered(element) for element in elements]
            assert all(job is not None and job.error is None for job in jobs)
            assert repr([job.job["input"] for job in jobs if job][: len(inputs)]) == repr(list(map(json.loads, inputs)))
            for job in jobs:
                assert job is not None
                output = json.dumps({"output": [job.job["input"]]})
                assert await calls.report("job-stream", job.id, output) == 200
                assert await calls.report("job-done", job.id, output) == 200
                async with calls.session.get(f"{calls.base}/stream/{job.id}") as response:
                    assert response.status == 200 and await response.read()
        async with platform(SqliteStore(path)) as calls:
            for job_id in list(calls.endpoint.jobs):
                async with calls.session.get(f"{calls.base}/status/{job_id}") as response:
                    assert json.loads(await response.read())["status"] == "COMPLETED"

    asyncio.run(run())


def test_an_openai_request_at_the_limit_of_depth_reaches_the_worker() -> None:
    async def scenario(calls: Calls) -> None:
        body = f'{{"input": {nested(MAX_DEPTH - 1)}}}'
        asking = asyncio.create_task(post(calls, "/openai/v1/embeddings", body))
        async with calls.session.get(f"{calls.base}/job-take-batch/w1?batch_size=20") as response:
            (element,) = await read_answer(await response.read())
        job = delivered(element)
        assert job is not None and job.error is None
        assert job.job["input"]["openai_input"] == json.loads(body)
        assert parse_input(job.job["input"], ROUTER, model="m").request.body is not None
        await calls.report("job-done", job.id, json.dumps({"output": [job.job["input"]]}))
        assert await asking == (200, job.job["input"])

    play(scenario, poll=5)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"policy": {"ttl": float("nan")}}, "policy.ttl"),
        ({"policy": {"ttl": float("inf")}}, "policy.ttl"),
        ({"policy": {"executionTimeout": 10**400}}, "policy.executionTimeout"),
        ({"policy": {"executionTimeout": "\ud800"}}, "policy.executionTimeout"),
        ({"policy": {"lowPriority": 1}}, "policy.lowPriority"),
        ({"policy": {"\ud800\n": 1}}, "policy."),
        ({"policy": []}, "policy"),
        ({"s3Config": "https://user:pass@bucket"}, "s3Config"),
        ({"s3Config": [1]}, "s3Config"),
        ({"webhook": {"url": "http://a"}}, "webhook"),
    ],
)
def test_odd_fields_of_a_job_are_refused_by_name(fields: dict[str, Any], named: str) -> None:
    async def scenario(calls: Calls) -> None:
        for path in ("/run", "/runsync"):
            status, answer = await post(calls, path, json.dumps({"input": 1, **fields}))
            assert status == 400 and named in answer["error"]

    play(scenario)


# ------------------------------------------------------------------------------------------------------ results


REFUSED = [
    (f'{{"output": {DEEP}}}', 400, "levels deep"),
    (f'{{"output": {LONG}}}', 400, "digits"),
    ('{"output": ', 400, "not valid JSON"),
    ("[1]", 400, "must be a JSON object"),
    ("", 400, "not valid JSON"),
    ('{"output": "' + "x" * 200_000 + '"}', 413, "larger than"),
]


@pytest.mark.parametrize("call", ["job-done", "job-stream"])
@pytest.mark.parametrize(("body", "expected", "said"), REFUSED)
def test_a_report_that_is_refused_fails_its_job(
    monkeypatch: pytest.MonkeyPatch, call: str, body: str, expected: int, said: str
) -> None:
    monkeypatch.setattr(worker_routes, "MAX_BODY_BYTES", 100_000)

    async def scenario(calls: Calls) -> None:
        job_id, other = await calls.run(1), await calls.run(2)
        waiting = asyncio.create_task(calls.client("POST", "/runsync", {"input": 3}))
        await asyncio.sleep(0.05)
        jobs = await calls.take_batch(3)
        assert len(jobs) == 3
        assert await calls.report(call, job_id, body, worker="another") == expected
        assert (await calls.status(job_id))["status"] == "IN_PROGRESS"
        for job in (job_id, jobs[2]["id"]):
            assert await calls.report(call, job, body) == expected
        failed = await calls.status(job_id)
        assert failed["status"] == "FAILED" and said in failed["error"]
        assert (await waiting)[1]["status"] == "FAILED"
        assert sorted(await calls.stops()) == sorted([job_id, jobs[2]["id"]])
        assert await calls.report("job-done", job_id, '{"output": 1}') == 200  # it is over
        assert (await calls.status(job_id))["status"] == "FAILED"
        assert await calls.report("job-done", other, '{"output": 1}') == 200
        assert (await calls.status(other))["status"] == "COMPLETED"
        assert await calls.report(call, "no-such-job", body) == expected

    play(scenario)


def test_a_body_that_cannot_be_decompressed_fails_its_job() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run(1)
        await calls.take()
        url = f"{calls.base}/job-done/w1/{job_id}?gpu=x"
        async with calls.session.post(url, data=b"no gzip", headers={"Content-Encoding": "gzip"}) as response:
            assert response.status == 400
        failed = await calls.status(job_id)
        assert failed["status"] == "FAILED" and "cannot be read" in failed["error"]

    play(scenario)


def test_a_report_that_breaks_off_may_come_again() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run(1)
        await calls.take()
        port = int(calls.platform.url.rpartition(":")[2])
        for framing in ("Content-Length: 500", "Transfer-Encoding: chunked"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /v2/any/job-done/w1/{job_id} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"
            writer.write(head.encode() + b'b\r\n{"output": 1\r\n')
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.close()
            await asyncio.sleep(0.1)
            assert (await calls.status(job_id))["status"] == "IN_PROGRESS", framing
        assert await calls.report("job-done", job_id, '{"output": 1}') == 200

    play(scenario)


def test_what_is_no_http_is_not_repeated_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(calls: Calls) -> None:
        port = int(calls.platform.url.rpartition(":")[2])
        for text in (
            f"GET /health HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\x01\r\n\r\n",
            f"{SECRET}\r\n\r\n",
            f"GET /{SECRET}\x00 HTTP/1.1\r\n\r\n",
            f"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: -{SECRET}\r\n\r\n",
            f"POST /run HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(text.encode())
            assert b" 400 " in await asyncio.wait_for(reader.readline(), 10)
            writer.close()
        assert (await calls.client("GET", "/health"))[0] == 200

    with caplog.at_level(logging.DEBUG):
        play(scenario)
    assert SECRET not in caplog.text and "Traceback" not in caplog.text


def test_a_body_beyond_the_real_limit_fails_its_job_without_being_read_whole() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run(1)
        await calls.take()

        async def endless() -> Any:
            while True:
                yield b"x" * 2**20

        url = f"{calls.base}/job-done/w1/{job_id}?gpu=x"
        try:
            async with calls.session.post(url, data=endless()) as response:
                assert response.status == 413
        except OSError:  # the platform has closed the connection while we sent
            pass
        failed = await calls.status(job_id)
        assert failed["status"] == "FAILED" and "64 MB" in failed["error"]

    play(scenario)


def test_numbers_and_text_that_only_json_can_spell_come_back_as_they_were_reported() -> None:
    async def scenario(calls: Calls) -> None:
        job_id = await calls.run(1)
        await calls.take()
        text = '{"output": [NaN, -Infinity, "\\ud800", "\\u0000", 1e999]}'
        assert await calls.report("job-stream", job_id, text) == 200
        assert await calls.report("job-done", job_id, text) == 200
        async with calls.session.get(f"{calls.base}/status/{job_id}") as response:
            assert repr(json.loads(await response.read())["output"]) == repr(json.loads(text)["output"])

    play(scenario)


# ------------------------------------------------------------------------------------------------------ webhooks

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        *("http://", "http:///path", "http://?x", "https://#", "http://:80/", "http://user:pass@/", "http://@/x"),
        *(
            "http://[::1",
            "http://[zz]/",
            "http://a:99999/",
            "http://a:0/",
            "http://a:b/",
            "http://a b/",
            "http://a/b c",
        ),
        *("http://a\n/", "http://a/\r\nX: 1", "http://a/\x1b[2J", "http://a/\x00", "http://a/\ud800", "http://\ud800/"),
        *("http://a..b/", "http://-a/", "http://.", "http://" + "a" * 64 + ".com/", "http://a\\b/", "http://a%00b/"),
        *("http://a/\u2028", "ftp://a/", "//a/", "a", "", "http:/a", "http://" + "a." * 130, "http://a/" + "x" * 9_000),
    ],
)
def test_what_is_no_url_is_refused_at_run(url: str) -> None:
    assert not is_webhook(url)

    async def scenario(calls: Calls) -> None:
        for path in ("/run", "/runsync"):
            status, answer = await post(calls, path, json.dumps({"input": 1, "webhook": url}))
            assert status == 400 and "webhook" in answer["error"], url
        assert not calls.endpoint.jobs

    play(scenario)


def test_what_is_a_url_is_taken() -> None:
    for url in ("http://localhost:9/x", "https://a.example.com./h?k=v#f", "http://[::1]:8080/", "http://127.0.0.1"):
        assert is_webhook(url)
    for url in ("https://user:pass@example.com/", "http://münchen.example/ä?ö", "http://my_service:80/", "HTTP://A/"):
        assert is_webhook(url)


@pytest.mark.parametrize("answer", ["refused", "status", "drop", "no_name", "redirect"])
def test_the_log_has_a_webhooks_host_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: str
) -> None:
    monkeypatch.setattr(webhooks, "WAIT_SECONDS", 0.01)

    async def hook(http: web.Request) -> web.Response:
        if answer == "drop" and http.transport is not None:
            http.transport.abort()
        if answer == "redirect":
            raise web.HTTPFound(f"http://127.0.0.1:1/{SECRET}")
        return web.Response(status=500, text=SECRET)

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", hook)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = 1 if answer == "refused" else runner.addresses[0][1]
        host = "no-such-host.invalid" if answer == "no_name" else "127.0.0.1"
        url = f"http://{SECRET}:{SECRET}@{host}:{port}/{SECRET}?key={SECRET}#{SECRET}"
        async with platform() as calls:
            job_id = await calls.run(1, webhook=url)
            await calls.take()
            await calls.report("job-done", job_id, '{"output": 1}')
            async with asyncio.timeout(30):
                while f"the webhook of job {job_id}, at {host}, was not delivered" not in caplog.text:
                    await asyncio.sleep(0.01)
        await runner.cleanup()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert SECRET not in caplog.text


# ------------------------------------------------------------------------------------------------------ ids and paths


@pytest.mark.parametrize(
    "name",
    ["a%2Fb", "%2e%2e", "a%0Ab", "%0d%0aX:1", "%1b%5b2J", "%00", "%ED%A0%80", "%ff", "x" * 5_000, "$ID", "%3F%23"],
)
def test_odd_ids_are_answered_and_logged_in_one_line(caplog: pytest.LogCaptureFixture, name: str) -> None:
    async def scenario(calls: Calls) -> None:
        for call in ("status", "stream", "cancel", "retry"):
            status, answer = await calls.client("POST", f"/{call}/{name}")
            assert status in (400, 404) and answer["error"], (call, answer)
        for call in ("job-done", "job-stream"):
            status, _ = await calls.client("POST", f"/{call}/{name}/{name}", {"output": 1})
            assert status in (400, 404)
        job_id = await calls.run(1)
        for call in ("job-take", "job-stop", "ping"):
            status, _ = await calls.client(
                "GET", f"/{call}/{name}?status=unhealthy&reason=a%0d%0aERROR%1b[2J{name[:100]}"
            )
            assert status in (200, 204, 400, 404), call
        assert (await calls.status(job_id))["status"] in ("IN_QUEUE", "IN_PROGRESS")
        assert not calls.endpoint._keeper._late  # what was accepted is stored
        line = Formatter()
        for each in caplog.records:
            assert not re.search("[\x00-\x1f\x7f-\x9f]", line.format(each).replace("\n  ", ""))

    play(scenario, poll=0.05)


@pytest.mark.parametrize("path", ["/openai/v1/a%0Ab", "/openai/%0A", "/openai/v1/%1b", "/openai/a%2Fb%0D%0A"])
def test_line_breaks_in_a_path_are_part_of_it(path: str) -> None:
    async def scenario(calls: Calls) -> None:
        asking = asyncio.create_task(calls.client("GET", path))
        job = await calls.take()
        assert job["input"]["openai_route"].startswith("/")
        await calls.report("job-done", job["id"], '{"output": [{"a": 1}]}')
        assert await asking == (200, {"a": 1})

    play(scenario, poll=5)


def test_a_ping_may_name_as_many_jobs_as_a_worker_can_run() -> None:
    async def scenario(calls: Calls) -> None:
        ids = ",".join(f"{'x' * 39}{number}" for number in range(1_000))
        status, _ = await calls.client("GET", f"/ping/w1?job_id={ids}")
        assert status == 200

    play(scenario)
