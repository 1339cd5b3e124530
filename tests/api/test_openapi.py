"""The page of routes and schemas, and that what the routes answer is what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from ember import __version__
from ember.front.api import answers
from ember.front.api.openapi import RANGES
from ember.front.api.routes import ROUTES
from ember.front.errors import ApiError
from tests.api.fakes import Deployment
from tests.api.talking import ADD, CALL_ADD, talking

USER = [{"role": "user", "content": "hi"}]
STEPS = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0}  # out of a range


def page_of(deployment: Deployment) -> Any:
    answer = deployment.request("GET", "/openapi.json")
    assert answer.status == 200
    return json.loads(json.dumps(answer.body))


def test_every_route_is_on_the_page(deploy: Any) -> None:
    switches = dict.fromkeys(("enable_tokenizer_info_endpoint", "enable_scale_out", "server_dev_mode"), True)
    page = page_of(deploy(**switches, batch_dir="/tmp"))
    assert page["openapi"] == "3.1.0"
    assert page["info"]["version"] == __version__
    shown = {path: {method.upper() for method in methods} for path, methods in page["paths"].items()}
    expected: dict[str, set[str]] = {}
    for route in ROUTES:
        expected.setdefault(route.path, set()).update(route.methods)
    assert shown == expected
    names = [operation["operationId"] for methods in page["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    assert "/tokenizer_info" not in page_of(deploy())["paths"]


def test_the_table_in_the_docs_is_the_table_of_routes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "routes.md").read_text()
    rows = re.findall(r"^\| `(/[^`]*)` \| ([A-Z, ]+) \| (yes|) ?\|", text, re.MULTILINE)
    streams = {True: "yes", False: ""}
    assert rows == [(route.path, ", ".join(route.methods), streams[route.streams]) for route in ROUTES]


def test_the_key_and_the_root_path(deploy: Any) -> None:
    page = page_of(deploy(api_key="secret", root_path="/llm/"))
    assert page["servers"] == [{"url": "/llm"}]
    assert page["security"] == [{"bearer": []}]
    assert page["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    open_paths = {
        path
        for path, methods in page["paths"].items()
        if methods["get" if "get" in methods else "post"].get("security") == []
    }
    assert open_paths == {"/health", "/ping"}
    assert "secret" not in json.dumps(page)
    page = page_of(deploy())
    assert page["security"] == []
    assert page["servers"] == [{"url": "/"}]


def test_the_schemas_are_schemas_and_all_there(deployment: Deployment) -> None:
    page = page_of(deployment)
    schemas = page["components"]["schemas"]
    for name, schema in schemas.items():
        Draft202012Validator.check_schema(schema)
        assert "description" not in schema, name
    references: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                references.add(value["$ref"].removeprefix("#/components/schemas/"))
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(page)
    assert references <= schemas.keys()
    chat = schemas["ChatRequest"]
    assert chat["required"] == ["messages"]
    assert {"temperature", "logprob_token_ids", "response_format", "tools", "stream"} <= chat["properties"].keys()
    assert schemas["CompletionRequest"]["required"] == ["prompt"]


@pytest.mark.parametrize("name", RANGES)
def test_ranges_are_those_that_are_enforced(deploy: Any, name: str) -> None:
    deployment, limits = deploy(max_logprobs=-1), RANGES[name]

    def ask(value: float) -> None:
        if name == "top_logprobs":
            deployment.chat(logprobs=True, top_logprobs=value)
        else:
            deployment.complete("hi", echo=True, **{name: value})

    inside = [limits[bound] for bound in ("minimum", "maximum") if bound in limits]
    outside = [limits[bound] + step for bound, step in STEPS.items() if bound in limits]
    for value in inside:
        ask(value)
    assert outside
    for value in outside:
        with pytest.raises(ApiError) as caught:
            ask(value)
        assert (caught.value.status, caught.value.param) == (400, name)


def test_a_boot_does_not_load_what_the_page_needs() -> None:
    code = (
        "import sys, ember.front.start, ember.front.http.server, ember.front.worker.handler, ember.front.api.routes\n"
        "print([name for name in sys.modules if name in ('ember.front.api.openapi', 'ember.front.api.answers')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------- answers against their schemas

OPTIONS: list[dict[str, Any]] = [
    {},
    {"logprobs": 2, "n": 2, "return_token_ids": True},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "echo": True},
    {"logprobs": 1, "logprob_token_ids": [5], "return_token_ids": True, "stop": "w"},
    {"prompt_logprobs": 2, "max_tokens": 1},
]


def fitted(fields: dict[str, Any], is_chat: bool, streams: bool) -> dict[str, Any]:
    fields = dict(fields)
    if is_chat and "logprobs" in fields:
        fields |= {"top_logprobs": fields["logprobs"], "logprobs": True, "return_prompt_text": True}
    fields.pop("prompt_logprobs" if streams else "stream_options", None)
    return fields


@pytest.mark.parametrize("fields", OPTIONS)
def test_answers_and_chunks_fit_their_schemas(deploy: Any, fields: dict[str, Any]) -> None:
    deployment = deploy(enable_per_request_metrics=True, enable_prompt_tokens_details=True)
    cases: list[tuple[type[BaseModel], Any]] = [
        (answers.ChatCompletion, deployment.chat(**fitted(fields, True, False))),
        (answers.Completion, deployment.complete(**fitted(fields, False, False))),
        *((answers.ChatCompletionChunk, chunk) for chunk in deployment.stream_chat(**fitted(fields, True, True))),
        *((answers.CompletionChunk, chunk) for chunk in deployment.stream_completion(**fitted(fields, False, True))),
    ]
    if fields.get("n") is None:
        body = {"messages": [USER, USER], **fitted(fields, True, False)}
        cases.append((answers.ChatBatch, deployment.request("POST", "/v1/chat/completions/batch", body).body))
    for model, answer in cases:
        model.model_validate(answer, strict=True)


@pytest.mark.parametrize("fields", [{"tools": [ADD]}, {"functions": [ADD["function"]]}])
def test_reasoning_and_calls_fit_their_schemas(fields: dict[str, Any]) -> None:
    deployment = talking()
    deployment.says(f"<think>a thought</think>words{CALL_ADD}")
    answers.ChatCompletion.model_validate(deployment.chat(**fields), strict=True)
    for chunk in deployment.stream_chat(**fields, stream_options={"include_usage": True}):
        answers.ChatCompletionChunk.model_validate(chunk, strict=True)
