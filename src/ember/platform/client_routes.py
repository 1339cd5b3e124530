"""The client API: /run, /runsync, /status, /stream, /cancel, /retry, /purge-queue, /health and /jobs, with GET and
POST."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from aiohttp import web

from ember.platform.endpoint import Endpoint
from ember.platform.jobs import TTL_MS, Job, PlatformError, new_job
from ember.untrusted_json import MAX_VALUES, UntrustedJsonError, loads

ENDPOINT: web.AppKey[Endpoint] = web.AppKey("endpoint", Endpoint)

RUN_BYTES, RUNSYNC_BYTES = 10 * 2**20, 20 * 2**20  # maximum size of a request's body
_WAIT_MS = (1_000, 90_000, 300_000)  # least, default, most
_LISTED = (1, 50, 1_000)  # jobs of /jobs: least, default, most
_STREAM_SECONDS = 5.0  # how long /stream waits for output; the SDK's client times out after ten


def add_client_routes(app: web.Application) -> None:
    """Add the routes under /v2/<any id>, and without this prefix, as in the SDK's own test server."""
    for prefix in ("/v2/{endpoint}", ""):
        for path, handler in (
            ("/run", run),
            ("/runsync", runsync),
            ("/status/{job}", status),
            ("/stream/{job}", stream),
            ("/cancel/{job}", cancel),
            ("/retry/{job}", retry),
            ("/purge-queue", purge_queue),
            ("/health", health),
            ("/jobs", jobs),
        ):
            app.router.add_get(prefix + path, handler)
            app.router.add_post(prefix + path, handler)


async def run(http: web.Request) -> web.Response:
    job = http.app[ENDPOINT].submit(new_job(*await _request(http, RUN_BYTES), is_sync=False))
    return answer({"id": job.id, "status": job.status})


async def runsync(http: web.Request) -> web.Response:
    """Return the result, or the job's status after the wait. The job goes on if the client disconnects."""
    wait = query_number(http, "wait", _WAIT_MS, " milliseconds")
    endpoint = http.app[ENDPOINT]
    job = endpoint.submit(new_job(*await _request(http, RUNSYNC_BYTES), is_sync=True))
    await endpoint.wait_final(job, wait / 1000)
    return answer(job.body())


async def status(http: web.Request) -> web.Response:
    """Return the job's status. `?ttl=` keeps the result for that many milliseconds from now."""
    job = _job(http)
    if "ttl" in http.query:
        job.kept_until = time.time() + query_number(http, "ttl", TTL_MS, " milliseconds") / 1000
    return answer(job.body())


async def stream(http: web.Request) -> web.StreamResponse:
    """Return the outputs streamed since the last call. The stream is over when the job has ended and none are left.

    Outputs that a client did not read completely before it disconnected are returned by the next call.
    """
    job = _job(http)
    endpoint = http.app[ENDPOINT]
    await endpoint.wait_chunks(job, _STREAM_SECONDS)
    retries, chunks = job.retries, endpoint.take_chunks(job)
    body: dict[str, Any] = {"status": job.status, "stream": [{"output": each} for each in chunks]}
    if job.error is not None:
        body["error"] = job.error
    response = answer(body)
    try:
        await response.prepare(http)
        await response.write_eof()
    except (asyncio.CancelledError, ConnectionError):
        endpoint.put_chunks_back(job, chunks, retries)
        raise
    return response


async def cancel(http: web.Request) -> web.Response:
    job = _job(http)
    http.app[ENDPOINT].cancel(job)
    return _promise(http, [job], {"id": job.id, "status": job.status})


async def retry(http: web.Request) -> web.Response:
    job = _job(http)
    http.app[ENDPOINT].retry(job)
    return _promise(http, [job], {"id": job.id, "status": job.status})


async def purge_queue(http: web.Request) -> web.Response:
    jobs = http.app[ENDPOINT].purge()
    return _promise(http, jobs, {"removed": len(jobs), "status": "completed"})


async def health(http: web.Request) -> web.Response:
    return answer(http.app[ENDPOINT].health())


async def jobs(http: web.Request) -> web.Response:
    """Return the newest jobs, `?limit=` of them at most, without their outputs. Production has no such call."""
    limit = query_number(http, "limit", _LISTED)
    return answer({"jobs": [job.summary() for job in http.app[ENDPOINT].newest(limit)]})


def _promise(http: web.Request, jobs: list[Job], body: dict[str, Any]) -> web.Response:
    """The response to a change of jobs: a 507 if the change is not stored, so that a restart would lose it."""
    if all(http.app[ENDPOINT].is_stored(job) for job in jobs):
        return answer(body)
    return answer({**body, "error": "this is done, but cannot be stored yet: a restart now would undo it"}, 507)


def answer(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps(body).encode(), content_type="application/json")


async def read_json(http: web.Request, limit: int) -> tuple[Any, int]:
    """Read the body (None if it is empty) and its size in bytes. Numbers and text are preserved exactly.

    Raises PlatformError 400 or 413.
    """
    if (http.content_length or 0) > limit:
        raise PlatformError(413, f"the request body is larger than the {limit >> 20} MB that are allowed here")
    raw = await http.read()
    if len(raw) > limit:
        raise PlatformError(413, f"the request body is larger than the {limit >> 20} MB that are allowed here")
    if not raw.strip():
        return None, 0
    try:
        return loads(raw, max_values=MAX_VALUES), len(raw)
    except UntrustedJsonError as error:
        raise PlatformError(400, f"the request body is not valid JSON: {error}") from None


async def _request(http: web.Request, limit: int) -> tuple[Any, int]:
    """Read the body of a /run and its size in bytes. A GET may have its input as JSON in the query instead."""
    body, size = await read_json(http, limit)
    if body is None and "input" in http.query:
        text = http.query["input"]
        try:
            return {"input": loads(text)}, len(text)
        except UntrustedJsonError as error:
            raise PlatformError(400, f"the query's `input` is not valid JSON: {error}") from None
    return body, size


def _job(http: web.Request) -> Job:
    return http.app[ENDPOINT].get(http.match_info["job"])


def query_number(http: web.Request, name: str, limits: tuple[int, int, int], unit: str = "") -> int:
    """A number in the query; `limits` are the least, default and largest value. Raises PlatformError 400."""
    least, default, most = limits
    text = http.query.get(name, str(default))
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(most))
    if not (is_number and least <= int(text) <= most):
        raise PlatformError(400, f"{name} must be between {least} and {most}{unit}")
    return int(text)
