"""Routes and headers for those who operate the worker: load, tokenizer, times of a request, SageMaker's one route."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from ember import wire
from ember.front.api.exchange import EventStream, Response
from ember.front.api.pooling.routes import POOLING_ROUTES
from ember.front.api.routes import ROUTER, ROUTES
from ember.front.errors import ApiError
from ember.front.text.template import ChatTemplate
from ember.front.worker.inputs import parse_input
from tests.api.fakes import MAX_MODEL_LEN, Deployment, make_tokenizer, refused
from tests.api.test_metrics import stats
from tests.api.test_scale_out import BODIES

CHAT, COMPLETIONS, INVOCATIONS = "/v1/chat/completions", "/v1/completions", "/invocations"
USER = [{"role": "user", "content": "hi"}]
TIMES = {"time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second"}

# ------------------------------------------------------------------------------------------------------------- load


def test_the_load_is_the_requests_in_flight(deployment: Deployment) -> None:
    def load() -> Any:
        return deployment.request("GET", "/load").body

    assert load() == {"server_load": 0}
    deployment.engine.delay = 0.01

    async def scenario() -> None:
        body = {"messages": USER}
        streamed = await deployment.dispatch("POST", CHAT, {**body, "stream": True})
        assert isinstance(streamed, EventStream)
        whole = asyncio.create_task(deployment.dispatch("POST", COMPLETIONS, {"prompt": ["a", "b"]}))
        batch = asyncio.create_task(deployment.dispatch("POST", f"{CHAT}/batch", {"messages": [USER] * 3}))
        await asyncio.sleep(0.02)
        answer = await deployment.dispatch("GET", "/load")
        assert isinstance(answer, Response)
        assert answer.body == {"server_load": 5}
        await streamed.events.aclose()
        whole.cancel()
        await asyncio.gather(whole, batch, return_exceptions=True)

    asyncio.run(scenario())
    assert load() == {"server_load": 0}
    with pytest.raises(ApiError):
        deployment.chat(temperature=3)
    deployment.engine.script = lambda prompt, sampling: [ApiError(500, "broken")]
    with pytest.raises(ApiError):
        deployment.chat()
    assert load() == {"server_load": 0}


@pytest.mark.parametrize("path", [CHAT, f"{CHAT}/batch", COMPLETIONS, INVOCATIONS])
@pytest.mark.parametrize("form", ["TEXT", "text", "JSON", " json "])
def test_the_load_comes_with_an_answer_that_asks_for_it(deployment: Deployment, path: str, form: str) -> None:
    deployment.engine.stats = stats  # type: ignore[method-assign]
    body = {"prompt": "hi"} if path == COMPLETIONS else {"messages": [USER] if "batch" in path else USER}
    for stream in (False, True):
        if stream and "batch" in path:
            continue
        answer = asyncio.run(
            deployment.dispatch("POST", path, {**body, "stream": stream}, endpoint_load_metrics_format=form)
        )
        name, _, report = answer.headers["endpoint-load-metrics"].partition(" ")
        assert name == form.strip().upper()
        if name == "JSON":
            named = json.loads(report)["named_metrics"]
        else:
            pairs = [pair.split("=") for pair in report.split(", ")]
            named = {key.removeprefix("named_metrics."): float(value) for key, value in pairs}
        assert named == {"kv_cache_usage_perc": 0.25, "num_requests_running": 2.0, "num_requests_waiting": 1.0}


def test_without_a_known_format_or_an_engine_the_answer_comes_alone(deployment: Deployment) -> None:
    deployment.engine.stats = stats  # type: ignore[method-assign]
    body = {"messages": USER}
    for form in ("BIN", "", "xml"):
        answer = deployment.request("POST", CHAT, body, endpoint_load_metrics_format=form)
        assert "endpoint-load-metrics" not in answer.headers
    assert "endpoint-load-metrics" not in deployment.request("POST", CHAT, body).headers
    assert (
        "endpoint-load-metrics" not in deployment.request("GET", "/load", endpoint_load_metrics_format="TEXT").headers
    )

    async def fails() -> wire.Stats:
        raise ApiError(500, "The engine failed.")

    deployment.engine.stats = fails  # type: ignore[method-assign]
    answer = deployment.request("POST", CHAT, body, endpoint_load_metrics_format="TEXT")
    assert (answer.status, "endpoint-load-metrics" in answer.headers) == (200, False)


def test_a_client_that_leaves_while_the_load_is_asked_for_ends_its_stream(deployment: Deployment) -> None:
    is_asked = asyncio.Event()

    async def never() -> wire.Stats:
        is_asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    deployment.engine.stats = never  # type: ignore[method-assign]

    async def scenario() -> None:
        body = {"messages": USER, "stream": True}
        asked = deployment.dispatch("POST", CHAT, body, endpoint_load_metrics_format="TEXT")
        task = asyncio.create_task(asked)
        async with asyncio.timeout(60):
            await is_asked.wait()
        assert deployment.services.metrics.in_flight == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert deployment.services.metrics.in_flight == 0

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------------------ as queue jobs

SHOWN = [route.path for route in ROUTES if "GET" in route.methods and "{" not in route.path and not route.is_admin]


@pytest.mark.parametrize("path", SHOWN)
def test_what_is_shown_over_http_is_shown_to_a_job(deploy: Any, path: str, tmp_path: Path) -> None:
    deployment = deploy(enable_tokenizer_info_endpoint=True, batch_dir=str(tmp_path))
    deployment.engine.stats = stats  # type: ignore[method-assign]
    for route in (path, f"/openai{path}"):
        request = parse_input({"openai_route": route}, ROUTER, model="org/tiny").request
        answer = asyncio.run(ROUTER.dispatch(deployment.services, request))
        assert isinstance(answer, Response)
        assert answer.status == 200


def test_a_job_for_a_post_without_a_body() -> None:
    jobs: list[dict[str, Any]] = [{}, {"openai_input": {}}, {"openai_input": None}]
    for job in jobs:
        request = parse_input({"openai_route": "/v1/responses/resp_1/cancel", **job}, ROUTER, model="m").request
        assert (request.method, request.path) == ("POST", "/v1/responses/resp_1/cancel")


POOLING_PATHS = {route.path for route in POOLING_ROUTES}


WITH_BODIES = [route.path for route in ROUTES if route.about.body and not route.is_admin and route.path not in SHOWN]


@pytest.mark.parametrize("path", WITH_BODIES)
def test_a_job_for_a_route_that_needs_a_body(deploy: Any, path: str) -> None:
    deployment = deploy(enable_scale_out=True)
    with pytest.raises(ApiError, match="openai_input is missing"):
        parse_input({"openai_route": path}, ROUTER, model="org/tiny")
    bodies: dict[str, Any] = {
        "/tokenize": {"prompt": "hi"},
        "/detokenize": {"tokens": [1]},
        "/v1/embeddings": {"input": "hi"},
        "/v1/embed": {"texts": ["hi"]},
        "/v2/embed": {"texts": ["hi"], "input_type": "clustering"},
        "/pooling": {"input": "hi"},
        "/classify": {"input": "hi"},
        **{key: {"text_1": "hi", "text_2": "ho"} for key in ("/score", "/v1/score")},
        **{key: {"query": "hi", "documents": ["ho"]} for key in ("/rerank", "/v1/rerank", "/v2/rerank")},
        COMPLETIONS: {"prompt": "hi"},
        "/v1/messages": {"messages": USER, "max_tokens": 5},
        **{path: {"input": "hi"} for path in ("/v1/responses", "/v1/responses/input_tokens")},
        **{path: {"inputs": "hi"} for path in ("/generate", "/generate_stream", "/")},
        **BODIES,
    }
    body = bodies.get(path, {"messages": [USER] if "batch" in path else USER})
    if path in POOLING_PATHS:
        deployment.pools("embed", "score", "classify")
    request = parse_input({"openai_route": path, "openai_input": body}, ROUTER, model="org/tiny").request
    assert asyncio.run(ROUTER.dispatch(deployment.services, request)).headers.keys() <= {"request-id"}


# ------------------------------------------------------------------------------------------------ times of a request


def script(deployment: Deployment) -> Any:
    token = deployment.tokenizer.encode("h", add_special_tokens=False)[0]
    return lambda prompt, sampling: [
        [wire.SequenceOutput(1, index, [token], queue_seconds=0.5) for index in range(sampling.n)],
        [wire.SequenceOutput(1, index, [token], finish_reason="length") for index in range(sampling.n)],
    ]


def test_times_of_a_request_where_the_deployment_shows_them(deploy: Any) -> None:
    deployment = deploy(enable_per_request_metrics=True)
    deployment.engine.script = script(deployment)
    deployment.engine.delay = 0.005
    for body in (deployment.chat(), deployment.complete()):
        metrics = body["metrics"]
        assert set(metrics) == TIMES
        assert metrics["queue_time_ms"] == 500
        assert metrics["generation_time_ms"] >= 5
        assert metrics["mean_itl_ms"] == pytest.approx(metrics["generation_time_ms"], abs=0.02)
        busy = metrics["time_to_first_token_ms"] + metrics["generation_time_ms"]
        assert metrics["tokens_per_second"] == pytest.approx(2000 / busy, rel=0.02)
    for stream in (deployment.stream_chat, deployment.stream_completion):
        *others, last = stream(stream_options={"include_usage": True})
        assert set(last["metrics"]) == TIMES
        assert not any("metrics" in chunk for chunk in [*others, *stream()])
    conversations = deployment.request("POST", f"{CHAT}/batch", {"messages": [USER, USER]}).body
    assert "metrics" not in conversations
    assert [set(choice["metrics"]) for choice in conversations["choices"]] == [TIMES, TIMES]


def test_no_times_of_several_choices_and_without_the_setting(deploy: Any) -> None:
    deployment = deploy(enable_per_request_metrics=True)
    assert deployment.chat(n=2)["metrics"] is None
    assert deployment.complete(["a", "b"])["metrics"] is None
    *_, last = deployment.stream_completion(["a", "b"], stream_options={"include_usage": True})
    assert "metrics" not in last
    none = deployment.complete("hi", max_tokens=0, echo=True)["metrics"]
    assert none == dict.fromkeys(TIMES)
    one = deployment.complete("hi", max_tokens=1)["metrics"]
    assert one["mean_itl_ms"] is None and one["generation_time_ms"] == 0
    assert deploy().chat()["metrics"] is None
    *_, last = deploy().stream_chat(stream_options={"include_usage": True})
    assert "metrics" not in last


# ------------------------------------------------------------------------------------------------------ invocations


def test_invocations_are_what_their_body_is(deployment: Deployment) -> None:
    chat = deployment.request("POST", INVOCATIONS, {"messages": USER}).body
    ChatCompletion.model_validate(chat)
    assert chat["id"].startswith("chatcmpl-")
    completion = deployment.request("POST", INVOCATIONS, {"prompt": "hi", "messages": None}).body
    Completion.model_validate(completion)
    assert completion["object"] == "text_completion"
    for messages, kind in (([], "text_completion"), ("hi", "text_completion"), (USER, "chat.completion")):
        both = deployment.request("POST", INVOCATIONS, {"prompt": "hi", "messages": messages}).body
        assert both["object"] == kind
    events = deployment.events(INVOCATIONS, {"messages": USER, "stream": True})
    assert len(events) > 2


@pytest.mark.parametrize("body", [{}, {"input": "x"}, None, [], "x", {"prompt": None}])
def test_invocations_of_nothing_known(deployment: Deployment, body: Any) -> None:
    error = refused(deployment, INVOCATIONS, body)
    assert (error.status, error.type) == (400, "BadRequestError")
    assert error.message.startswith(
        "Cannot find suitable handler for request. Expected one of: ['ChatCompletionRequest'"
    )


def test_invocations_name_the_field_at_fault(deployment: Deployment) -> None:
    assert refused(deployment, INVOCATIONS, {"messages": USER, "n": "many"}).param == "body.n"
    assert refused(deployment, INVOCATIONS, {"prompt": "", "max_tokens": 5}).param == "prompt"
    assert refused(deployment, INVOCATIONS, {"messages": "hi"}).param == "body.messages"
    with pytest.raises(ApiError, match="Method Not Allowed"):
        deployment.request("GET", INVOCATIONS)


# --------------------------------------------------------------------------------------------------- tokenizer info


def test_tokenizer_info_where_it_is_enabled(deploy: Any, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="ENABLE_TOKENIZER_INFO_ENDPOINT") as caught:
        deploy().request("GET", "/tokenizer_info")
    assert (caught.value.status, caught.value.type) == (404, "Not Found")

    deployment = deploy(enable_tokenizer_info_endpoint=True)
    make_tokenizer(tmp_path)
    deployment.services.tokenizer_dir = str(tmp_path)
    config: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer",
        "model_max_length": 1000000000000000019884624838656,
        "bos_token": {"content": "<s>", "lstrip": False, "__type": "AddedToken"},
        "chat_template": "not the one in use",
        "vocab_file": "/models/secret/vocab.txt",
        "name_or_path": "/models/secret",
        "add_bos_token": True,
        "errors": "replace",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    info = deployment.request("GET", "/tokenizer_info").body
    added = info.pop("added_tokens_decoder")
    assert info == {
        "tokenizer_class": "LlamaTokenizer",
        "model_max_length": MAX_MODEL_LEN,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "errors": "replace",
        "chat_template": deployment.services.template.source,
    }
    for token_id, token in added.items():
        text = deployment.request("POST", "/detokenize", {"tokens": [int(token_id)]}).body["prompt"]
        assert text == token["content"]
        assert token["special"] is True
    deployment.services.template = ChatTemplate("other", {})
    assert deployment.request("GET", "/tokenizer_info").body["chat_template"] == "other"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_max_length": "many", "x": [100000000000000000000]}'])
def test_tokenizer_info_of_a_file_that_says_little(deploy: Any, tmp_path: Path, content: str | None) -> None:
    deployment = deploy(enable_tokenizer_info_endpoint=True)
    deployment.services.tokenizer_dir = str(tmp_path)
    deployment.services.template = None
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
    info = deployment.request("GET", "/tokenizer_info").body
    assert info["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert info["model_max_length"] == MAX_MODEL_LEN
    assert "chat_template" not in info
    assert info.get("x") in (None, ["100000000000000000000"])
