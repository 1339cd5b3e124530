"""POST /v1/chat/completions as a stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from ember import wire
from ember.front.api.exchange import EventStream
from ember.front.api.openai_forms import OPENAI_EVENTS
from ember.front.errors import ApiError
from tests.api.fakes import Deployment, parsed, say


def content(chunks: list[Any], index: int = 0) -> str:
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices if choice["index"] == index)


def test_the_chunks_one_by_one(deployment: Deployment) -> None:
    deployment.says("hello w")
    chunks = deployment.stream_chat()
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    fingerprint = chunks[-1].pop("system_fingerprint")
    assert fingerprint.startswith("ember-")
    heads = {(chunk.pop("id"), chunk.pop("object"), chunk.pop("created"), chunk.pop("model")) for chunk in chunks}
    assert len(heads) == 1
    assert heads.pop()[1::2] == ("chat.completion.chunk", "org/tiny")
    nothing_else = {"logprobs": None, "finish_reason": None}
    assert chunks == [
        {
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, **nothing_else}],
            "prompt_token_ids": None,
        },
        {"choices": [{"index": 0, "delta": {"content": "hello"}, **nothing_else}]},
        {"choices": [{"index": 0, "delta": {"content": " w"}, **nothing_else}]},
        {"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "stop_reason": None}]},
    ]


def test_the_last_chunk_may_carry_text(deployment: Deployment) -> None:
    last = deployment.stream_chat(max_tokens=1)[-1]["choices"][0]
    assert (last["delta"], last["finish_reason"]) == ({"content": "hello"}, "length")


@pytest.mark.parametrize("per_step", [1, 2, 5, 50])
@pytest.mark.parametrize("text", ["hello world", "né 👍 hello", "ends with a broken \ud7ff"])
def test_a_stream_says_what_the_whole_answer_says(deployment: Deployment, text: str, per_step: int) -> None:
    deployment.says(text, per_step)
    assert content(deployment.stream_chat()) == deployment.chat()["choices"][0]["message"]["content"] == text


def test_n_choices_each_begin_with_a_role(deployment: Deployment) -> None:
    chunks = deployment.stream_chat(n=2)
    opening = [chunk["choices"][0] for chunk in chunks[:2]]
    assert [(choice["index"], choice["delta"]["role"]) for choice in opening] == [(0, "assistant"), (1, "assistant")]
    assert content(chunks, 0) == content(chunks, 1) == "hello world"
    assert sum(chunk["choices"][0]["finish_reason"] == "stop" for chunk in chunks) == 2


def test_echo_comes_after_the_role(deployment: Deployment) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well, "}]
    chunks = deployment.stream_chat(messages=messages, continue_final_message=True, echo=True, n=2)
    deltas = [(chunk["choices"][0]["index"], chunk["choices"][0]["delta"]) for chunk in chunks[:4]]
    role, echo = {"role": "assistant", "content": ""}, {"content": "well, "}
    assert deltas == [(0, role), (1, role), (0, echo), (1, echo)]
    assert content(chunks, 1) == "well, hello world"


def test_a_stop_string_is_never_shown_in_part(deployment: Deployment) -> None:
    deployment.says("hello world, good day")
    chunks = deployment.stream_chat(stop="orld, gx")
    assert content(chunks) == "hello world, good day"
    chunks = deployment.stream_chat(stop="orld, g", n=2)
    assert content(chunks, 0) == content(chunks, 1) == "hello w"
    last = chunks[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "orld, g")
    assert deployment.engine.generations[-1].aborted == [0, 1]


def test_usage_comes_last_and_alone(deployment: Deployment) -> None:
    chunks = deployment.stream_chat(stream_options={"include_usage": True}, n=2)
    *others, last = chunks
    ChatCompletionChunk.model_validate(last)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "total_tokens": 18, "completion_tokens": 14}
    assert last["system_fingerprint"].startswith("ember-")
    assert not any("usage" in chunk or "system_fingerprint" in chunk for chunk in others)


def test_continuous_usage_is_in_every_chunk(deployment: Deployment) -> None:
    chunks = deployment.stream_chat(stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {4}


def test_usage_can_be_forced_by_the_operator(deploy) -> None:
    chunks = deploy(enable_force_include_usage=True, enable_prompt_tokens_details=True).stream_chat()
    assert all("usage" in chunk for chunk in chunks)
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


def test_token_ids_on_request(deployment: Deployment) -> None:
    deployment.says("é")  # two tokens, the first of which gives no text
    chunks = deployment.stream_chat(return_token_ids=True, return_prompt_text=True)
    assert chunks[0]["prompt_token_ids"] == deployment.engine.prompt
    assert chunks[0]["prompt_text"] == "<|user|>hi<|assistant|>"
    choices = [chunk["choices"][0] for chunk in chunks[1:]]
    assert [choice["delta"] for choice in choices] == [{}, {"content": "é"}, {}]
    assert deployment.tokenizer.decode([token for choice in choices for token in choice["token_ids"]]) == "é"


def test_withheld_text_gives_no_chunk(deployment: Deployment) -> None:
    deployment.says("é")
    assert [chunk["choices"][0]["delta"] for chunk in deployment.stream_chat()[1:]] == [{"content": "é"}, {}]


def test_logprobs_ride_with_their_tokens(deployment: Deployment) -> None:
    chunks = deployment.stream_chat(logprobs=True, top_logprobs=2)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    whole = deployment.chat(logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [entry for logprobs in streamed if logprobs for entry in logprobs["content"]] == whole
    assert len(whole) == 7


def test_an_error_before_the_first_token_is_a_plain_error(deployment: Deployment) -> None:
    deployment.engine.script = lambda prompt, sampling: [ApiError(500, "boom")]
    with pytest.raises(ApiError, match="boom"):
        deployment.stream_chat()
    failed = wire.SequenceOutput(1, 0, [], finish_reason="error", error="the page table is torn")
    deployment.engine.script = lambda prompt, sampling: [[failed]]
    with pytest.raises(ApiError, match="the page table is torn") as caught:
        deployment.stream_chat()
    assert caught.value.status == 500
    assert caught.value.type == "InternalServerError"
    with pytest.raises(ApiError, match="the page table is torn"):
        deployment.chat()


def test_an_error_later_comes_behind_the_events_before_it(deployment: Deployment) -> None:
    good = say(deployment.tokenizer, "hello world")
    deployment.engine.script = lambda prompt, sampling: [*list(good(prompt, sampling))[:2], ApiError(500, "boom")]
    taken = []

    async def take() -> None:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        answer = await deployment.dispatch("POST", "/v1/chat/completions", body)
        assert isinstance(answer, EventStream)
        async for event in answer.events:
            taken.append(event)  # noqa: PERF401 (those before the error are wanted)

    with pytest.raises(ApiError) as caught:
        asyncio.run(take())
    assert content(parsed(taken)) == "hello w"
    error = {"message": "boom", "type": "InternalServerError", "param": None, "code": 500}
    assert json.loads(OPENAI_EVENTS.error(caught.value).data) == {"error": error}
    assert deployment.engine.generations[-1].is_closed


def test_an_abort_from_outside_ends_the_choice(deployment: Deployment) -> None:
    good = say(deployment.tokenizer, "hello world")
    deployment.engine.script = lambda prompt, sampling: list(good(prompt, sampling))[:2]
    assert deployment.stream_chat()[-1]["choices"][0]["finish_reason"] == "abort"
    assert deployment.chat()["choices"][0]["finish_reason"] == "abort"
    deployment.engine.script = lambda prompt, sampling: []
    for whole in (deployment.chat(), deployment.complete(), deployment.stream_chat()[-1]):
        assert whole["choices"][0]["finish_reason"] == "abort"
    assert deployment.chat()["choices"][0]["message"]["content"] == ""
    assert deployment.stream_completion()[-1]["choices"][0]["finish_reason"] == "abort"


def test_text_of_every_kind_is_valid_json(deployment: Deployment) -> None:
    text = 'quote " backslash \\ line\nfeed tab\t \u2028 \x00 </script>'
    deployment.says(text, 3)
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    assert content(parsed(deployment.events("/v1/chat/completions", body))) == text
