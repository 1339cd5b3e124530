"""Bodies that are not what the schema says: which places are named, and how much is echoed."""

from __future__ import annotations

from typing import Any

import pytest

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
    error = refused(deployment, "/v1/completions", {"prompt": "x", "logit_bias": {str(i): "y" for i in range(50)}})
    assert error.message.startswith("50 validation errors:\n")
    assert error.message.count("\n") == 10
    error = refused(deployment, "/v1/chat/completions", {"text": "y" * 1_000_000})
    assert len(error.message) < 500


def test_messages_must_not_be_empty(deployment: Deployment) -> None:
    error = refused(deployment, "/v1/chat/completions", {"messages": []})
    assert (error.type, error.param) == ("Bad Request", "body.messages")
