"""/tokenize and /detokenize."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ember.front.api.tokenize import MAX_CHARS, MAX_TOKENS
from ember.front.errors import ApiError
from tests.api.fakes import MAX_MODEL_LEN, VOCAB_SIZE, Deployment, refused


def tokenize(deployment: Deployment, **body: Any) -> Any:
    return deployment.request("POST", "/tokenize", body).body


def detokenize(deployment: Deployment, tokens: list[int]) -> str:
    return deployment.request("POST", "/detokenize", {"tokens": tokens}).body["prompt"]


def test_a_text(deployment: Deployment) -> None:
    answer = tokenize(deployment, prompt="hello", return_token_strs=True)
    assert answer["token_strs"] == ["<s>", "hello"]
    assert (answer["count"], answer["max_model_len"], len(answer["tokens"])) == (2, MAX_MODEL_LEN, 2)
    assert detokenize(deployment, answer["tokens"]) == "<s>hello"
    plain = tokenize(deployment, prompt="hello", add_special_tokens=False, model="org/tiny")
    assert (plain["tokens"], plain["token_strs"]) == (answer["tokens"][1:], None)
    assert tokenize(deployment, prompt="", add_special_tokens=False)["tokens"] == []
    assert detokenize(deployment, []) == ""


def test_a_text_of_any_length(deployment: Deployment) -> None:
    answer = tokenize(deployment, prompt="é" * 5000, add_special_tokens=False)
    assert answer["count"] == 10000
    assert detokenize(deployment, answer["tokens"]) == "é" * 5000


def test_a_conversation_is_the_prompt_of_a_chat(deployment: Deployment) -> None:
    messages = [{"role": "user", "content": "hi"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    for fields in ({}, {"add_generation_prompt": False}, {"add_special_tokens": True}, {"documents": [{"a": 1}]}):
        deployment.chat(messages=messages, **fields)
        assert tokenize(deployment, messages=messages, **fields)["tokens"] == deployment.engine.prompt
    deployment.chat(messages=messages, tools=tools, tool_choice="none")
    assert tokenize(deployment, messages=messages, tools=tools)["tokens"] == deployment.engine.prompt
    assert (
        tokenize(deployment, messages=messages, functions=[tools[0]["function"]])["tokens"] == deployment.engine.prompt
    )
    deployment.chat(messages=messages, truncate_prompt_tokens=2, truncation_side="right")
    cut: dict[str, Any] = {"truncate_prompt_tokens": 2, "truncation_side": "right"}
    assert tokenize(deployment, messages=messages, **cut)["tokens"] == deployment.engine.prompt


def test_tools_that_chats_leave_out_are_left_out(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(exclude_tools_when_tool_choice_none=True)
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    deployment.chat(**body, tool_choice="none")
    assert tokenize(deployment, **body, tool_choice="none")["tokens"] == deployment.engine.prompt
    assert tokenize(deployment, **body)["tokens"] != deployment.engine.prompt


def test_a_text_is_truncated_as_a_completion(deployment: Deployment) -> None:
    deployment.complete("hello world", truncate_prompt_tokens=3)
    assert tokenize(deployment, prompt="hello world", truncate_prompt_tokens=3)["tokens"] == deployment.engine.prompt


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "hi"}),
        ("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
def test_ignored_fields_are_named(deployment: Deployment, path: str, body: Any) -> None:
    assert not deployment.request("POST", path, body).headers
    answer = deployment.request("POST", path, {**body, "colour": "red"})
    assert answer.headers == {"X-Ember-Ignored-Fields": "colour"}


def test_the_work_of_a_request_is_bounded(deployment: Deployment) -> None:
    error = refused(deployment, "/tokenize", {"prompt": "a" * (MAX_CHARS + 1)})
    assert (error.param, str(MAX_CHARS) in error.message) == ("prompt", True)
    error = refused(deployment, "/detokenize", {"tokens": [1] * (MAX_TOKENS + 1)})
    assert (error.param, str(MAX_TOKENS) in error.message) == ("tokens", True)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "body.prompt"),
        ("/tokenize", {"prompt": 5}, "body.prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "truncate_prompt_tokens": MAX_MODEL_LEN + 1}, "truncate_prompt_tokens"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tools": []}, "tools"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, "tools"),
        ("/tokenize", {"messages": []}, "body.messages"),
        ("/tokenize", {"messages": [{"role": "user"}], "chat_template": "x"}, "chat_template"),
        ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "body.tokens.0"),
    ],
)
def test_what_is_refused(deployment: Deployment, path: str, body: Any, param: str) -> None:
    error = refused(deployment, path, body)
    assert (error.status, error.param) == (400, param)


def test_another_model(deployment: Deployment) -> None:
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        with pytest.raises(ApiError, match="does not exist"):
            deployment.request("POST", path, {**body, "model": "other"})
