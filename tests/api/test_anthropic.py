"""POST /v1/messages and its count_tokens: what the model is asked, the answer, its events, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ember.front.api.anthropic import answers
from ember.front.api.anthropic.forms import ANTHROPIC_EVENTS, anthropic_error
from ember.front.errors import ApiError
from tests.api.fakes import Deployment
from tests.api.talking import CALL_ADD, CALL_SUB, talking

TOOLS = [
    {"name": "add", "description": "Adds.", "input_schema": {"properties": {"a": {"type": "integer"}}}},
    {"name": "sub", "input_schema": {"type": "object"}},
]
EVENTS: dict[str, Any] = {
    "message_start": answers.MessageStart,
    "ping": answers.Ping,
    "content_block_start": answers.BlockStartEvent,
    "content_block_delta": answers.BlockDeltaEvent,
    "content_block_stop": answers.BlockStopEvent,
    "message_delta": answers.MessageDelta,
    "message_stop": answers.MessageStop,
}
PARTS = {"thinking_delta": "thinking", "text_delta": "text", "input_json_delta": "partial_json"}
USE = {"type": "tool_use", "id": "x", "name": "add"}


@pytest.fixture
def deployment() -> Deployment:
    return talking()


def body(*messages: Any, **fields: Any) -> dict[str, Any]:
    given = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages or ("hi",)]
    return {"max_tokens": 2000, "messages": given, **fields}


def ask(deployment: Deployment, *messages: Any, **fields: Any) -> Any:
    answer = deployment.request("POST", "/v1/messages", body(*messages, **fields)).body
    answers.AnthropicAnswer.model_validate(answer, strict=True)
    return answer


def refusal(deployment: Deployment, *messages: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        deployment.request("POST", "/v1/messages", body(*messages, **fields))
    return caught.value


def streamed(deployment: Deployment, *messages: Any, **fields: Any) -> tuple[Any, list[str | None]]:
    """The message that the events of a stream add up to, and their names."""
    events = deployment.events("/v1/messages", body(*messages, stream=True, **fields))
    documents = [json.loads(event.data) for event in events]
    for event, document in zip(events, documents, strict=True):
        assert event.name == document["type"]
        EVENTS[document["type"]].model_validate(document, strict=True)
    message = documents[0]["message"]
    inputs: dict[int, str] = {}
    for document in documents:
        blocks = message["content"]
        if document["type"] == "content_block_start":
            assert document["index"] == len(blocks)
            blocks.append(document["content_block"])
            inputs[document["index"]] = ""
        elif document["type"] == "content_block_delta":
            assert document["index"] == len(blocks) - 1
            delta = document["delta"]
            if delta["type"] == "input_json_delta":
                inputs[document["index"]] += delta["partial_json"]
            elif delta["type"] == "signature_delta":
                blocks[-1]["signature"] = delta["signature"]
            else:
                blocks[-1][PARTS[delta["type"]]] += delta[PARTS[delta["type"]]]
        elif document["type"] == "content_block_stop" and blocks[-1]["type"] == "tool_use":
            blocks[-1]["input"] = json.loads(inputs[document["index"]])
        elif document["type"] == "message_delta":
            message |= {**document["delta"], "usage": document["usage"]}
    return message, [event.name for event in events]


def without_ids(message: Any) -> Any:
    blocks = [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
    return {**message, "id": None, "content": blocks}


@pytest.mark.parametrize("per_step", [1, 7, 1000])
def test_a_stream_adds_up_to_the_whole_answer(deployment: Deployment, per_step: int) -> None:
    deployment.says(f"<think>\nLet me see.\n</think>\n\nI will.\n{CALL_ADD}\n{CALL_SUB}", per_step)
    whole = ask(deployment, tools=TOOLS)
    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert whole["content"][0]["thinking"].strip() == "Let me see."
    assert whole["content"][1]["text"].strip() == "I will."
    assert [block["input"] for block in whole["content"][2:]] == [{"a": 1, "b": 2}, {"x": "é🦜"}]
    assert whole["stop_reason"] == "tool_use"
    assert whole["id"].startswith("msg_")
    message, names = streamed(deployment, tools=TOOLS)
    assert without_ids(message) == without_ids(whole)
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_an_answer_without_text_before_its_call_has_no_text_block(deployment: Deployment) -> None:
    deployment.says(f"\n\n{CALL_ADD}")
    assert [block["type"] for block in ask(deployment, tools=TOOLS)["content"]] == ["tool_use"]
    deployment.says("")
    assert ask(deployment)["content"] == []


@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [
        ({}, "end_turn", None),
        ({"max_tokens": 4}, "max_tokens", None),
        ({"stop_sequences": ["wor"]}, "stop_sequence", "wor"),
    ],
)
def test_why_an_answer_ended(deployment: Deployment, fields: Any, reason: str, sequence: str | None) -> None:
    deployment.says("hello world")
    answer = ask(deployment, **fields)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, sequence)
    message, _ = streamed(deployment, **fields)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_a_call_of_the_named_tool_is_a_tool_use(deployment: Deployment) -> None:
    deployment.says(CALL_ADD)
    answer = ask(deployment, tools=TOOLS, tool_choice={"type": "tool", "name": "add"})
    assert answer["stop_reason"] == "tool_use"
    assert deployment.engine.sampling.grammar is not None


def test_a_call_that_was_cut_off_is_no_error(deployment: Deployment) -> None:
    deployment.says(CALL_ADD)
    answer = ask(deployment, tools=TOOLS, max_tokens=len('<tool_call>\n{"name": "add", "arguments": {"a": 1') - 9)
    assert answer["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"repetition_detection": {"max_pattern_size": 1, "min_count": 6}}, "max_tokens"),
        ({"stop_sequences": ["xxx"]}, "stop_sequence"),
        ({}, "max_tokens"),
    ],
)
def test_a_call_without_an_end_is_none_to_run(deployment: Deployment, fields: Any, reason: str) -> None:
    deployment.says('<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "xxxxxxxxxx')
    answer = ask(deployment, tools=TOOLS, **fields)
    assert (answer["stop_reason"], [block["type"] for block in answer["content"]]) == (reason, ["tool_use"])
    *_, delta, _ = deployment.events("/v1/messages", body(tools=TOOLS, stream=True, **fields))
    assert json.loads(delta.data)["delta"]["stop_reason"] == reason


def test_a_text_after_a_call_leaves_it_a_tool_use(deployment: Deployment) -> None:
    deployment.says(f"{CALL_ADD}\nSo.")
    assert ask(deployment, tools=TOOLS)["stop_reason"] == "tool_use"


def test_tokens_of_the_prefix_cache_are_counted_apart(deployment: Deployment) -> None:
    usage = ask(deployment)["usage"]
    counted = deployment.request("POST", "/v1/messages/count_tokens", {"messages": body()["messages"]}).body
    assert usage["cache_read_input_tokens"] == 3
    assert usage["input_tokens"] + 3 == counted["input_tokens"] == len(deployment.engine.prompt)


def test_a_conversation_becomes_a_chat(deployment: Deployment) -> None:
    ask(
        deployment,
        {"role": "user", "content": [{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "two"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "three"},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
            ],
        },
        {"role": "system", "content": "a note"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "four"},
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "3"}]},
                {"type": "document", "title": "T", "source": {"type": "text", "data": "words"}},
                {"type": "search_result", "title": "S", "source": "url", "content": [{"type": "text", "text": "f"}]},
            ],
        },
        {"role": "ctx", "content": "the end"},
        system=[{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "be"}],
        tools=TOOLS,
    )
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    later = "a note\nfour\nT\nwords\nS\nurl\nf\nthe end"
    assert deployment.prompt_text == (
        f"<|system|>be<|user|>one\ntwo<|assistant|><think>hm</think>three{call}<|tool|>3<|user|>{later}"
        "<tools>add sub </tools><|assistant|>"
    )


def test_later_instructions_leave_the_start_of_the_prompt_alone(deployment: Deployment) -> None:
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "3"}]}
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "add", "input": {}}]}
    ask(deployment, {"role": "system", "content": "be"}, "hi", use, result, {"role": "system", "content": "note"})
    assert deployment.prompt_text.startswith("<|system|>be<|user|>hi<|assistant|>")
    assert deployment.prompt_text.endswith("<|tool|>3\nnote<|assistant|>")


def test_an_answer_that_was_begun_is_continued(deployment: Deployment) -> None:
    ask(deployment, "hi", {"role": "assistant", "content": "The answer is"})
    assert deployment.prompt_text.endswith("<|assistant|>The answer is")


@pytest.mark.parametrize(
    ("thinking", "prompt", "budget"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, "<think>\n", 1023),  # the prompt has one of them
        ({"type": "adaptive"}, "<think>\n", None),
        ({"type": "disabled"}, "<think></think>", None),
    ],
)
def test_thinking(deployment: Deployment, thinking: Any, prompt: str, budget: int | None) -> None:
    ask(deployment, thinking=thinking)
    assert deployment.prompt_text.endswith(f"<|assistant|>{prompt}")
    asked = deployment.engine.sampling.thinking
    assert (asked.budget if asked else None) == budget


def test_an_answer_in_a_form(deployment: Deployment) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "schema": schema}
    given: list[Any] = [{"output_config": {"format": form}}, {"output_format": form}]
    for fields in given:
        ask(deployment, **fields)
        assert deployment.engine.sampling.grammar is not None


def test_options_reach_the_engine(deployment: Deployment) -> None:
    ask(deployment, temperature=0.5, top_p=0.25, top_k=7, min_p=0.1, seed=3, max_tokens=9)
    sampling = deployment.engine.sampling
    given = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed, sampling.max_tokens)
    assert given == (0.5, 0.25, 7, 0.1, 3, 9)


@pytest.mark.parametrize(
    ("message", "fields", "text"),
    [
        ("hi", {"max_tokens": None}, "max_tokens"),
        ("hi", {"max_tokens": 0}, "max_tokens"),
        ({"role": "pope", "content": "x"}, {}, "`messages.0.role` must be one of"),
        ({"role": "system", "content": "x"}, {}, "of the role 'user' or 'assistant'"),
        ({"role": "user", "content": [{"type": "image", "source": {}}]}, {}, "messages.0.content.0"),
        ({"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}, {}, "'base64'"),
        ({"role": "user", "content": [{"type": "tool_result", "content": "x"}]}, {}, "tool_use_id"),
        ({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9"}]}, {}, "unexpected `tool_use_id`"),
        ("hi", {"tool_choice": {"type": "tool", "name": "mul"}, "tools": TOOLS}, "allowed are"),
        ({"role": "user", "content": [{"type": "novel"}]}, {}, "'novel'"),
        ({"role": "user", "content": [{"text": "x"}]}, {}, "content.0.type"),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}, {}, "content.0.name"),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": ""}]}, {}, "content.0.id"),
        (
            {"role": "assistant", "content": [{**USE, "name": ""}]},
            {},
            "`messages.0.content.0.name` must be a non-empty",
        ),
        ({"role": "assistant", "content": [{**USE, "input": None}]}, {}, "content.0.input"),
        ({"role": "assistant", "content": [USE]}, {}, "content.0.input` must be an object, it is missing"),
        ({"role": "assistant", "content": [{"type": "redacted_thinking"}]}, {}, "content.0.data"),
        ("hi", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ("hi", {"tools": [{"name": "x"}]}, "tools.0.input_schema"),
        ("hi", {"tool_choice": {"type": "any"}}, "tools"),
        ("hi", {"tool_choice": {"type": "maybe"}}, "'maybe'"),
        ("hi", {"tool_choice": {"type": "tool"}, "tools": TOOLS}, "tool_choice.name"),
        ("hi", {"thinking": {"type": "enabled", "budget_tokens": 10}}, "at least 1024"),
        ("hi", {"thinking": {"type": "enabled", "budget_tokens": 5000}}, "must be greater"),
        ("hi", {"thinking": {"type": "on"}}, "'on'"),
        ("hi", {"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ("hi", {"output_config": {"effort": "huge"}}, "'body.output_config.effort'"),
        ("hi", {"stop_sequences": [""]}, "stop_sequences cannot"),
        ("hi", {"tools": [{"input_schema": {}}]}, "`tools.0.name`"),
        ("hi", {"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ("hi", {"temperature": 3}, "temperature"),
    ],
)
def test_bad_input_is_named(deployment: Deployment, message: Any, fields: Any, text: str) -> None:
    error = refusal(deployment, message, **fields)
    assert error.status == 400
    assert text in error.message
    assert anthropic_error(error)["error"]["type"] == "invalid_request_error"


def test_a_conversation_that_the_server_is_to_hold_is_refused_so_that_clients_send_it(deployment: Deployment) -> None:
    error = refusal(deployment, "hi", thread={"type": "create"})
    answers.AnthropicError.model_validate(found := anthropic_error(error), strict=True)
    assert found["error"]["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert error.status == 400
    ask(deployment, "hi", thread=None)


def test_what_has_no_effect_is_told(deployment: Deployment) -> None:
    fields = {
        "container": "x",
        "metadata": {"user_id": "u"},
        "tools": [{**TOOLS[0], "defer_loading": True}],
        "mcp_servers": [],
    }
    answer = deployment.request("POST", "/v1/messages", body(**fields, thinking={"type": "adaptive", "display": "x"}))
    assert answer.headers["X-Ember-Ignored-Fields"] == "container, thinking.display, tools.defer_loading"


def test_a_prompt_that_is_too_long_is_told_in_the_words_that_clients_look_for(deployment: Deployment) -> None:
    error = refusal(deployment, "x" * 5000)
    assert error.message.startswith("prompt is too long: ")
    assert error.message.endswith(" tokens > 4096 maximum")


def test_a_limit_beyond_the_context_is_what_the_context_leaves(deployment: Deployment) -> None:
    ask(deployment, max_tokens=32_000)
    assert deployment.engine.sampling.max_tokens == 4096 - len(deployment.engine.prompt)


def test_names_that_stand_for_the_model() -> None:
    deployment = talking(model_aliases="claude-*, haiku")
    for name in ("claude-opus-4-5", "haiku", "org/tiny"):
        assert ask(deployment, model=name)["model"] == "org/tiny"
    error = refusal(deployment, model="opus")
    assert error.status == 404
    assert anthropic_error(error) == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "The model `opus` does not exist."},
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_the_kinds_of_errors(status: int, kind: str) -> None:
    error = ApiError(status, "no")
    found = anthropic_error(error)
    answers.AnthropicError.model_validate(found, strict=True)
    assert found["error"]["type"] == kind
    assert ANTHROPIC_EVENTS.encode(ANTHROPIC_EVENTS.error(error)).startswith("event: error\ndata: {")
    assert ANTHROPIC_EVENTS.end() == ""
