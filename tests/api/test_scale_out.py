"""The routes that divide a request between servers, and /generative_scoring."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ember.front.api.routes import ROUTER
from ember.front.errors import ApiError
from ember.front.worker.inputs import parse_input
from tests.api.fakes import Deployment
from tests.api.talking import ADD, CALL_ADD, talking

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/inference/v1/generate"
SCORING = "/generative_scoring"
USER = [{"role": "user", "content": "hi"}]
THOUGHT = f"<think>\nhm\n</think>\n\nhello there {CALL_ADD}"
SCORE = {"query": "is", "items": ["a"], "label_token_ids": [5, 6]}
GENERATED = {"choices": [{"index": 0, "token_ids": [1]}]}
BODIES: dict[str, Any] = {  # that each of these routes answers, whatever the model
    f"{CHAT}/render": {"messages": USER},
    f"{COMPLETIONS}/render": {"prompt": "hi"},
    "/v1/messages/render": {"messages": USER, "max_tokens": 9},
    "/v1/responses/render": {"input": "hi"},
    GENERATE: {"token_ids": [1], "sampling_params": {}},
    f"{CHAT}/derender": {"generate_response": GENERATED},
    f"{COMPLETIONS}/derender": {"generate_responses": [GENERATED]},
    SCORING: SCORE,
}


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    deployment = talking(enable_scale_out=True)
    deployment.says(THOUGHT)
    return deployment


def post(deployment: Deployment, path: str, body: Any) -> Any:
    return json.loads(json.dumps(deployment.request("POST", path, body).body))


def plain(answer: Any) -> Any:
    """An answer without what differs from one to the next."""
    text = json.dumps(answer["choices"])
    calls = [call["id"] for choice in answer["choices"] for call in choice.get("message", {}).get("tool_calls", [])]
    for name in calls:
        text = text.replace(name, "call")
    return json.loads(text), answer["usage"]["completion_tokens"], answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "fields",
    [{}, {"tools": [ADD]}, {"stop": ["there"]}, {"logprobs": True, "top_logprobs": 2, "return_token_ids": True}],
)
def test_a_chat_through_three_servers_is_the_chat(deployment: Deployment, fields: Any) -> None:
    body = {"messages": USER, "temperature": 0.5, "seed": 3, "logit_bias": {"5": 1}, "bad_words": ["x"], **fields}
    rendered = post(deployment, f"{CHAT}/render", body)
    generated = post(deployment, GENERATE, rendered)
    assert generated["request_id"] == rendered["request_id"] and generated["request_id"].startswith("chatcmpl-")
    sampling = deployment.engine.sampling
    answer = post(deployment, f"{CHAT}/derender", {"generate_response": generated, "chat_request": body})
    whole = post(deployment, CHAT, body)
    assert deployment.engine.sampling == sampling
    assert plain(answer) == plain(whole)
    assert answer.keys() == whole.keys()


def test_completions_through_three_servers_are_the_completions(deployment: Deployment) -> None:
    body = {"prompt": ["a", "bc"], "max_tokens": 7, "logprobs": 2, "n": 2, "structured_outputs": {"regex": "a+"}}
    rendered = post(deployment, f"{COMPLETIONS}/render", body)
    assert [len(each["token_ids"]) for each in rendered] == [1, 2]
    generated = [post(deployment, GENERATE, each) for each in rendered]
    assert deployment.engine.sampling.grammar is not None
    given = {"generate_responses": generated, "prompt_tokens": [1, 2], "completion_request": body}
    assert plain(post(deployment, f"{COMPLETIONS}/derender", given)) == plain(post(deployment, COMPLETIONS, body))


def test_a_stream_of_token_ids(deployment: Deployment) -> None:
    (rendered,) = post(deployment, f"{COMPLETIONS}/render", {"prompt": "a", "max_tokens": 5})
    whole = post(deployment, GENERATE, {**rendered, "output_mode": "text"})["choices"][0]
    fields = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    *chunks, last = (json.loads(event.data) for event in deployment.events(GENERATE, {**rendered, **fields}))
    token_ids = [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]]
    assert token_ids == whole["token_ids"] and whole["text"]
    assert [chunk.get("prompt_token_ids") for chunk in chunks][:2] == [rendered["token_ids"], None]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)


def test_what_has_stopped_the_tokens_is_told(deployment: Deployment) -> None:
    body = {"token_ids": [1, 2], "sampling_params": {"max_tokens": 9}}
    choice = post(deployment, GENERATE, body)["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    body["sampling_params"] = {"max_tokens": 9, "stop_token_ids": [choice["token_ids"][0]]}
    choice = post(deployment, GENERATE, body)["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", choice["token_ids"][-1])


def test_other_dialects_render_the_chat_that_they_are(deployment: Deployment) -> None:
    token_ids = post(deployment, f"{CHAT}/render", {"messages": USER})["token_ids"]
    message = post(deployment, "/v1/messages/render", {"messages": USER, "max_tokens": 4})
    assert (message["token_ids"], message["sampling_params"]["max_tokens"]) == (token_ids, 4)
    assert post(deployment, "/v1/responses/render", {"input": "hi"})["token_ids"] == token_ids


@pytest.mark.parametrize("side", ["left", "right", None])
def test_where_the_tokens_of_a_prompt_are(deployment: Deployment, side: str | None) -> None:
    cut = {} if side is None else {"truncate_prompt_tokens": 4, "truncation_side": side}
    text = "é 🦜 there"
    body = {"prompt": [text, "b"], "return_token_offsets": True, **cut}
    first, second = post(deployment, f"{COMPLETIONS}/render", body)
    assert len(first["token_offsets"]) == len(first["token_ids"])
    assert second["token_offsets"] == [[0, 1]]
    (begin, _), (_, end) = first["token_offsets"][0], first["token_offsets"][-1]
    assert (begin == 0, end == len(text)) == (side != "left", side != "right")
    chat = post(deployment, f"{CHAT}/render", {"messages": USER, "return_token_offsets": True})
    assert len(chat["token_offsets"]) == len(chat["token_ids"])
    assert post(deployment, f"{CHAT}/render", {"messages": USER})["token_offsets"] is None


def test_they_are_off_unless_set(deploy: Any) -> None:
    off = deploy()
    for path in (f"{CHAT}/render", f"{COMPLETIONS}/derender", GENERATE):
        with pytest.raises(ApiError, match="set ENABLE_SCALE_OUT to true") as caught:
            off.request("POST", path, {})
        assert (caught.value.status, caught.value.type) == (403, "PermissionDeniedError")


@pytest.mark.parametrize("apply_softmax", [True, False])
def test_the_score_of_a_label(deployment: Deployment, apply_softmax: bool) -> None:
    body = {**SCORE, "items": ["a", "bc"], "apply_softmax": apply_softmax, "request_id": "mine"}
    job = parse_input({"openai_route": SCORING, "openai_input": body}, ROUTER, model="org/tiny").request
    answer = post(deployment, SCORING, job.body)
    share = 1 / (1 + math.exp(-0.5)) if apply_softmax else math.exp(-0.5)
    assert [entry["score"] for entry in answer["data"]] == pytest.approx([share, share])
    assert (answer["id"], answer["usage"]["prompt_tokens"]) == ("generative-scoring-mine", 3 + 4)
    assert answer["usage"]["completion_tokens"] == 2
    assert deployment.engine.sampling.logprob_token_ids == [5, 6]
    post(deployment, SCORING, {**body, "item_first": True})
    assert deployment.engine.prompt == deployment.tokenizer.encode("bcis", add_special_tokens=False)


BAD = [
    (f"{CHAT}/render", {"messages": USER, "use_beam_search": True}, "use_beam_search", "Beam search is not supported"),
    (f"{CHAT}/render", {"messages": USER, "model": "x"}, "model", "does not exist"),
    (f"{COMPLETIONS}/render", {"prompt": ""}, "prompt", "non-empty"),
    (GENERATE, {"token_ids": [], "sampling_params": {}}, "body.token_ids", "at least 1 item"),
    (GENERATE, {"token_ids": [1]}, "body.sampling_params", "Field required"),
    (GENERATE, {"token_ids": [-1], "sampling_params": {}}, "token_ids", "out-of-vocab"),
    (GENERATE, {"token_ids": [1], "sampling_params": {"temperature": 3}}, "sampling_params.temperature", "[0, 2]"),
    (GENERATE, {"token_ids": [1], "sampling_params": {"n": "many"}}, "sampling_params.n", "valid integer"),
    (GENERATE, {"token_ids": [1], "sampling_params": {}, "features": {}}, "features", "not supported"),
    (GENERATE, {"token_ids": [1], "sampling_params": {"max_tokens": 4096}}, "sampling_params.max_tokens", "most 4095"),
    (GENERATE, {"token_ids": [1], "sampling_params": {"max_tokens": 2**64}}, "sampling_params.max_tokens", ""),
    (GENERATE, {"token_ids": [1], "sampling_params": {"detokenize": False, "stop": "x"}}, "sampling_params.stop", ""),
    (
        GENERATE,
        {"token_ids": [1], "sampling_params": {"detokenize": False}, "output_mode": "text"},
        "output_mode",
        "needs the text",
    ),
    (GENERATE, {"token_ids": [1], "sampling_params": {}, "output_mode": "x"}, "body.output_mode", "'tokens'"),
    (f"{CHAT}/derender", {"generate_response": GENERATED}, "chat_request", "is required"),
    (f"{CHAT}/derender", {"generate_response": {"choices": []}}, "body.generate_response.choices", "at least 1"),
    (
        f"{CHAT}/derender",
        {"generate_response": GENERATED, "chat_request": {"messages": USER, "n": 0}},
        "chat_request.n",
        "n must be at least 1",
    ),
    (
        f"{COMPLETIONS}/derender",
        {"generate_responses": [{"choices": [{"index": 0, "token_ids": [10**6]}]}]},
        "generate_responses.0.choices.0.token_ids",
        "out-of-vocab",
    ),
    (
        f"{COMPLETIONS}/derender",
        {"generate_responses": [GENERATED], "prompt_tokens": [1, 2]},
        "prompt_tokens",
        "must equal generate_responses length (1)",
    ),
    (SCORING, {**SCORE, "label_token_ids": [10**6]}, "label_token_ids", "label_token_id 1000000 is out of vocabulary"),
    (SCORING, {**SCORE, "label_token_ids": []}, "label_token_ids", "at least one token ID"),
    (SCORING, {**SCORE, "items": []}, "items", "at least one item"),
    (SCORING, {**SCORE, "query": [], "items": ["a", ""]}, "items.1", "must not both be empty"),
    (SCORING, {**SCORE, "items": [[10**6]]}, "items.0", "out-of-vocab"),
    (SCORING, {"items": ["a"], "label_token_ids": [1]}, "body.query", "Field required"),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), BAD)
def test_bad_input_is_named(deployment: Deployment, path: str, body: Any, param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        deployment.request("POST", path, body)
    assert (caught.value.status, caught.value.param) == (404 if param == "model" else 400, param)
    assert words in caught.value.message
