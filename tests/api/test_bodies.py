"""Whatever the body: an answer or an ApiError below 500 that can be sent, never anything else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ember.front.api.openai_forms import openai_error
from ember.front.api.router import EventStream, Response
from ember.front.api.schemas import ChatRequest, CompletionRequest
from ember.front.errors import ApiError
from tests.api.fakes import Deployment, parsed

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 400),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.text(st.characters(categories=["Cs", "Lu", "Cc"]), max_size=4),
    st.sampled_from(["none", "auto", "text", "user", "assistant", "type", "left", "1"]),
)
keys = st.one_of(
    st.sampled_from(["type", "text", "role", "content", "function", "name", "arguments", "json_schema", "1", "url"]),
    st.text(max_size=5),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "forbidden", "x"])},
        optional={"content": values, "tool_calls": values, "reasoning": scalars, "name": values},
    ),
    max_size=3,
)


def bodies(model: Any, extra: list[str], **usual: Any) -> Any:
    """Bodies whose required field is mostly right, with up to five other fields of any kind."""
    names = [name for name in model.model_fields if name not in usual] + extra
    fields = st.dictionaries(st.sampled_from(names), values, max_size=5)
    required = st.fixed_dictionaries({}, optional=usual)
    return st.one_of(values, st.builds(lambda base, more: {**base, **more}, required, fields))


LATER = ["chat_template", "functions", "modalities", "audio", "thinking_token_budget", "\ud800", "a,b"]
chats = bodies(ChatRequest, LATER, messages=messages)
completions = bodies(CompletionRequest, LATER, prompt=st.one_of(st.text(max_size=20), st.lists(st.integers(-1, 300))))
SOME = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


words = st.text(alphabet="helo wrd", min_size=1, max_size=6)
flags = st.booleans()
token_ids = st.lists(st.integers(0, 299), min_size=1, max_size=4)
SENSIBLE: dict[str, Any] = {
    "n": st.integers(1, 3),
    "temperature": st.floats(0.1, 2),
    "top_p": st.floats(0.1, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.5, 2),
    "seed": st.integers(-1, 2**40),
    "logit_bias": st.dictionaries(st.integers(0, 299).map(str), st.floats(-200, 200), max_size=2),
    "allowed_token_ids": token_ids,
    "bad_words": st.lists(words.filter(str.strip), max_size=2),
    "max_tokens": st.integers(1, 20),
    "min_tokens": st.integers(0, 1),
    "stop": words | st.lists(words, max_size=3),
    "stop_token_ids": token_ids,
    "ignore_eos": flags,
    "include_stop_str_in_output": flags,
    "stream": flags,
    "echo": flags,
    "skip_special_tokens": flags,
    "return_tokens_as_token_ids": flags,
    "return_token_ids": flags,
    "add_special_tokens": flags,
    "truncate_prompt_tokens": st.integers(1, 5),
    "truncation_side": st.sampled_from(["left", "right"]),
    "priority": st.integers(-5, 5),
}
SENSIBLE_CHAT: dict[str, Any] = {
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": words}),
        min_size=1,
        max_size=3,
    ),
    "logprobs": flags,
    "max_completion_tokens": st.integers(1, 20),
    "add_generation_prompt": st.just(False),
    "reasoning_effort": st.just("none"),
    "return_prompt_text": flags,
}
SENSIBLE_COMPLETION: dict[str, Any] = {
    "prompt": words | st.lists(words, min_size=1, max_size=3) | token_ids | st.lists(token_ids, min_size=1, max_size=2),
    "logprobs": st.integers(0, 4),
}


def sensible(required: str, of_route: dict[str, Any]) -> Any:
    fields = {**SENSIBLE, **of_route}
    return st.fixed_dictionaries({required: fields.pop(required)}, optional=fields)


def check(deployment: Deployment, path: str, body: Any) -> bool:
    """Whether there was an answer."""

    async def ask() -> None:
        answer = await deployment.dispatch("POST", path, body)
        if isinstance(answer, EventStream):
            events = [event async for event in answer.events]
            assert events and not any(event.data.startswith('{"error"') for event in events)
            return
        assert isinstance(answer, Response)
        orjson.dumps(answer.body)
        json.dumps(answer.body, allow_nan=False)

    try:
        asyncio.run(ask())
    except ApiError as error:
        assert 400 <= error.status < 500, error.message
        assert error.message
        orjson.dumps(openai_error(error))
        return False
    return True


@SOME
@given(body=chats)
def test_chat(deployment: Deployment, body: Any) -> None:
    check(deployment, "/v1/chat/completions", body)


@SOME
@given(body=completions)
def test_completions(deployment: Deployment, body: Any) -> None:
    check(deployment, "/v1/completions", body)


@SOME
@given(body=sensible("messages", SENSIBLE_CHAT))
def test_a_sensible_chat_is_answered(deployment: Deployment, body: Any) -> None:
    assert check(deployment, "/v1/chat/completions", body)


@SOME
@given(body=sensible("prompt", SENSIBLE_COMPLETION))
def test_a_sensible_completion_is_answered(deployment: Deployment, body: Any) -> None:
    assert check(deployment, "/v1/completions", body)


def joined(chunks: list[Any]) -> dict[str, Any]:
    """A stream put together again: choices by index, and the usage."""
    choices: dict[int, Any] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            blank: dict[str, Any] = {
                "text": "",
                "token_ids": [],
                "logprobs": None,
                "finish_reason": None,
                "stop_reason": None,
            }
            choice = choices.setdefault(part["index"], blank)
            choice["text"] += part["delta"].get("content", "") if "delta" in part else part["text"]
            choice["token_ids"] += part.get("token_ids") or []
            for column, entries in (part["logprobs"] or {}).items():
                choice["logprobs"] = choice["logprobs"] or {}
                choice["logprobs"].setdefault(column, []).extend(entries)
            if part["finish_reason"] is not None:
                assert choice["finish_reason"] is None
                choice["finish_reason"], choice["stop_reason"] = part["finish_reason"], part["stop_reason"]
            else:
                assert choice["finish_reason"] is None, "nothing comes after the last chunk of a choice"
    usage = chunks[-1]["usage"]
    return {"choices": [choices[index] for index in sorted(choices)], "tokens": usage["total_tokens"]}


def whole(body: Any) -> dict[str, Any]:
    choices = [
        {
            "text": choice["message"]["content"] if "message" in choice else choice["text"],
            "token_ids": choice["token_ids"] or [],
            "logprobs": choice["logprobs"] if choice["logprobs"] != {"content": []} else None,
            "finish_reason": choice["finish_reason"],
            "stop_reason": choice["stop_reason"],
        }
        for choice in body["choices"]
    ]
    return {"choices": choices, "tokens": body["usage"]["total_tokens"]}


@SOME
@given(chat=sensible("messages", SENSIBLE_CHAT), completion=sensible("prompt", SENSIBLE_COMPLETION))
def test_a_stream_and_a_whole_answer_say_the_same(deployment: Deployment, chat: Any, completion: Any) -> None:
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", completion)):
        answer = deployment.request("POST", path, {**body, "stream": False})
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        assert joined(parsed(deployment.events(path, streamed))) == whole(answer.body)
