"""Every shape of a job's input, and the request it becomes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from ember.front.api.openai_forms import openai_error
from ember.front.api.routes import ROUTER
from ember.front.errors import ApiError
from ember.front.worker.coalesce import BatchSizes
from ember.front.worker.inputs import parse_input, wants_stream

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

SHAPES: list[tuple[Any, str, str, Any]] = [
    # openai_route and openai_input
    ({"openai_input": {"messages": MESSAGES}}, "POST", CHAT, {"messages": MESSAGES, "model": "m"}),
    (
        {"openai_route": CHAT, "openai_input": {"messages": MESSAGES, "model": "x"}},
        "POST",
        CHAT,
        {"messages": MESSAGES, "model": "x"},
    ),
    (
        {"openai_route": "/openai/v1/completions", "openai_input": {"prompt": "a"}},
        "POST",
        COMPLETIONS,
        {"prompt": "a", "model": "m"},
    ),
    ({"openai_route": "v1/models"}, "GET", "/v1/models", None),
    ({"openai_route": "/v1/models", "openai_input": {}}, "GET", "/v1/models", None),
    ({"openai_route": "/v1/models", "openai_input": None}, "GET", "/v1/models", None),
    ({"openai_route": "/v1/models", "openai_input": ""}, "GET", "/v1/models", None),
    ({"openai_route": "/v1/models/a%2Fb"}, "GET", "/v1/models/a%2Fb", None),
    ({"openai_route": "/v1/\nmodels"}, "GET", "/v1/\nmodels", None),  # and no other route
    ({"route": "/v1/mod\r\tels?a=b#c?d"}, "GET", "/v1/mod\r\tels", None),
    ({"route": "//evil.example/health?x#y"}, "GET", "/evil.example/health", None),
    ({"route": "http://[::1/v1/models"}, "GET", "/http://[::1/v1/models", None),
    # route, body and method
    ({"route": "/health"}, "GET", "/health", None),
    ({"route": "/v1/models", "method": "get", "body": {}}, "GET", "/v1/models", None),
    ({"route": CHAT, "body": {"messages": MESSAGES}}, "POST", CHAT, {"messages": MESSAGES, "model": "m"}),
    ({"route": CHAT, "method": "POST"}, "POST", CHAT, {"model": "m"}),
    # messages or prompt
    ({"messages": MESSAGES}, "POST", CHAT, {"messages": MESSAGES, "model": "m"}),
    ({"messages": MESSAGES, "prompt": "ignored"}, "POST", CHAT, {"messages": MESSAGES, "model": "m"}),
    (
        {"prompt": "a", "stream": True, "sampling_params": {"max_tokens": 5}},
        "POST",
        COMPLETIONS,
        {"prompt": "a", "stream": True, "max_tokens": 5, "model": "m"},
    ),
    ({"prompt": [1, 2, 3]}, "POST", COMPLETIONS, {"prompt": [1, 2, 3], "model": "m"}),
    (
        {"prompt": "a", "max_tokens": 7, "sampling_params": {"top_k": 4}},
        "POST",
        COMPLETIONS,
        {"prompt": "a", "max_tokens": 7, "top_k": 4, "model": "m"},
    ),
    ({"prompt": "hi", "apply_chat_template": True}, "POST", CHAT, {"messages": MESSAGES, "model": "m"}),
    (
        {
            "prompt": "a",
            "apply_chat_template": False,
            "use_openai_format": True,
            "max_batch_size": 5,
            "min_batch_size": 1,
            "batch_size_growth_factor": 3,
        },
        "POST",
        COMPLETIONS,
        {"prompt": "a", "model": "m"},
    ),
    (
        {"messages": MESSAGES, "sampling_params": {"logprobs": 3}},
        "POST",
        CHAT,
        {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3, "model": "m"},
    ),
    (
        {"prompt": "a", "sampling_params": {"logprobs": 3}},
        "POST",
        COMPLETIONS,
        {"prompt": "a", "logprobs": 3, "model": "m"},
    ),
    ({"prompt": "a", "sampling_params": None}, "POST", COMPLETIONS, {"prompt": "a", "model": "m"}),
]

REFUSED: list[tuple[Any, str]] = [
    (None, "null"),
    ("text", "a string"),
    ([1], "a list"),
    (5, "a number"),
    (True, "a boolean"),
    ({}, "openai_route"),
    ({"foo": 1}, "must contain one of"),
    ({"openai_input": []}, "must contain one of"),
    ({"openai_input": "text"}, "openai_input must be a JSON object, not a string"),
    ({"openai_input": [1], "openai_route": CHAT}, "openai_input must be"),
    ({"openai_route": 5}, "openai_route must be a string"),
    ({"route": ["/health"]}, "route must be a string"),
    ({"route": "/health", "method": "BREW"}, "GET, POST, DELETE"),
    ({"route": "/health", "method": 7}, "method must be a string"),
    ({"route": CHAT, "body": "text"}, "body must be a JSON object"),
    ({"prompt": "a", "sampling_params": [1]}, "sampling_params must be a JSON object"),
    ({"prompt": [1], "apply_chat_template": True}, "prompt must be a string"),
    ({"prompt": "a", "max_batch_size": "many"}, "max_batch_size"),
    ({"prompt": "a", "max_batch_size": 0}, "max_batch_size"),
]


@pytest.mark.parametrize(("job_input", "method", "path", "body"), SHAPES)
def test_shape(job_input: Any, method: str, path: str, body: Any) -> None:
    request = parse_input(job_input, ROUTER, model="m").request
    assert (request.method, request.path, request.body) == (method, path, body)


@pytest.mark.parametrize(("job_input", "said"), REFUSED)
def test_refused(job_input: Any, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_input(job_input, ROUTER, model="m")
    assert caught.value.status == 400
    assert said in caught.value.message


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("job_input", "param", "said"),
    [
        ({"openai_input": {"messages": MESSAGES, "model": "\ud800"}}, "openai_input.model", "surrogate"),
        ({"openai_route": "/v1/models/\ud800"}, "openai_route", "surrogate"),
        ({"messages": [{"role": "\ud800", "content": "hi"}]}, "messages.0.role", "surrogate"),
        ({"prompt": "a", "\ud800": 1}, "input", "surrogate"),
        ({"prompt": "a", "seed": 2**64}, "seed", "64 bits"),
        ({"prompt": "a", "sampling_params": {"logit_bias": {1: 2}}}, "sampling_params.logit_bias", "keys"),
        ({"prompt": _nested(300)}, "prompt.0.0.0", "nested"),
    ],
)
def test_what_no_json_can_carry_is_refused_where_it_is(job_input: Any, param: str, said: str) -> None:
    """The SDK reads jobs with the json module, which lets such values in."""
    with pytest.raises(ApiError) as caught:
        parse_input(job_input, ROUTER, model="m")
    assert caught.value.status == 400
    assert said in caught.value.message
    assert caught.value.param == param
    orjson.dumps(openai_error(caught.value))


def test_query_and_headers() -> None:
    job = parse_input({"route": "/v1/models?a=b&c="}, ROUTER, model="m", job_id="job-7")
    assert job.request.path == "/v1/models"
    assert job.request.query == {"a": "b", "c": ""}
    assert job.request.headers["x-request-id"] == "job-7"


def test_input_is_not_changed() -> None:
    openai_input = {"messages": MESSAGES}
    parse_input({"openai_input": openai_input}, ROUTER, model="m")
    assert openai_input == {"messages": MESSAGES}


@pytest.mark.parametrize(
    ("job_input", "stream"),
    [
        ({"prompt": "a"}, False),
        ({"prompt": "a", "stream": True}, True),
        ({"prompt": "a", "stream": "true"}, True),
        ({"prompt": "a", "stream": 1}, True),
        ({"prompt": "a", "sampling_params": {"stream": True}}, True),
        ({"prompt": "a", "stream": False, "sampling_params": {"stream": True}}, False),
        ({"openai_input": {"messages": MESSAGES, "stream": True}}, True),
        ({"route": CHAT, "body": {"messages": MESSAGES, "stream": True}}, True),
    ],
)
def test_stream(job_input: Any, stream: bool) -> None:
    assert parse_input(job_input, ROUTER, model="m").stream is stream


def test_wants_stream_of_what_cannot_be_parsed() -> None:
    assert wants_stream({"stream": True})
    assert not wants_stream(None)
    assert not wants_stream({"openai_input": "text"})


def test_max_batch_size_bounds_events() -> None:
    assert parse_input({"prompt": "a", "max_batch_size": "5"}, ROUTER, model="m").max_events == 5
    assert parse_input({"prompt": "a", "max_batch_size": None}, ROUTER, model="m").max_events is None


def test_batch_sizes_of_a_job_are_stronger_than_the_workers() -> None:
    usual = BatchSizes(least=2, growth=3.0, most=50)
    assert parse_input({"prompt": "a"}, ROUTER, model="m").sizes(usual) == usual
    own = {"prompt": "a", "min_batch_size": 4, "batch_size_growth_factor": "1.5", "max_batch_size": 9}
    assert parse_input(own, ROUTER, model="m").sizes(usual) == BatchSizes(least=4, growth=1.5, most=9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_batch_size", 0),
        ("min_batch_size", "many"),
        ("batch_size_growth_factor", 0.5),
        ("batch_size_growth_factor", []),
        ("batch_size_growth_factor", "nan"),
        ("max_batch_size", -1),
    ],
)
def test_batch_sizes_that_make_no_sense(name: str, value: object) -> None:
    with pytest.raises(ApiError) as caught:
        parse_input({"prompt": "a", name: value}, ROUTER, model="m")
    assert (caught.value.status, caught.value.param) == (400, name)


@pytest.mark.parametrize(
    ("job_input", "beside", "name"),
    [
        ({"openai_input": {"messages": MESSAGES}, "zork_a": 1}, "openai_input", "zork_a"),
        ({"openai_input": {"messages": MESSAGES}, "sampling_params": {"n": 2}}, "openai_input", "sampling_params"),
        ({"openai_route": "/v1/models", "zork_b": 1}, "openai_route", "zork_b"),
        ({"route": CHAT, "body": {"messages": MESSAGES}, "zork_c": 1}, "route", "zork_c"),
    ],
)
def test_fields_beside_a_request_are_named_once(
    job_input: Any, beside: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    parse_input(job_input, ROUTER, model="m")
    parse_input(job_input, ROUTER, model="m")
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"input.{name} " in message and f"beside {beside}" in message and "no effect" in message


def test_fields_with_an_effect_are_not_named(caplog: pytest.LogCaptureFixture) -> None:
    parse_input({"openai_input": {"messages": MESSAGES}, "openai_route": CHAT, "max_batch_size": 2}, ROUTER, model="m")
    parse_input(
        {"route": CHAT, "body": {"messages": MESSAGES}, "method": "POST", "min_batch_size": 2}, ROUTER, model="m"
    )
    parse_input({"messages": MESSAGES, "sampling_params": {}, "use_openai_format": True}, ROUTER, model="m")
    parse_input({"openai_input": {"messages": MESSAGES}, "messages": None}, ROUTER, model="m")
    assert not caplog.records
