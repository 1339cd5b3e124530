"""Halves of surrogate pairs, which JSON lets in and UTF-8 cannot express: refused by their place, quoted as `?`."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from ember.front.api.openai_forms import OPENAI_EVENTS, openai_error
from ember.front.errors import ApiError
from tests.api.fakes import Deployment, refused


def test_an_error_can_be_sent_whatever_it_quotes() -> None:
    error = ApiError(400, "got \ud800é", param="a\udfff")
    assert openai_error(error)["error"]["message"] == "got ?é"
    assert openai_error(error)["error"]["param"] == "a?"
    assert str(error) == "got ?é"
    assert OPENAI_EVENTS.encode(OPENAI_EVENTS.error(error)).startswith("data: {")


SURROGATES: list[tuple[dict[str, Any], str]] = [
    ({"model": "\ud800"}, "body.model"),
    ({"cache_salt": "a\ud800"}, "body.cache_salt"),
    ({"request_id": "\udc00"}, "body.request_id"),
    ({"stop": ["a", "\ud800"]}, "body.stop.1"),
    ({"unknown": {"a": [{"\ud800": 1}]}}, "body.unknown.a.0"),
    ({"\ud800": 10**100}, "body"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "body.messages.0.content"),
]


@pytest.mark.parametrize(("fields", "place"), SURROGATES)
def test_text_that_cannot_be_encoded_is_refused(deployment: Deployment, fields: dict[str, Any], place: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        body = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", **fields}
        error = refused(deployment, path, body)
        assert (error.status, error.type, error.param) == (400, "Bad Request", place)
        assert error.message == f"{place} holds a lone surrogate. It is not a character and cannot be encoded as UTF-8."


def test_large_numbers_and_depths_are_no_surrogates(deployment: Deployment) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    deployment.complete("hi", unknown=[10**100, deep, float("nan")])


def test_a_model_that_cannot_be_encoded(deployment: Deployment) -> None:
    with pytest.raises(ApiError, match="does not exist") as caught:
        deployment.request("GET", "/v1/models/\ud800")
    orjson.dumps(openai_error(caught.value))
