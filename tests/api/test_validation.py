"""Bodies that are not what the schema says: which places are named, and how much is echoed."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from ember.front.api import body as body_module
from ember.front.api.body import parse_body
from ember.front.api.schemas import ChatRequest, CompletionRequest
from ember.front.errors import ApiError
from tests.api.fakes import Deployment, refused


def test_a_missing_field(deployment: Deployment) -> None:
    error = refused(deployment, "/v1/chat/completions", {"model": "org/tiny"})
    assert (error.status, error.type, error.param) == (400, "Bad Request", "body.messages")
    assert error.message == (
        "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', "
        "'input': {'model': 'org/tiny'}}"
    )


def test_several_errors_are_listed(deployment: Deployment) -> None:
    error = refused(deployment, "/v1/chat/completions", {"messages": [{"content": "x"}], "temperature": "hot"})
    assert error.message.startswith("2 validation errors:\n  {'type': ")
    assert "'loc': 'body.messages.0.role'" in error.message
    assert "'loc': 'body.temperature'" in error.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (None, "body"),
        ([], "body"),
        ("text", "body"),
        ({"prompt": 5}, "body.prompt"),
        ({"prompt": [1, "a"]}, None),
        ({"prompt": "x", "stop": [1]}, None),
        ({"prompt": "x", "stream_options": 1}, "body.stream_options"),
        ({"prompt": "x", "logit_bias": {"1": "much"}}, "body.logit_bias.1"),
        ({"prompt": "x", "seed": 2**64}, "body.seed"),
        ({"prompt": "x", "truncate_prompt_tokens": -2}, "body.truncate_prompt_tokens"),
        ({"prompt": "x", "truncation_side": "top"}, "body.truncation_side"),
        ({"prompt": "x", "n": 1.5}, "body.n"),
    ],
)
def test_the_place_of_an_error_has_no_union_members_in_it(deployment: Deployment, body: Any, param: str | None) -> None:
    error = refused(deployment, "/v1/completions", body)
    assert (error.status, error.type) == (400, "Bad Request")
    assert param is None or error.param == param
    assert "[" not in str(error.param)
    assert not str(error.param).endswith(".str")


def test_a_large_bad_body_gives_a_small_error(deployment: Deployment) -> None:
    body = {
        "messages": [{"role": "user", "content": "x" * 100_000, "name": 5} for _ in range(1000)],
        "stop": [5] * 1000,
    }
    error = refused(deployment, "/v1/chat/completions", body)
    assert len(error.message) < 10 * 1100
    assert error.message.count("\n") <= 10
    error = refused(deployment, "/v1/chat/completions", {"text": "y" * 1_000_000})
    assert len(error.message) < 500


def test_messages_must_not_be_empty(deployment: Deployment) -> None:
    error = refused(deployment, "/v1/chat/completions", {"messages": []})
    assert (error.type, error.param) == ("Bad Request", "body.messages")


MANY = 300_000
HELLO = {"role": "user", "content": "hi"}
WRONG: list[tuple[Any, dict[str, Any]]] = [
    (ChatRequest, {"messages": [{"role": "user", "content": [1] * MANY}]}),
    (ChatRequest, {"messages": [{"role": "user", "tool_calls": [1] * MANY}]}),
    (ChatRequest, {"messages": [HELLO], "tools": [1] * MANY}),
    (ChatRequest, {"messages": [HELLO], "documents": [1] * MANY}),
    (ChatRequest, {"messages": [1] * MANY}),
    (ChatRequest, {"messages": [HELLO], "logit_bias": {str(number): "a" for number in range(MANY)}}),
    (ChatRequest, {"messages": [HELLO], "stop": [1] * MANY}),
    (ChatRequest, {"messages": [HELLO], "bad_words": [1] * MANY}),
    (ChatRequest, {"messages": [HELLO], "stop_token_ids": ["a"] * MANY}),
    (CompletionRequest, {"prompt": [1, *["a"] * MANY]}),
    (CompletionRequest, {"prompt": [["a"] * MANY]}),
    (CompletionRequest, {"prompt": [None] * MANY}),
]
TOO_MANY: list[tuple[Any, dict[str, Any]]] = [
    (ChatRequest, {"messages": [HELLO] * 16385}),
    (ChatRequest, {"messages": [{"role": "user", "content": ["a"] * 16385}]}),
    (ChatRequest, {"messages": [{"role": "user", "tool_calls": [{}] * 16385}]}),
    (ChatRequest, {"messages": [HELLO], "tools": [{}] * 16385}),
    (ChatRequest, {"messages": [HELLO], "documents": [{}] * 16385}),
    (ChatRequest, {"messages": [HELLO], "stop": ["a"] * 16385}),
    (ChatRequest, {"messages": [HELLO], "bad_words": ["a"] * 16385}),
    (ChatRequest, {"messages": [HELLO], "stop_token_ids": [1] * (2**22 + 1)}),
]


def error_of(model: Any, body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asyncio.run(parse_body(model, body))
    return caught.value


@pytest.mark.parametrize(("model", "body"), WRONG, ids=[f"{number}" for number in range(len(WRONG))])
def test_many_wrong_items_are_a_few_errors(model: Any, body: dict[str, Any]) -> None:
    error = error_of(model, body)
    assert int(error.message.partition(" ")[0]) <= 8, error.message
    assert len(error.message) < 10 * 1100


@pytest.mark.parametrize(("model", "body"), TOO_MANY, ids=[f"{number}" for number in range(len(TOO_MANY))])
def test_lists_have_a_longest_length(model: Any, body: dict[str, Any]) -> None:
    error = error_of(model, body)
    assert "List should have at most" in error.message


KEYS = {f"key{number}": number for number in range(1025)}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"messages": [HELLO], **KEYS}, "body"),
        ({"messages": [{**HELLO, **KEYS}]}, "body.messages.0"),
        ({"messages": [HELLO], "response_format": {"type": "text", **KEYS}}, "body.response_format"),
        ({"messages": [HELLO], "stream": True, "stream_options": KEYS}, "body.stream_options"),
    ],
)
def test_objects_have_a_largest_size(body: dict[str, Any], place: str) -> None:
    error = error_of(ChatRequest, body)
    assert error.param == place
    assert "Object should have at most 1024 keys, not 102" in error.message


def test_millions_of_prompts_are_refused_at_once() -> None:
    body = {"prompt": [[1]] * 3_000_000}
    start = time.perf_counter()
    assert error_of(CompletionRequest, body).message == "prompt must have at most 1024 items, got 3000000."
    assert time.perf_counter() - start < 1.0


def test_a_large_object_is_quoted_without_being_sorted() -> None:
    body = {f"{number:x}": number for number in reversed(range(200_000))}
    error = error_of(ChatRequest, body)
    assert "'input': {'30d3f': 199999, '30d3e': 199998," in error.message


def test_errors_of_an_ordinary_body_are_all_there(deployment: Deployment) -> None:
    body = {"prompt": "x", "temperature": "hot", "n": "many", "logit_bias": {"1": "a", "2": "b"}, "stop": [1, 2]}
    error = refused(deployment, "/v1/completions", body)
    assert error.message.startswith("5 validation errors:\n")  # `stop` is a string or a list, and neither fits
    for place in ("temperature", "n", "logit_bias.1", "stop", "stop.0"):
        assert f"'loc': 'body.{place}'" in error.message


def test_values_are_coerced_in_a_logit_bias(deployment: Deployment) -> None:
    deployment.complete("x", logit_bias={"1": "5", "2": 1, "3": True})
    assert deployment.engine.sampling.logit_bias == {1: 5.0, 2: 1.0, 3: 1.0}


@pytest.mark.parametrize(("size", "in_a_thread"), [(1000, False), (100_000, True)])
def test_a_large_body_is_read_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, deployment: Deployment, size: int, in_a_thread: bool
) -> None:
    threads: list[int] = []
    read = body_module._parse

    def noted(*given: Any) -> Any:
        threads.append(threading.get_ident())
        return read(*given)

    monkeypatch.setattr(body_module, "_parse", noted)
    deployment.complete("x", unknown=["y" * (size // 10)] * 10)
    assert (threads[0] != threading.get_ident()) is in_a_thread
