"""A family of routes that is in no table, with its own errors and framing: records are all that it takes to serve it.

The routes are answered over HTTP and as queue jobs, whole and streamed, and so is everything that can go wrong.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient
from pydantic import BaseModel

from ember.front.api.body import parse_body
from ember.front.api.call import ApiCall, open_call
from ember.front.api.completion_prompts import completion_prompts
from ember.front.api.exchange import Event, EventStream, Request, Response
from ember.front.api.framing import JsonLines, ServerSentEvents
from ember.front.api.openapi import openapi_page
from ember.front.api.route import Description, ErrorForm, Route
from ember.front.api.router import Router
from ember.front.api.routes import ROUTES
from ember.front.api.runs import Runs
from ember.front.api.samples import Piece
from ember.front.api.schemas import CompletionRequest
from ember.front.api.services import Services
from ember.front.api.streaming import start_stream
from ember.front.api.threads import in_thread
from ember.front.errors import ApiError, bad_request
from ember.front.http.app import make_app
from ember.front.worker.handler import Handling, ThisLoop, make_handler
from ember.wire import Ready
from tests.api.fakes import Deployment
from tests.support.http_server import client_of

Client = TestClient[Any, Any]
TALK, LINES = "/trial/talks/a%2Fb/parts", "/trial/lines"
KINDS = {400: "invalid", 401: "who_are_you", 404: "missing", 405: "not_so", 413: "too_much", 415: "invalid"}


class Talk(BaseModel):
    text: str
    stream: bool = False
    fault: str | None = None  # "early": an error before the first token; "writer": a bug behind it


class Said(BaseModel):
    said: str
    talk: str


class Piecemeal(BaseModel):
    type: str
    text: str | None = None


class Trouble(BaseModel):
    type: str
    trouble: dict[str, str]


def trouble(error: ApiError) -> dict[str, Any]:
    return {"type": "trouble", "trouble": {"kind": KINDS.get(error.status, "ours"), "text": error.message}}


class Named:
    """The events of a talk, each with a name that its document repeats."""

    def __init__(self, talk: Talk) -> None:
        self._fault = talk.fault

    def opening(self, runs: Runs) -> list[Event]:
        return [named("begin")]

    def deltas(self, piece: Piece, runs: Runs) -> list[Event]:
        if self._fault == "writer":
            raise RuntimeError("a bug in /some/path.py")
        return [named("part", text=piece.text)]

    def closing(self, runs: Runs) -> list[Event]:
        return [named("end")]


def named(name: str, **fields: Any) -> Event:
    return Event(compact({"type": name, **fields}), name)


def compact(document: Any) -> str:
    return orjson.dumps(document).decode()


async def talk(services: Services, raw_request: Request) -> Response | EventStream:
    request = await parse_body(Talk, raw_request.body)
    if request.fault == "early":
        raise bad_request("say something else", "text")
    options: Any = {"stream_options": {"include_usage": True}} if request.stream else {}
    inner = CompletionRequest(prompt=request.text, stream=request.stream, **options)
    call = await in_thread(inner, opened, raw_request, inner, services, await services.ready())
    if request.stream:
        return EventStream(await start_stream(call, Named(request)), call.headers)
    async with call.runs() as runs:
        (choice,) = await runs.collect()
    return Response(200, {"said": choice.text, "talk": raw_request.parameters.get("talk", "")})


def opened(raw_request: Request, request: CompletionRequest, services: Services, info: Ready) -> ApiCall:
    return open_call(raw_request, request, services, info, completion_prompts(request, services, info), "talk-")


async def forget(services: Services, raw_request: Request) -> Response:
    return Response(200, {"said": "", "talk": raw_request.parameters["talk"]})


TROUBLES = ErrorForm(trouble, Trouble)
ABOUT = Description(summary="Talk", body=(Talk,), answer=(Said,), chunk=(Piecemeal,))
TRIAL = (
    Route(
        path="/trial/talks/{talk}/parts",
        methods=("POST",),
        answer=talk,
        errors=TROUBLES,
        framing=ServerSentEvents(trouble, error_name="trouble"),
        tasks=("generate",),
        about=ABOUT,
    ),
    Route(
        path="/trial/talks/{talk}/parts",
        methods=("DELETE",),
        answer=forget,
        errors=TROUBLES,
        about=Description(summary="Forget", answer=(Said,)),
    ),
    Route(
        path=LINES,
        methods=("POST",),
        answer=talk,
        errors=TROUBLES,
        framing=JsonLines(trouble),
        about=ABOUT,
    ),
)
ROUTER = Router((*ROUTES, *TRIAL))
DOCUMENTS = [{"type": "begin"}, *({"type": "part", "text": text} for text in ("hello", " w", "o", "r", "l", "d", ""))]
WHOLE = [*DOCUMENTS, {"type": "end"}]


def framed(path: str, documents: list[Any]) -> str:
    if path == LINES:
        return "".join(compact(document) + "\n" for document in documents)
    return "".join(f"event: {document['type']}\ndata: {compact(document)}\n\n" for document in documents)


def over_http(deployment: Deployment, scenario: Callable[[Client], Awaitable[None]]) -> None:
    async def run() -> None:
        async with client_of(make_app(deployment.services.settings, deployment, ROUTER)) as client:
            await scenario(client)

    asyncio.run(run())


def over_the_queue(deployment: Deployment, job_input: Any, *, raw: bool = True, pause: float = 0.0) -> list[Any]:
    """The outputs of a job; `pause` is how long each takes to be sent."""

    async def answer(request: Request) -> Response | EventStream:
        return await ROUTER.dispatch(deployment.services, request)

    async def run() -> list[Any]:
        outputs = []
        handling = Handling(ThisLoop(), answer, ROUTER, model="org/tiny", raw=raw)
        async for output in make_handler(handling)({"id": "j", "input": job_input}):
            outputs.append(output)
            await asyncio.sleep(pause)
        return outputs

    return asyncio.run(run())


def fails_late(deployment: Deployment) -> None:
    """The engine fails each request behind its second token."""
    script = deployment.engine.script
    deployment.engine.script = lambda prompt, sampling: [*script(prompt, sampling)[:2], ApiError(500, "out of order")]


PATHS = pytest.mark.parametrize("path", [TALK, LINES])

# --------------------------------------------------------------------------------------------------------------- HTTP


@PATHS
def test_answers_over_http(deployment: Deployment, path: str) -> None:
    async def scenario(client: Client) -> None:
        response = await client.post(path, json={"text": "hi"})
        assert response.status == 200
        assert await response.json() == {"said": "hello world", "talk": "a/b" if path == TALK else ""}
        response = await client.post(path, json={"text": "hi", "stream": True})
        assert response.content_type == {TALK: "text/event-stream", LINES: "application/x-ndjson"}[path]
        assert await response.text() == framed(path, WHOLE)

    over_http(deployment, scenario)


@PATHS
@pytest.mark.parametrize("fault", ["engine", "writer"])
def test_an_error_in_a_stream_over_http(deployment: Deployment, path: str, fault: str) -> None:
    if fault == "engine":
        fails_late(deployment)
    message = "out of order" if fault == "engine" else "Internal server error; the worker's log has it."
    begun = DOCUMENTS[:3] if fault == "engine" else DOCUMENTS[:1]

    async def scenario(client: Client) -> None:
        response = await client.post(path, json={"text": "hi", "stream": True, "fault": fault})
        assert response.status == 200
        assert await response.text() == framed(path, [*begun, trouble(ApiError(500, message))])

    over_http(deployment, scenario)
    assert all(generation.is_closed for generation in deployment.engine.generations)


@PATHS
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_a_request_over_http_have_the_routes_form(deploy: Any, path: str, stream: bool) -> None:
    deployment = deploy(api_key="key", max_request_bytes=2**20)
    key = {"Authorization": "Bearer key"}
    json_type = {"Content-Type": "application/json"}

    async def scenario(client: Client) -> None:
        async def check(status: int, said: str, method: str = "POST", **options: Any) -> Any:
            options["headers"] = {**key, **options.get("headers", {})}
            response = await client.request(method, path, **options)
            body = await response.json()
            assert (response.status, set(body), body["type"]) == (status, {"type", "trouble"}, "trouble")
            assert body["trouble"]["kind"] == KINDS[status]
            assert said in body["trouble"]["text"]
            return response

        await check(400, "say something else", json={"text": "hi", "fault": "early", "stream": stream})
        await check(400, "body.text", json={"stream": stream})
        await check(400, "not valid JSON", data=b"{", headers=json_type)
        await check(400, "Only 'application/json'", data=b"a=b", headers={"Content-Type": "text/plain"})
        await check(401, "", headers={"Authorization": "Bearer other"}, json={})
        await check(413, "larger than", data=b" " * (2**20 + 1), headers=json_type)
        await check(415, "Content-Encoding", data=b"{}", headers={**json_type, "Content-Encoding": "br"})
        response = await check(405, "Method Not Allowed", "PUT")
        assert response.headers["Allow"] == ("POST, DELETE" if path == TALK else "POST")
        response = await client.post("/trial/nowhere", json={}, headers=key)
        assert (response.status, (await response.json())["error"]["type"]) == (404, "Not Found")

    over_http(deployment, scenario)
    assert not deployment.engine.calls


def test_two_records_of_a_path_and_its_parameters(deployment: Deployment) -> None:
    async def scenario(client: Client) -> None:
        response = await client.delete("/trial/talks/x%20y/parts/")
        assert await response.json() == {"said": "", "talk": "x y"}
        assert (await client.delete("/trial/talks/x/y/parts")).status == 404

    over_http(deployment, scenario)


# -------------------------------------------------------------------------------------------------------------- queue


@PATHS
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_streamed_job(deployment: Deployment, path: str, pause: float) -> None:
    """Slow sending joins what is generated meanwhile; the text is the same."""
    deployment.engine.delay = 0.002
    job_input = {"openai_route": path, "openai_input": {"text": "hi", "stream": True}}
    pieces = over_the_queue(deployment, job_input, pause=pause)
    assert "".join(pieces) == framed(path, WHOLE)
    if pause:
        assert 1 < len(pieces) < len(WHOLE) - 2
    lists = over_the_queue(deployment, job_input, raw=False, pause=pause)
    assert [document for documents in lists for document in documents] == WHOLE


@PATHS
def test_a_whole_job(deployment: Deployment, path: str) -> None:
    body = {"text": "hi"}
    said = {"said": "hello world", "talk": "a/b" if path == TALK else ""}
    assert over_the_queue(deployment, {"openai_route": path, "openai_input": body}) == [said]
    assert over_the_queue(deployment, {"route": path, "body": body}) == [said]


@PATHS
@pytest.mark.parametrize("raw", [False, True])
def test_an_error_in_a_streamed_job(deployment: Deployment, path: str, raw: bool) -> None:
    fails_late(deployment)
    job_input = {"openai_route": path, "openai_input": {"text": "hi", "stream": True}}
    outputs = over_the_queue(deployment, job_input, raw=raw)
    documents = [*DOCUMENTS[:3], trouble(ApiError(500, "out of order"))]
    if raw:
        assert "".join(outputs) == framed(path, documents)
    else:
        assert [document for output in outputs for document in output] == documents


@PATHS
@pytest.mark.parametrize(
    ("job_input", "status", "said"),
    [
        ({"openai_input": {"text": "hi", "fault": "early"}}, 400, "say something else"),
        ({"openai_input": {"text": ["hi"]}}, 400, "body.text"),
        ({"openai_input": {"text": "hi"}, "max_batch_size": 0}, 400, "max_batch_size"),
        ({"openai_input": {"text": "\ud800"}}, 400, "surrogate"),
    ],
)
def test_errors_of_a_job_have_the_routes_form(
    deployment: Deployment, path: str, job_input: dict[str, Any], status: int, said: str
) -> None:
    def check(document: Any) -> None:
        assert document["trouble"]["kind"] == KINDS[status]
        assert said in document["trouble"]["text"]

    (output,) = over_the_queue(deployment, {"openai_route": path, **job_input})
    check(json.loads(output["error"]))
    streamed = {"openai_route": path, **job_input, "openai_input": {**job_input["openai_input"], "stream": True}}
    (text,) = over_the_queue(deployment, streamed)
    document = json.loads(text[text.index("{") :])
    assert text == framed(path, [document])
    check(document)
    (documents,) = over_the_queue(deployment, streamed, raw=False)
    check(documents[0])


def test_a_job_without_the_body_that_its_route_needs(deployment: Deployment) -> None:
    (output,) = over_the_queue(deployment, {"openai_route": LINES})
    assert "openai_input is missing" in json.loads(output["error"])["trouble"]["text"]
    (output,) = over_the_queue(deployment, {"route": LINES, "method": "DELETE"})
    assert json.loads(output["error"]) == trouble(ApiError(405, "Method Not Allowed"))


# ---------------------------------------------------------------------------------------------------- what tells of it


def test_the_page_of_routes_tells_of_it(deployment: Deployment) -> None:
    page: Any = asyncio.run(openapi_page(deployment.services, ROUTER.routes)).body
    operations = page["paths"]["/trial/talks/{talk}/parts"]
    assert set(operations) == {"post", "delete"}
    assert operations["post"]["parameters"][-1]["name"] == "talk"
    responses = operations["post"]["responses"]
    trouble_schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Trouble"}}}
    assert {status for status, each in responses.items() if each.get("content") == trouble_schema} == {
        *("400", "401", "404", "408", "413", "500", "503")
    }
    assert "[DONE]" not in json.dumps(operations)
    item = responses["200"]["content"]["text/event-stream"]["itemSchema"]
    assert [each["contentSchema"]["$ref"] for each in item["properties"]["data"]["anyOf"]] == [
        "#/components/schemas/Piecemeal",
        "#/components/schemas/Trouble",
    ]
    assert "application/x-ndjson" in page["paths"][LINES]["post"]["responses"]["200"]["content"]
    assert {"Talk", "Said", "Piecemeal", "Trouble", "Error"} <= page["components"]["schemas"].keys()


def test_requests_are_counted_by_the_path_of_the_record(deployment: Deployment) -> None:
    over_the_queue(deployment, {"openai_route": TALK, "openai_input": {"text": "hi"}})
    over_the_queue(deployment, {"openai_route": "/trial/else", "openai_input": {"text": "hi"}})
    assert set(deployment.services.metrics.requests) == {
        ("/trial/talks/{talk}/parts", "POST", "2xx"),
        ("none", "POST", "4xx"),
    }
