"""/derender: whole answers that other servers generated, and chunks of streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ember.front.api.scale_out.answers import DerenderedChatChunk, DerenderedCompletionChunk
from ember.front.errors import ApiError
from tests.api.fakes import Deployment
from tests.api.talking import ADD, CALL_ADD, message_of, talking

CHAT, COMPLETION = "/v1/chat/completions/derender", "/v1/completions/derender"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "tools": [ADD]}
OUTPUT = f"<think>\nhmé\n</think>\n\nso 🦜 {CALL_ADD}"


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    return talking(enable_scale_out=True)


def post(deployment: Deployment, path: str, body: dict[str, Any]) -> Any:
    return json.loads(json.dumps(deployment.request("POST", path, body).body))


def generated(token_ids: list[int], **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "token_ids": token_ids, "finish_reason": "stop", "logprobs": fields.pop("logprobs", None)}
    return {"request_id": "one", "choices": [choice], **fields}


def chunks_of(deployment: Deployment, token_ids: list[int], size: int, asked: Any, *, apart: bool = False) -> list[Any]:
    """The chunks that a client gets for chunks of `size` tokens. The reason of the end comes `apart` where that is
    so."""
    parts = [token_ids[start : start + size] for start in range(0, len(token_ids), size)] + [[]] * apart
    state, chunks = None, []
    for number, part in enumerate(parts):
        reason = "stop" if number == len(parts) - 1 else None
        body: dict[str, Any] = {
            "stream": True,
            "generate_chunk": {
                "request_id": "one",
                "choices": [{"index": 0, "token_ids": part, "finish_reason": reason}],
            },
            "stream_state": state,
            "chat_request": asked,
        }
        answer = post(deployment, CHAT, body)
        DerenderedChatChunk.model_validate(answer)
        chunks.append(answer["chunk"])
        state = answer["stream_state"]
    return chunks


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_the_chunks_of_a_chat_add_up_to_it(deployment: Deployment, size: int, apart: bool) -> None:
    token_ids = deployment.tokenizer.encode(OUTPUT, add_special_tokens=False)
    whole = post(deployment, CHAT, {"generate_response": generated(token_ids), "chat_request": ASKED})["choices"][0]
    chunks = chunks_of(deployment, token_ids, size, ASKED, apart=apart)
    roles = [chunk["choices"][0]["delta"].get("role") for chunk in chunks]
    assert roles == ["assistant"] + [None] * (len(roles) - 1)
    message = message_of(chunks)
    for name in ("content", "reasoning"):
        assert message[name] == whole["message"][name]
    (call,), (other,) = message["tool_calls"], whole["message"]["tool_calls"]
    assert (call["function"], message["finish_reason"]) == (other["function"], "tool_calls")
    assert {chunk["id"] for chunk in chunks} == {"one"}


@pytest.mark.parametrize("reason", ["stop", "tool_calls"])
def test_what_ended_an_answer_is_told_whole_and_in_chunks(deployment: Deployment, reason: str) -> None:
    """A stop token of the request ends it, also where the reason is the one that a chat's answer has."""
    stop_id = deployment.tokenizer.encode("!", add_special_tokens=False)[0]
    token_ids = [*deployment.tokenizer.encode(CALL_ADD, add_special_tokens=False), stop_id]
    asked = {**ASKED, "stop_token_ids": [stop_id]}
    choice = {"index": 0, "token_ids": token_ids, "finish_reason": reason}
    whole = post(deployment, CHAT, {"generate_response": {"choices": [choice]}, "chat_request": asked})["choices"][0]
    body = {"stream": True, "generate_chunk": {"choices": [choice]}, "chat_request": asked}
    chunk = post(deployment, CHAT, body)["chunk"]["choices"][0]
    assert whole["stop_reason"] == chunk["stop_reason"] == stop_id
    assert not whole["message"]["content"] and "content" not in chunk["delta"]


def test_the_chunks_of_a_completion_add_up_to_it(deployment: Deployment) -> None:
    token_ids = deployment.tokenizer.encode("é🦜 there", add_special_tokens=False)
    logprobs = [{"token_id": token_id, "logprob": -1.0} for token_id in token_ids]
    given = generated(token_ids, logprobs={"content": logprobs})
    whole = post(deployment, COMPLETION, {"generate_responses": [given]})["choices"][0]
    state, text, columns = None, "", []
    for number, token_id in enumerate(token_ids):
        part = {"index": 0, "token_ids": [token_id], "logprobs": {"content": logprobs[number : number + 1]}}
        body = {"stream": True, "generate_chunk": {"choices": [part]}, "stream_state": state}
        answer = post(deployment, COMPLETION, body)
        DerenderedCompletionChunk.model_validate(answer)
        state = answer["stream_state"]
        text += answer["chunk"]["choices"][0]["text"]
        columns += answer["chunk"]["choices"][0]["logprobs"]["text_offset"]
    assert (text, columns) == (whole["text"], whole["logprobs"]["text_offset"])
    usage = {"prompt_tokens": 0, "completion_tokens": 6, "total_tokens": 6}
    body = {
        "stream": True,
        "generate_chunk": {"choices": [], "usage": usage},
        "stream_state": state,
        "prompt_tokens": 4,
    }
    last = post(deployment, COMPLETION, body)
    assert (last["chunk"]["choices"], last["stream_state"]) == ([], state)
    assert last["chunk"]["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}


def test_what_came_with_the_tokens_comes_with_the_answer(deployment: Deployment) -> None:
    entry = {"token": "token_id:5", "logprob": -1.0, "bytes": None}
    given = generated(
        [5, 6, 7],
        logprobs={"content": [{**entry, "top_logprobs": [{"token": "token_id:6", "logprob": -2.0}]}]},
        prompt_logprobs=[None, None],
        kv_transfer_params={"node": "a"},
        metrics={"queue_time_ms": 3.0},
    )
    chat = post(deployment, CHAT, {"generate_response": given, "chat_request": ASKED})
    completion = post(deployment, COMPLETION, {"generate_responses": [given]})
    name = deployment.tokenizer.token_text(5)
    (position,) = chat["choices"][0]["logprobs"]["content"]
    assert (position["token"], position["bytes"]) == (name, list(deployment.tokenizer.token_bytes(5)))
    assert [other["token"] for other in position["top_logprobs"]] == [deployment.tokenizer.token_text(6)]
    assert completion["choices"][0]["logprobs"]["tokens"] == [name]
    for answer in (chat, completion):
        assert (answer["kv_transfer_params"], answer["metrics"]) == ({"node": "a"}, {"queue_time_ms": 3.0})
    assert chat["prompt_logprobs"] == completion["choices"][0]["prompt_logprobs"] == [None, None]


def part(**fields: Any) -> dict[str, Any]:
    return {"stream": True, "generate_chunk": {"choices": [{"index": 0, "token_ids": [1]}]}, **fields}


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (CHAT, {"generate_response": generated([]), "chat_request": ASKED}, "choices.0.token_ids", "non-empty"),
        (CHAT, {"generate_response": generated([1] * 5000), "chat_request": ASKED}, "token_ids", "max_model_len=4096"),
        (
            COMPLETION,
            {"generate_responses": [generated([1])], "prompt_token_ids": [[1] * 5000]},
            "ids",
            "max_model_len",
        ),
        (CHAT, part(), "chat_request", "is required"),
        (COMPLETION, {"stream": True}, "body.generate_chunk", "Field required"),
        (COMPLETION, part(generate_chunk={"choices": [{"index": 0}, {"index": 1}]}), "choices", "at most one choice"),
        (COMPLETION, part(stream_state={"output_token_ids": [1] * 4096}), "token_ids", "max_model_len"),
        (COMPLETION, part(stream_state={"output_token_ids": [10**6]}), "stream_state", "out-of-vocab"),
        (COMPLETION, part(stream_state=3), "body.stream_state", "dict"),
        (COMPLETION, part(completion_request={"prompt": "x", "n": 0}), "completion_request.n", "at least 1"),
    ],
)
def test_bad_input_is_named(deployment: Deployment, path: str, body: Any, param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        deployment.request("POST", path, body)
    assert caught.value.status == 400
    assert param in str(caught.value.param)
    assert words in caught.value.message
