"""The forms of a job's outputs, from what the api's routes send."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ember.front.api.exchange import Event, Response
from ember.front.api.openai_forms import openai_error
from ember.front.api.route import NO_ROUTE
from ember.front.api.routes import ROUTER
from ember.front.errors import ApiError
from ember.front.worker.inputs import parse_input
from ember.front.worker.outputs import TokenLists, check_result_size, output_bytes


def kept(**chunk: Any) -> str:
    return TokenLists(NO_ROUTE).encode(Event(json.dumps(chunk)))


def chunk(index: int, text: str | None, count: int, route: str = "chat") -> str:
    body: dict[str, Any] = {"delta": {"content": text}} if route == "chat" else {"text": text}
    usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
    return kept(choices=[{"index": index, **body}], usage=usage)


@pytest.mark.parametrize("route", ["chat", "completion"])
def test_a_stream_of_tokens(route: str) -> None:
    form = TokenLists(NO_ROUTE)
    assert form.pieces([chunk(0, "", 0, route), chunk(1, "", 0, route)]) == []  # nothing is said yet
    first = form.pieces([chunk(0, "Hel", 1, route), chunk(0, "lo", 2, route), chunk(1, "Hi", 1, route)])
    assert first == [{"choices": [{"tokens": ["Hel", "lo"]}, {"tokens": ["Hi"]}], "usage": {"input": 7, "output": 3}}]
    last = form.pieces([chunk(1, None, 2, route), kept(choices=[], usage={"prompt_tokens": 7})])
    assert last == [{"choices": [{"tokens": []}, {"tokens": []}], "usage": {"input": 7, "output": 4}}]


def test_a_whole_answer_as_tokens() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    chat = {"choices": [{"message": {"reasoning": "hm. ", "content": "Yes"}}], "usage": usage}
    completion = {"choices": [{"text": "a"}, {"text": "b"}], "usage": usage}
    counts = {"input": 3, "output": 5}
    assert TokenLists(NO_ROUTE).body(Response(200, chat)) == {"choices": [{"tokens": ["hm. Yes"]}], "usage": counts}
    both = [{"tokens": ["a"]}, {"tokens": ["b"]}]
    assert TokenLists(NO_ROUTE).body(Response(200, completion)) == {"choices": both, "usage": counts}


def test_an_error_among_tokens_fails_the_job() -> None:
    error = ApiError(400, "bad", param="prompt")
    (output,) = TokenLists(NO_ROUTE).failed(error)
    assert json.loads(output["error"]) == openai_error(error)["error"]


def test_which_jobs_are_answered_with_tokens() -> None:
    def as_tokens(**job_input: Any) -> bool:
        return parse_input(job_input, ROUTER, model="m", native_tokens=True).native_tokens

    assert as_tokens(prompt="a")
    assert as_tokens(messages=[], stream=True)
    assert not as_tokens(prompt="a", use_openai_format=True)
    assert not as_tokens(openai_input={"prompt": "a"})
    assert not as_tokens(openai_route="/v1/models")
    assert not parse_input({"prompt": "a"}, ROUTER, model="m").native_tokens
    job = parse_input({"prompt": "a", "stream": True}, ROUTER, model="m", native_tokens=True)
    assert job.request.body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    with pytest.raises(ApiError, match="use_openai_format"):
        as_tokens(messages=[], tools=[{"type": "function"}])


@pytest.mark.parametrize("value", ['quote " and \n line', "日本", {"a": ["x" * 5000, 1, None]}, ["text"]])
def test_the_size_of_an_output_is_no_less_than_on_the_wire(value: Any) -> None:
    on_the_wire = len(json.dumps([value], ensure_ascii=False).encode()) - 2
    assert on_the_wire <= output_bytes(value) + 4
    assert output_bytes(value) <= on_the_wire + 4


def test_the_limit_depends_on_the_kind_of_job() -> None:
    check_result_size(10_000_000, "abc-u1")
    check_result_size(20_000_000, "sync-abc-u1")
    for size, job_id in ((10_000_001, "abc-u1"), (20_000_001, "sync-abc-u1")):
        with pytest.raises(ApiError) as caught:
            check_result_size(size, job_id)
        assert caught.value.status == 413
