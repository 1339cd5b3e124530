"""Tool calls over the API: what is asked of the engine, and what the client gets, whole and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llguidance
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.front.errors import ApiError
from ember.front.text.reasoning import choose_reasoning_format
from ember.front.text.reasoning.harmony import MARKS
from ember.front.text.tools import choose_tool_format
from ember.wire import Grammar
from tests.api.fakes import Deployment
from tests.api.talking import ADD, CALL_ADD, CALL_SUB, SUB, message_of, talking
from tests.support.byte_tokenizer import byte_tokenizer

DEPLOYMENT = talking()


@pytest.fixture
def deployment() -> Deployment:
    return talking()


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message.get("tool_calls", ())
    ]


def grammar_of(deployment: Deployment) -> Grammar | None:
    return deployment.engine.sampling.grammar


BOTH_CALLS = [("add", {"a": 1, "b": 2}), ("sub", {"x": "é🦜"})]


def test_calls_in_a_whole_answer(deployment: Deployment) -> None:
    deployment.says(f"I will add.\n{CALL_ADD}\n{CALL_SUB}")
    (choice,) = deployment.chat(tools=[ADD, SUB])["choices"]
    message = choice["message"]
    assert message["content"].strip() == "I will add."
    assert calls_of(message) == BOTH_CALLS
    assert choice["finish_reason"] == "tool_calls"
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(ids)
    assert all(call["type"] == "function" for call in message["tool_calls"])
    assert "<tools>add sub </tools>" in deployment.prompt_text


def test_a_name_with_a_lone_surrogate_is_no_error(deployment: Deployment) -> None:
    deployment.says('<tool_call>\n{"name": "f\\ud800", "arguments": "{\\"a\\": \\"\\udc00\\"}"}\n</tool_call>')
    message = deployment.chat(tools=[ADD])["choices"][0]["message"]
    assert calls_of(message) == [("f\ufffd", {"a": "\ufffd"})]
    chunks = deployment.stream_chat(tools=[ADD])
    assert calls_of(message_of(chunks, 0)) == calls_of(message)


def test_content_is_null_where_there_are_only_calls(deployment: Deployment) -> None:
    deployment.says(f"\n\n{CALL_ADD}")
    message = deployment.chat(tools=[ADD])["choices"][0]["message"]
    assert message["content"] is None
    assert calls_of(message) == BOTH_CALLS[:1]


@pytest.mark.parametrize("per_step", [1, 3, 7, 1000])
@pytest.mark.parametrize("options", [{}, {"logprobs": True}, {"stream_interval": 5}, {"stop": ["zebra"]}, {"n": 2}])
def test_a_stream_adds_up_to_the_whole_answer(deployment: Deployment, per_step: int, options: dict[str, Any]) -> None:
    deployment.says(f"<think>\nhm\n</think>\n\nI will add.\n{CALL_ADD}\n{CALL_SUB}", per_step)
    whole = deployment.chat(tools=[ADD, SUB], **options)
    chunks = deployment.stream_chat(tools=[ADD, SUB], **options)
    for choice in whole["choices"]:
        message = message_of(chunks, choice["index"])
        assert message["content"] == choice["message"]["content"]
        assert message["reasoning"] == choice["message"]["reasoning"] == "hm"
        assert calls_of(message) == calls_of(choice["message"]) == BOTH_CALLS
        assert message["finish_reason"] == choice["finish_reason"] == "tool_calls"
    if "logprobs" in options:
        entries = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", ())]
        assert entries == whole["choices"][0]["logprobs"]["content"]
        assert len(entries) == whole["usage"]["completion_tokens"]


def test_the_first_delta_of_a_call_has_its_name(deployment: Deployment) -> None:
    deployment.says(CALL_ADD)
    deltas = [
        call
        for chunk in deployment.stream_chat(tools=[ADD])
        for call in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert deltas[0]["function"]["name"] == "add"
    assert len(deltas) > 5
    assert all(set(delta) == {"index", "function"} and "name" not in delta["function"] for delta in deltas[1:])


def test_a_call_that_is_cut_off_keeps_the_reason(deployment: Deployment) -> None:
    deployment.says(CALL_ADD)
    choice = deployment.chat(tools=[ADD], max_tokens=40)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "add"


def test_without_tools_or_with_none_a_call_is_text(deployment: Deployment) -> None:
    deployment.says(CALL_ADD)
    cases: list[dict[str, Any]] = [{}, {"tools": [ADD], "tool_choice": "none"}]
    for fields in cases:
        choice = deployment.chat(**fields)["choices"][0]
        assert choice["message"]["content"] == CALL_ADD
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"
        assert deployment.engine.sampling.grammar is None
    assert "<tools>" in deployment.prompt_text


def test_the_operator_may_keep_tools_out_of_the_prompt() -> None:
    deployment = talking(exclude_tools_when_tool_choice_none=True)
    deployment.chat(tools=[ADD], tool_choice="none")
    assert "<tools>" not in deployment.prompt_text


def test_the_operator_may_turn_auto_off() -> None:
    deployment = talking(enable_auto_tool_choice=False)
    with pytest.raises(ApiError) as caught:
        deployment.chat(tools=[ADD])
    assert caught.value.message.startswith(
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    )
    deployment.says(CALL_ADD)
    assert calls_of(deployment.chat(tools=[ADD], tool_choice="required")["choices"][0]["message"]) == BOTH_CALLS[:1]


def test_auto_asks_the_engine_for_nothing_but_with_strict(deployment: Deployment) -> None:
    deployment.chat(tools=[ADD])
    assert grammar_of(deployment) is None
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    deployment.chat(tools=[strict])
    grammar = grammar_of(deployment)
    assert grammar is not None
    assert (grammar.kind, grammar.param) == ("lark", "tools")
    check(grammar.text)


def check(grammar: str) -> None:
    is_error, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    assert not is_error, messages


@pytest.mark.parametrize("parallel", [None, True, False])
def test_required_is_a_grammar(deployment: Deployment, parallel: bool | None) -> None:
    deployment.says(CALL_ADD)
    choice = deployment.chat(tools=[ADD, SUB], tool_choice="required", parallel_tool_calls=parallel)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    sampling = deployment.engine.sampling
    assert sampling.grammar is not None
    assert "add" in sampling.grammar.text
    assert "sub" in sampling.grammar.text
    check(sampling.grammar.text)
    assert sampling.thinking is not None  # the call comes after the reasoning
    assert not sampling.thinking.is_open


def test_named_is_a_grammar_of_that_tool_alone(deployment: Deployment) -> None:
    deployment.says(CALL_ADD)
    named = {"type": "function", "function": {"name": "add"}}
    choice = deployment.chat(tools=[ADD, SUB], tool_choice=named)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert calls_of(choice["message"]) == BOTH_CALLS[:1]
    grammar = deployment.engine.sampling.grammar
    assert grammar is not None
    assert "add" in grammar.text
    assert "sub" not in grammar.text
    check(grammar.text)


def test_one_call_at_most(deployment: Deployment) -> None:
    deployment.says(f"{CALL_ADD}\n{CALL_SUB}\n{CALL_SUB}")
    whole = deployment.chat(tools=[ADD, SUB], parallel_tool_calls=False)
    choice = whole["choices"][0]
    assert calls_of(choice["message"]) == BOTH_CALLS[:1]
    assert choice["finish_reason"] == "tool_calls"
    assert deployment.engine.generations[-1].aborted, "what follows must not be generated"
    assert whole["usage"]["completion_tokens"] < len(f"{CALL_ADD}\n{CALL_SUB}".encode())
    chunks = deployment.stream_chat(tools=[ADD, SUB], parallel_tool_calls=False)
    assert calls_of(message_of(chunks)) == BOTH_CALLS[:1]


def test_calls_or_an_answer_in_the_demanded_form(deployment: Deployment) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    deployment.says('{"sum": 3}')
    message = deployment.chat(tools=[ADD], response_format=form)["choices"][0]["message"]
    assert message["content"] == '{"sum": 3}'
    grammar = deployment.engine.sampling.grammar
    assert grammar is not None
    assert grammar.kind == "lark"
    assert "sum" in grammar.text
    assert "add" in grammar.text
    check(grammar.text)
    deployment.says(CALL_ADD)
    assert calls_of(deployment.chat(tools=[ADD], response_format=form)["choices"][0]["message"]) == BOTH_CALLS[:1]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_call_and_another_constraint(deployment: Deployment, choice: Any) -> None:
    with pytest.raises(ApiError) as caught:
        deployment.chat(tools=[ADD], tool_choice=choice, structured_outputs={"regex": "a"})
    assert caught.value.message == "You can only either use constraints for structured outputs or tools, not both."


def test_functions_of_2023(deployment: Deployment) -> None:
    deployment.says(f"{CALL_ADD}\n{CALL_SUB}")
    functions = [ADD["function"], SUB["function"]]
    choice = deployment.chat(functions=functions)["choices"][0]
    call = choice["message"]["function_call"]
    assert (call["name"], json.loads(call["arguments"])) == BOTH_CALLS[0]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    name, arguments, reason = "", "", None
    for chunk in deployment.stream_chat(functions=functions, function_call={"name": "add"}):
        part = chunk["choices"][0]
        name += part["delta"].get("function_call", {}).get("name", "")
        arguments += part["delta"].get("function_call", {}).get("arguments", "")
        reason = part["finish_reason"]
    assert (name, json.loads(arguments), reason) == ("add", BOTH_CALLS[0][1], "stop")
    assert deployment.engine.sampling.grammar is not None


def test_history_with_functions_of_2023(deployment: Deployment) -> None:
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "add", "content": "3"},
    ]
    deployment.request("POST", "/v1/chat/completions", {"messages": messages})
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert deployment.prompt_text == f"<|user|>?<|assistant|>{call}<|tool|>3<|assistant|>"


def test_broken_arguments_in_history_are_an_empty_object(deployment: Deployment) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": '}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    deployment.request("POST", "/v1/chat/completions", {"messages": messages})
    assert '"arguments": {}' in deployment.prompt_text


def test_a_stop_string_may_be_a_mark(deployment: Deployment) -> None:
    deployment.says(f"Adding. {CALL_ADD}\nand more")
    choice = deployment.chat(tools=[ADD], stop="</tool_call>")["choices"][0]
    assert calls_of(choice["message"]) == BOTH_CALLS[:1]
    assert choice["stop_reason"] == "</tool_call>"
    assert choice["finish_reason"] == "tool_calls"
    deployment.says("one <tool_call two")
    choice = deployment.chat(tools=[ADD], stop="two")["choices"][0]
    assert choice["message"]["content"].strip() == "one <tool_call"


PIECES = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    CALL_ADD,
    CALL_SUB,
    "\n",
    "text ",
    "é",
    "{",
    '"',
    "stop",
]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(PIECES), max_size=10).map("".join),
    st.integers(1, 9),
    st.fixed_dictionaries(
        {},
        optional={
            "stop": st.sampled_from(["stop", "</tool_call>", "é", "<think>"]),
            "parallel_tool_calls": st.booleans(),
            "include_reasoning": st.booleans(),
            "skip_special_tokens": st.booleans(),
            "tool_choice": st.sampled_from(["none", "auto", "required"]),
            "enable_thinking": st.booleans(),
            "max_tokens": st.integers(1, 60),
        },
    ),
)
def test_whatever_the_model_says_a_stream_adds_up(said: str, per_step: int, options: dict[str, Any]) -> None:
    deployment = DEPLOYMENT
    deployment.says(said, per_step)
    whole = deployment.chat(tools=[ADD, SUB], return_token_ids=True, **options)
    chunks = deployment.stream_chat(tools=[ADD, SUB], **options)
    streamed, choice = message_of(chunks), whole["choices"][0]
    message = choice["message"]
    assert streamed["finish_reason"] == choice["finish_reason"]
    assert streamed["reasoning"] == message["reasoning"]
    functions = [call["function"] for call in message.get("tool_calls", ())]
    assert [call["function"] for call in streamed["tool_calls"]] == functions
    assert (streamed["content"] or "").strip() == (message["content"] or "").strip()
    for function in functions:
        assert isinstance(function["name"], str)
    reasoning_tokens = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 <= reasoning_tokens <= whole["usage"]["completion_tokens"]
    if options.get("parallel_tool_calls") is False:
        assert len(functions) <= 1
    if options.get("include_reasoning") is False:
        assert message["reasoning"] is None
    else:
        assert len(choice["token_ids"]) == whole["usage"]["completion_tokens"]


# ----------------------------------------------------------------------------------------------------------- Harmony

ANALYSIS = "<|channel|>analysis<|message|>hm<|end|>"
HARMONY_CALL = '<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1, "b": 2}'
HARMONY_ANSWER = "<|start|>assistant<|channel|>final<|message|>Three."


@pytest.fixture
def gpt_oss() -> Deployment:
    tokenizer = byte_tokenizer(("<|user|>", "<|assistant|>", *MARKS))
    deployment = Deployment(tokenizer)
    deployment.use_template("<|start|>user<|message|>hi<|end|><|start|>assistant{{ tools }}")
    deployment.services.reasoning_format = choose_reasoning_format("", "gpt_oss", "org/tiny", None)[0]
    deployment.services.tool_format = choose_tool_format("", "gpt_oss", "org/tiny", None)[0]
    deployment.engine._info = msgspec.structs.replace(deployment.engine.info, max_model_len=4096)
    return deployment


def test_harmony(gpt_oss: Deployment) -> None:
    gpt_oss.says(ANALYSIS + HARMONY_CALL)
    choice = gpt_oss.chat(tools=[ADD])["choices"][0]
    assert choice["message"]["reasoning"] == "hm"
    assert choice["message"]["content"] is None
    assert calls_of(choice["message"]) == BOTH_CALLS[:1]
    assert calls_of(message_of(gpt_oss.stream_chat(tools=[ADD]))) == BOTH_CALLS[:1]
    gpt_oss.says(ANALYSIS + HARMONY_ANSWER)
    for fields in ({"tools": [ADD]}, {}):
        message = gpt_oss.chat(**fields)["choices"][0]["message"]  # type: ignore[arg-type]
        assert (message["reasoning"], message["content"]) == ("hm", "Three.")


@pytest.mark.parametrize("fields", [{"tool_choice": "required"}, {"response_format": {"type": "json_object"}}, {}])
def test_harmony_is_enforced_from_one_message_to_the_next(
    gpt_oss: Deployment, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Behind the end of the analysis a call follows, or the final message, and the grammar lets the marks through."""
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    gpt_oss.chat(tools=[strict], **fields)
    sampling = gpt_oss.engine.sampling
    assert sampling.grammar is not None
    assert sampling.thinking is not None
    grammar = llguidance.LLMatcher.grammar_from_lark(sampling.grammar.text)
    encode = gpt_oss.tokenizer.encode
    assert sampling.thinking.end_token_ids == [encode("<|end|>", False)]
    gpt_oss.tokenizer._backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = llguidance.LLTokenizer((tmp_path / "tokenizer.json").read_text())

    def fits(text: str) -> bool:
        matcher = llguidance.LLMatcher(tokenizer, grammar)
        token_ids = encode(text, False)
        return matcher.validate_tokens(token_ids) == len(token_ids)

    assert fits(HARMONY_CALL + "<|call|>")
    assert not fits(HARMONY_CALL.replace('"a"', '"c"'))
    assert fits(HARMONY_ANSWER) == (fields == {})
    assert fits(HARMONY_ANSWER.replace("Three.", "{}")) == (fields != {"tool_choice": "required"})
    assert not fits("Three.")


# ---------------------------------------------------------------------------------------- broken calls, and cut ones

BROKEN = '<tool_call>\n{"name": "add", "arguments": {"a": one}}\n</tool_call>'


def test_broken_arguments_are_text_in_a_whole_answer_and_stay_broken_in_a_stream(deployment: Deployment) -> None:
    deployment.says(f"Adding. {BROKEN}")
    choice = deployment.chat(tools=[ADD])["choices"][0]
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"] == f"Adding. {BROKEN}"
    assert choice["finish_reason"] == "stop"
    streamed = message_of(deployment.stream_chat(tools=[ADD]))
    assert [call["function"] for call in streamed["tool_calls"]] == [{"name": "add", "arguments": '{"a": one}'}]
    assert streamed["finish_reason"] == "tool_calls"
    deployment.says(BROKEN, 1000)  # nothing was sent before it was known
    streamed = message_of(deployment.stream_chat(tools=[ADD]))
    assert (streamed["content"], streamed["tool_calls"]) == (BROKEN, [])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_call_that_is_cut(deployment: Deployment, choice: Any) -> None:
    deployment.says(CALL_ADD)
    begun = CALL_ADD.partition(', "arguments": ')[0]
    for max_tokens in range(1, len(CALL_ADD)):
        answer = deployment.chat(tools=[ADD], tool_choice=choice, max_tokens=max_tokens)["choices"][0]
        streamed = message_of(deployment.stream_chat(tools=[ADD], tool_choice=choice, max_tokens=max_tokens))
        assert answer["finish_reason"] == streamed["finish_reason"]
        assert answer["message"]["content"] is None and not streamed["content"]
        calls = [call["function"] for call in answer["message"].get("tool_calls", ())]
        assert calls == [call["function"] for call in streamed["tool_calls"]]
        if not calls:
            assert max_tokens < len(begun) + 20 and answer["finish_reason"] == "length"
        else:
            assert calls[0]["name"] == "add" and '{"a": 1, "b": 2}'.startswith(calls[0]["arguments"])


@pytest.mark.parametrize("per_step", [1, 5, 1000])
def test_a_call_in_reasoning_is_no_reasoning_token(deployment: Deployment, per_step: int) -> None:
    deployment.says(f"<think>\nhm\n{CALL_ADD}", per_step)
    whole = deployment.chat(tools=[ADD], enable_thinking=False)
    message = whole["choices"][0]["message"]
    assert (message["reasoning"], message["content"], calls_of(message)) == ("hm", None, BOTH_CALLS[:1])
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("\nhm\n")}
    (mark,) = deployment.tokenizer.encode("<tool_call>", False)
    deployment.chat(tools=[ADD], tool_choice="required")
    thinking = deployment.engine.sampling.thinking
    assert thinking is not None and thinking.break_token_ids == [[mark]]
