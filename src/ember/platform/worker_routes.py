"""The worker protocol of the platform's SDK: job-take, job-take-batch, job-stop, job-stream, job-done and ping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ember.platform.client_routes import ENDPOINT, answer, query_number
from ember.platform.jobs import Job, PlatformError
from ember.untrusted_json import MAX_VALUES, QUEUE_DEPTH, UntrustedJsonError, loads

POLL_SECONDS: web.AppKey[float] = web.AppKey("poll_seconds", float)  # how long job-take and job-stop wait
_BATCH = (1, 1, 10_000)  # jobs of one job-take-batch: least, default, most
MAX_BODY_BYTES = 64 * 2**20  # of any report; a larger one is refused
_MAX_WORKER_ID_CHARS = 256
_MAX_REASON_CHARS = 300
RESULT_BYTES = {False: 10 * 2**20, True: 20 * 2**20}  # maximum size of a result, for /run and for /runsync


def add_worker_routes(app: web.Application) -> None:
    base = "/v2/{endpoint}"
    app.router.add_get(base + "/job-take/{worker}", take)
    app.router.add_get(base + "/job-take-batch/{worker}", take_batch)
    app.router.add_get(base + "/job-stop/{worker}", stops)
    app.router.add_post(base + "/job-stream/{worker}/{job}", stream)
    app.router.add_post(base + "/job-done/{worker}/{job}", done)
    app.router.add_get(base + "/ping/{worker}", ping)


async def take(http: web.Request) -> web.StreamResponse:
    return await _hand_out(http, 1, lambda jobs: jobs[0].for_worker())


async def take_batch(http: web.Request) -> web.StreamResponse:
    return await _hand_out(
        http, query_number(http, "batch_size", _BATCH), lambda jobs: [job.for_worker() for job in jobs]
    )


async def _hand_out(http: web.Request, count: int, body: Callable[[list[Job]], Any]) -> web.StreamResponse:
    """Respond with jobs from the queue. Jobs are requeued if the worker disconnects before it has them."""

    def is_gone() -> bool:
        return http.transport is None or http.transport.is_closing()

    endpoint = http.app[ENDPOINT]
    jobs = await endpoint.take(_worker(http), count, http.app[POLL_SECONDS], is_gone)
    if not jobs:
        return web.Response(status=204)
    response = answer(body(jobs))
    try:
        await response.prepare(http)
        await response.write_eof()
    except (asyncio.CancelledError, ConnectionError):
        endpoint.put_back(jobs)
        raise
    return response


async def stops(http: web.Request) -> web.Response:
    ids = await http.app[ENDPOINT].stops(_worker(http), http.app[POLL_SECONDS])
    return answer({"jobsToStop": ids}) if ids else web.Response(status=204)


async def stream(http: web.Request) -> web.Response:
    """Add a streamed output. One that is refused fails its job, since the stream would have a gap."""
    _, body = await _report(http, "a chunk of its output")
    if "output" not in body:
        raise _refused(http, 400, "a chunk of its output", "the body must have an `output`")
    http.app[ENDPOINT].stream(_worker(http), http.match_info["job"], body["output"])
    return web.Response()


async def done(http: web.Request) -> web.Response:
    """Take a result, or a progress report (`status` is IN_PROGRESS). One that is refused fails its job."""
    size, body = await _report(http, "its result")
    endpoint = http.app[ENDPOINT]
    worker_id, job_id = _worker(http), http.match_info["job"]
    if body.get("status") == "IN_PROGRESS":
        endpoint.progress(worker_id, job_id, body.get("output"))
        return web.Response()
    limit = RESULT_BYTES[endpoint.get(job_id).is_sync]
    if size > limit:
        message = f"the result of {size / 2**20:.1f} MB is larger than the {limit >> 20} MB that are allowed here"
        endpoint.done(worker_id, job_id, None, message)
        raise PlatformError(400, message)
    endpoint.done(worker_id, job_id, body.get("output"), body.get("error"))
    job = endpoint.get(job_id)
    if job.worker == worker_id and not endpoint.is_stored(job):  # after a restart the job would run again
        raise PlatformError(507, "the result was received but cannot be stored yet; send it again")
    return web.Response()


async def ping(http: web.Request) -> web.Response:
    query = http.query
    unhealthy = query.get("reason", "no reason given") if query.get("status") == "unhealthy" else None
    http.app[ENDPOINT].ping(_worker(http), None if unhealthy is None else unhealthy[:_MAX_REASON_CHARS])
    return web.Response()


def _worker(http: web.Request) -> str:
    """The worker's id from the path, which clients can see. Raises PlatformError 400."""
    worker_id = http.match_info["worker"]
    if not worker_id.isprintable() or len(worker_id) > _MAX_WORKER_ID_CHARS:
        limit = f"printable text of at most {_MAX_WORKER_ID_CHARS} characters"
        raise PlatformError(400, f"a worker's id must be {limit}, not {ascii(worker_id)[:60]}")
    return worker_id


async def _report(http: web.Request, what: str) -> tuple[int, dict[str, Any]]:
    """Read a report: its size in bytes and its content. It is JSON, although the SDK declares it as a form.

    Raises PlatformError 400 or 413. The job fails then, since its worker does not send `what` a second time.
    """
    too_large = f"the body is larger than the {MAX_BODY_BYTES >> 20} MB that are allowed here"
    if (http.content_length or 0) > MAX_BODY_BYTES:
        raise _refused(http, 413, what, too_large)
    try:
        raw = await http.read()
    except web.HTTPRequestEntityTooLarge:
        raise _refused(http, 413, what, too_large) from None
    except web.RequestPayloadError as error:
        if http.transport is None or http.transport.is_closing():  # the worker may send it again
            raise
        raise _refused(http, 400, what, " ".join(f"the body cannot be read: {error}".split())) from None
    try:
        body = loads(raw, QUEUE_DEPTH, MAX_VALUES)
    except UntrustedJsonError as error:
        raise _refused(http, 400, what, f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise _refused(http, 400, what, "the body must be a JSON object")
    return len(raw), body


def _refused(http: web.Request, status: int, what: str, reason: str) -> PlatformError:
    """Fail the job of a refused report, and return the error to respond with."""
    http.app[ENDPOINT].refuse(_worker(http), http.match_info["job"], f"the worker could not report {what}: {reason}")
    return PlatformError(status, reason)
