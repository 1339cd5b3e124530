"""/v2/<id>/openai/*: an OpenAI client's request becomes a job, and the job's output becomes the response.

A streamed response is the concatenation of the texts that the worker streams. A job that fails before it streams is a
500 with the worker's error: on a queue a worker cannot choose the status. A client that disconnects cancels its job.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from aiohttp import web

from ember.platform.client_routes import ENDPOINT, RUNSYNC_BYTES, answer, read_json
from ember.platform.endpoint import Endpoint
from ember.platform.jobs import COMPLETED, Job, PlatformError, new_id
from ember.untrusted_json import UntrustedJsonError, loads

_PATH = "/openai/{path:(?s:.+)}"  # (?s): a path may contain line breaks, as %0A
_SSE_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


def add_openai_routes(app: web.Application) -> None:
    for prefix in ("/v2/{endpoint}", ""):
        app.router.add_get(prefix + _PATH, openai)
        app.router.add_post(prefix + _PATH, openai)
        app.router.add_delete(prefix + _PATH, openai)


async def openai(http: web.Request) -> web.StreamResponse:
    body, size = None, 0
    if http.method == "POST":
        if http.content_type not in ("application/json", "application/octet-stream"):  # octet-stream: none given
            raise PlatformError(415, f"a queue carries JSON bodies only, not {http.content_type}")
        body, size = await read_json(http, RUNSYNC_BYTES)
    route = "/" + http.match_info["path"] + (f"?{http.query_string}" if http.query_string else "")
    job_input: dict[str, Any] = {"openai_route": route}
    if http.method == "DELETE":  # the shape of jobs that has a method
        job_input = {"route": route, "method": http.method}
    elif body is not None:
        job_input["openai_input"] = body
    endpoint = http.app[ENDPOINT]
    job = endpoint.submit(Job(new_id(is_sync=True), job_input, is_sync=True, size=size))
    try:
        if (isinstance(body, dict) and body.get("stream") is True) or http.query.get("stream") in ("true", "1"):
            return await _streamed(http, endpoint, job)
        await endpoint.wait_final(job, math.inf)
        return _whole(http, job)
    except (asyncio.CancelledError, ConnectionError):
        endpoint.cancel(job)
        raise


def _whole(http: web.Request, job: Job) -> web.Response:
    if job.status != COMPLETED:
        return answer(_failure(http, job), 500)
    output = job.output
    if isinstance(output, list) and len(output) == 1:  # the outputs of a generator are a list
        output = output[0]
    return answer(output)


async def _streamed(http: web.Request, endpoint: Endpoint, job: Job) -> web.StreamResponse:
    await endpoint.wait_chunks(job, math.inf)
    if not job.chunks:
        return _whole(http, job)
    response = web.StreamResponse(headers=_SSE_HEADERS)
    await response.prepare(http)
    while True:
        for output in endpoint.take_chunks(job):
            await response.write(_event(output).encode("utf-8", "replace"))
        if job.is_final and not job.chunks:
            break
        await endpoint.wait_chunks(job, math.inf)
    if job.status != COMPLETED:
        head = "event: error\n" if _is_anthropic(http) else ""
        await response.write((head + _event(_failure(http, job))).encode("utf-8", "replace"))
    await response.write_eof()
    return response


def _event(output: Any) -> str:
    """A streamed output as text. Text is passed on; an object becomes an SSE event."""
    if isinstance(output, str):
        return output
    parts = output if isinstance(output, list) else [output]
    return "".join(f"data: {json.dumps(part, ensure_ascii=False)}\n\n" for part in parts)


def _is_anthropic(http: web.Request) -> bool:
    path: str = http.match_info["path"]
    return path == "v1/messages" or path.startswith("v1/messages/")


def _failure(http: web.Request, job: Job) -> dict[str, Any]:
    """The body that tells of a failed job, in the form of the route: Anthropic's or OpenAI's."""
    error = _error(job)
    if not _is_anthropic(http):
        return {"error": {"type": "InternalServerError", "param": None, "code": 500, **error}}
    return {"type": "error", "error": {"type": "api_error", "message": "", **error}}


def _error(job: Job) -> dict[str, Any]:
    """The job's error as an object. Workers report text, which may be a JSON object."""
    error = job.error if job.error is not None else f"the job is {job.status}"
    if isinstance(error, str):
        try:
            parsed = loads(error)
        except UntrustedJsonError:
            parsed = None
        error = parsed if isinstance(parsed, dict) else {"message": error}
    if not isinstance(error, dict):
        error = {"message": json.dumps(error)}
    return error
