"""`tool_choice` as an object: a choice of several tools, and types that there are not."""

from __future__ import annotations

from typing import Any

import pytest

from ember.front.errors import ApiError
from tests.api.fakes import refused
from tests.api.talking import ADD, CALL_ADD, SUB, talking

NAMED_ADD = {"type": "function", "function": {"name": "add"}}
CHAT = "/v1/chat/completions"


def allowed(mode: str, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    "choice",
    [
        allowed("required", NAMED_ADD),
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]},
    ],
)
def test_only_the_allowed_tools_are_shown_and_may_be_called(choice: dict[str, Any]) -> None:
    deployment = talking()
    deployment.says(CALL_ADD)
    (answer,) = deployment.chat(tools=[ADD, SUB], tool_choice=choice)["choices"]
    assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["add"]
    assert answer["finish_reason"] == "tool_calls"
    assert "<tools>add </tools>" in deployment.prompt_text
    demanded = deployment.engine.sampling.grammar
    deployment.chat(tools=[ADD], tool_choice="required")
    assert demanded is not None and demanded == deployment.engine.sampling.grammar


def test_an_allowed_tool_need_not_be_called() -> None:
    deployment = talking()
    deployment.says("Four.")
    (answer,) = deployment.chat(tools=[SUB, ADD], tool_choice=allowed("auto", NAMED_ADD))["choices"]
    assert (answer["message"]["content"], deployment.engine.sampling.grammar) == ("Four.", None)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"type": "banana", "function": {"name": "add"}}, "'banana'"),
        ({"type": "custom", "custom": {"name": "add"}}, "must be 'function' or 'allowed_tools'"),
        ({"type": ["function"], "function": {"name": "add"}}, "must be 'function' or 'allowed_tools'"),
        (allowed("auto"), "names no allowed tools"),
        (allowed("none", NAMED_ADD), "names no allowed tools"),
        ({"type": "allowed_tools", "allowed_tools": 5}, "names no allowed tools"),
        (allowed("auto", NAMED_ADD, {"type": "function", "function": {"name": "mul"}}), "does not match any"),
        (allowed("auto", 5), "does not match any"),
    ],
)
def test_what_is_refused(choice: dict[str, Any], words: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [ADD, SUB], "tool_choice": choice}
    error = refused(talking(), CHAT, body)
    assert (error.status, error.param) == (400, "tool_choice")
    assert words in error.message


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ({}, "messages.1.tool_calls.0.function"),
        ({"function": "add"}, "messages.1.tool_calls.0.function"),
        ({"function": {"arguments": "{}"}}, "messages.1.tool_calls.0.function.name"),
        ({"function": {"name": ""}}, "messages.1.tool_calls.0.function.name"),
    ],
)
def test_a_call_of_the_history_has_a_function_and_its_name(call: dict[str, Any], param: str) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]
    error = refused(talking(), CHAT, {"messages": messages})
    assert (error.status, error.param) == (400, param)
    assert param in error.message
    with pytest.raises(ApiError) as caught:
        talking().request("POST", f"{CHAT}/batch", {"messages": [[messages[0]], messages]})
    assert caught.value.param == param.replace("messages.", "messages.1.")


def test_a_budget_that_is_a_string_is_quoted() -> None:
    messages = [{"role": "user", "content": "hi"}]
    error = refused(talking(), CHAT, {"messages": messages, "thinking_token_budget": "5"})
    assert error.message.endswith("got '5'.")
