"""The HTTP face against its own /openapi.json: schemathesis makes requests of it and compares every answer.

The engine is the fake of these tests, so that an example costs milliseconds. The examples are the same in every run.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any, get_args
from urllib.request import Request, urlopen

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ember.front.api.batches.manager import batches_of
from ember.front.api.pooling.routes import POOLING_ROUTES
from ember.front.api.routes import ROUTER, ROUTES
from ember.front.http.app import make_app
from ember.front.text.tokenizer import Tokenizer
from ember.wire import PoolingTask
from tests.api.fakes import VOCAB_SIZE, Deployment
from tests.api.test_metrics import stats
from tests.api.test_pooling import SCORE
from tests.api.test_scale_out import BODIES

schemathesis = pytest.importorskip("schemathesis", reason="not installed: `make venv`")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")
GenerationMode = schemathesis.GenerationMode

NUM_EXAMPLES = 8  # of each route
FEW = {*BODIES, "/v1/chat/completions/batch"}  # whose bodies are given, or hold those of another route
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]
MADE_UP = frozenset(
    (
        *("model", "n", "chat_template", "truncate_prompt_tokens", "stream_options", "tool_choice", "functions"),
        *("function_call", "structured_outputs", "structural_tag", "response_format", "suffix"),
        *("dimensions", "output_dimension", "prompt_name", "task", "images", "inputs", "instruction", "text_1"),
        *("max_tokens_per_query", "max_tokens_per_doc", "add_special_tokens", "late_chunking", "encoding_format"),
    )
)
# Texts of pooling routes in place of made-up ones.
TEXTS = {"input": ["hi"], "texts": ["hi"], "input_type": "clustering", "query": "hi", "documents": ["hi"]}
# Bodies of routes whose made-up ones are nearly always refused; numbers of the made-up ones are kept.
USER = [{"role": "user", "content": "hi"}]
GIVEN: dict[str, dict[str, Any]] = {
    "/v1/messages": {"messages": USER, "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": USER},
    "/v1/responses": {"input": "hi"},
    "/v1/responses/input_tokens": {"input": "hi"},
    **{path: {"inputs": "hi"} for path in ("/", "/generate", "/generate_stream")},
    **BODIES,
}
SWITCHES = ("enable_tokenizer_info_endpoint", "enable_scale_out", "server_dev_mode", "enable_sleep_mode")
UNTRIED = {"/sleep", "/pause"}  # they would hold all others; tests/api/test_dev.py has them
BATCHES = "/v1/batches"
BATCH = {"endpoint": "/v1/completions", "completion_window": "24h"}
KEPT = ("stream", "temperature", "top_p", "user", "store")
POOLING_PATHS = {route.path for route in POOLING_ROUTES}
# Routes with bodies of other routes, whose bad input those are asked with.
OF_OTHERS = {"/invocations", *(path for path in BODIES if path.endswith("render"))}
OPERATIONS = [
    (route.path, method, mode)
    for route in ROUTES
    for method in route.methods
    for mode in GenerationMode
    if route.path not in UNTRIED
    if mode.is_positive or (route.about.body and route.path not in OF_OTHERS)  # only what takes a body has bad input
]


@pytest.fixture(scope="module")
def address(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server in a thread of its own."""
    enabled: Any = {**dict.fromkeys(SWITCHES, True), "batch_dir": str(tmp_path_factory.mktemp("batches"))}
    deployment = Deployment(tokenizer, max_logprobs=-1, **enabled)
    deployment.engine.stats = stats  # type: ignore[method-assign]
    deployment.pools("generate", *get_args(PoolingTask))
    started = threading.Event()
    port = 0
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        nonlocal port
        runner = web.ServerRunner(make_app(deployment.services.settings, deployment, ROUTER))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        started.set()
        await stop.wait()
        await runner.cleanup()
        await batches_of(deployment.services).close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(200)  # a busy machine takes long to import the server
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    loop.close()


@pytest.fixture(scope="module")
def schema(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize(("path", "method", "mode"), OPERATIONS)
def test_answers_are_as_documented(address: str, schema: Any, path: str, method: str, mode: Any) -> None:
    operation = schema[path][method]
    statuses = set()

    num_examples = 2 if path in FEW else NUM_EXAMPLES

    @settings(max_examples=num_examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if mode.is_positive:
            case.body = sensible(case.body)
            if path in POOLING_PATHS:
                case.body = answerable(case.body, path)
            if path in GIVEN:
                kept = {name: value for name, value in case.body.items() if name in KEPT}
                case.body = {**kept, **GIVEN[path]}
            named = {"model": "org/tiny"}
            if "{response_id}" in path:
                named["response_id"] = stored_response(address)
            if "{file_id}" in path or path == BATCHES:
                named["file_id"] = stored_file(address)
            if "{batch_id}" in path:
                named["batch_id"] = posted(address, BATCHES, {**BATCH, "input_file_id": stored_file(address)})
            if path == BATCHES and method == "POST":
                case.body = {**BATCH, "input_file_id": named["file_id"]}
            if path == "/v1/files" and method == "POST":
                case.body = {"file": b"x", "purpose": "batch"}
            case.path_parameters = {name: named[name] for name in case.path_parameters or {}}
        statuses.add(case.call_and_validate(base_url=address, checks=CHECKS).status_code)

    run()
    assert not mode.is_positive or 200 in statuses


def stored_response(address: str) -> str:
    """The id of a response that was made in the background."""
    return posted(address, "/v1/responses", {"input": "hi", "background": True})


def stored_file(address: str) -> str:
    """The id of a file of requests."""
    lines = [
        json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": {"prompt": "hi"}})
        for number in range(300)
    ]
    parts = [('purpose"', "batch"), ('file"; filename="in.jsonl"', "\n".join(lines))]
    form = "".join(f'--x\r\nContent-Disposition: form-data; name="{name}\r\n\r\n{text}\r\n' for name, text in parts)
    return posted(address, "/v1/files", f"{form}--x--\r\n".encode(), "multipart/form-data; boundary=x")


def posted(address: str, path: str, body: Any, content_type: str = "application/json") -> str:
    """The id of what a POST makes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urlopen(Request(address + path, data, {"Content-Type": content_type}), timeout=30) as answer:
        name: str = json.load(answer)["id"]
    return name


def answerable(body: Any, path: str) -> Any:
    """A pooling body with texts that a route takes."""
    if path in (SCORE, f"/v1{SCORE}"):
        return {"queries": "hi", "documents": ["hi", "ho"]}
    of_others = ("query", "documents") if "rerank" in path else ("input",)
    names = ("texts", "input_type") if path.endswith("/embed") else of_others
    return {
        **{name: value for name, value in body.items() if name != "messages"},
        **{name: TEXTS[name] for name in names},
    }


def sensible(body: Any) -> Any:
    """The body without what is refused nearly always when it is made up, so that many examples have an answer."""
    if not isinstance(body, dict):
        return body
    body = {name: value for name, value in body.items() if name not in MADE_UP}
    if "tokens" in body:
        body["tokens"] = [token_id % VOCAB_SIZE for token_id in body["tokens"]]
    if isinstance(body.get("prompt"), list):
        body["prompt"] = [1, 2, 3]
    if body.get("prompt") == "":
        body["prompt"] = "hi"
    return body
