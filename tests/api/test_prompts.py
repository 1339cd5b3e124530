"""From messages and prompts to the text and the tokens that the engine gets."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from ember.front.api.messages import content_text, prepare_messages
from ember.front.errors import ApiError
from ember.front.text.reasoning.format import FORMATS, ReasoningFormat
from ember.front.text.tokenizer import Tokenizer
from tests.api.fakes import MAX_MODEL_LEN, VOCAB_SIZE, Deployment, make_tokenizer, refused


def prepared(*messages: dict[str, Any], content_format: Any = "string", knows_developer: bool = False) -> Any:
    return prepare_messages(messages, content_format, knows_developer=knows_developer, model_name="tiny")


PARTS = [
    {"type": "text", "text": "a"},
    {"type": "input_text", "text": "b"},
    {"type": "output_text", "text": "c"},
    {"type": "refusal", "refusal": "d"},
    {"type": "thinking", "thinking": "e"},
    {"text": "f"},
    "g",
]


def test_text_parts_become_one_string() -> None:
    assert prepared({"role": "user", "content": PARTS}) == [{"role": "user", "content": "a\nb\nc\nd\ne\nf\ng"}]


def test_templates_that_walk_over_parts_get_them() -> None:
    expected = [{"type": "text", "text": letter} for letter in "abcdefg"]
    assert prepared({"role": "user", "content": PARTS}, content_format="openai")[0]["content"] == expected
    for content, parts in (("a", expected[:1]), (None, []), ([], [])):
        assert prepared({"role": "user", "content": content}, content_format="openai")[0]["content"] == parts


def test_the_content_of_a_tool_message_is_always_one_string() -> None:
    message = {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "1"}, "2"]}
    for content_format in ("string", "openai"):
        assert prepared(message, content_format=content_format) == [{**message, "content": "1\n2"}]


def test_null_entries_are_left_out_and_others_kept() -> None:
    message = {"role": "assistant", "content": None, "name": "bot", "refusal": None, "tool_calls": None, "extra": 1}
    assert prepared(message) == [{"role": "assistant", "content": "", "name": "bot", "extra": 1}]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_goes_by_both_names(name: str) -> None:
    (message,) = prepared({"role": "assistant", "content": "x", name: "hm"})
    assert message["reasoning"] == message["reasoning_content"] == "hm"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        ("{oops", {}),
        ("[1]", {}),
        (None, {}),
        ("\ud800", {}),
    ],
)
def test_arguments_become_an_object(arguments: Any, expected: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    before = copy.deepcopy(call)
    (message,) = prepared({"role": "assistant", "tool_calls": [call]})
    assert message["tool_calls"] == [{"id": "1", "type": "function", "function": {"name": "f", "arguments": expected}}]
    assert call == before, "the request stays as it is"


def test_empty_tool_calls_are_removed() -> None:
    assert "tool_calls" not in prepared({"role": "assistant", "content": "x", "tool_calls": []})[0]


def test_developer_messages_become_one_system_message_at_the_front() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "developer", "content": "b"},
        {"role": "system", "content": "c"},
    ]
    assert prepared(*messages) == [{"role": "system", "content": "b\nc"}, {"role": "user", "content": "a"}]
    assert [message["role"] for message in prepared(*messages, knows_developer=True)] == ["user", "developer", "system"]
    merged = prepared(*messages, content_format="openai")[0]
    assert content_text(merged["content"]) == "b\nc"


def test_system_messages_stay_where_they_are_without_a_developer() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    assert prepared(*messages) == messages


# --------------------------------------------------------------------------------------------------- whole requests


def test_history_with_tools_is_rendered(deployment: Deployment) -> None:
    messages = [
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "reasoning": "easy",
            "content": None,
            "tool_calls": [{"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "2"}]},
    ]
    deployment.chat(messages=messages)
    assert deployment.prompt_text == '<|user|>1+1?<|assistant|>[easy](add {"a": 1})<|tool|>2<|assistant|>'


def test_tools_are_shown_when_the_choice_is_none(deployment: Deployment) -> None:
    deployment.chat(tools=[{"type": "function", "function": {"name": "add"}}], tool_choice="none")
    assert "<tools>[" in deployment.prompt_text
    assert '"add"' in deployment.prompt_text


def test_a_template_of_its_own_for_tools(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"default": "plain", "tool_use": "with tools"}
    monkeypatch.setattr(deployment.tokenizer, "chat_template", named)
    deployment.use_template(named["default"])
    deployment.chat()
    assert deployment.prompt_text == "plain"
    deployment.chat(tools=[{"type": "function", "function": {"name": "add"}}], tool_choice="none")
    assert deployment.prompt_text == "with tools"


def test_documents_reach_the_template(deployment: Deployment) -> None:
    deployment.chat(documents=[{"title": "t"}])
    assert '<docs>[{"title": "t"}]</docs>' in deployment.prompt_text


def test_developer_is_kept_where_the_template_knows_it(deployment: Deployment) -> None:
    messages = [{"role": "developer", "content": "be brief"}]
    deployment.chat(messages=messages)
    assert deployment.prompt_text.startswith("<|system|>be brief")
    deployment.use_template("{# developer #}{{ messages[0].role }}")
    deployment.chat(messages=messages)
    assert deployment.prompt_text == "developer"


def test_a_template_over_parts_is_recognised(deployment: Deployment) -> None:
    deployment.use_template(
        "{% for message in messages %}{% for part in message.content %}({{ part.text }}){% endfor %}{% endfor %}"
    )
    deployment.chat(messages=[{"role": "user", "content": "a"}, {"role": "user", "content": ["b", "c"]}])
    assert deployment.prompt_text == "(a)(b)(c)"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ""),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "<thinking False>"),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "<thinking True>"),
        ({"enable_thinking": False, "chat_template_kwargs": {"thinking": True}}, "<thinking False>"),
        ({"chat_template_kwargs": {"unused": 1, "messages": [], "tools": [1], "bos_token": "x"}}, ""),
        ({"reasoning_effort": "none"}, "<thinking False><effort none>"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": 0}}, "<thinking 0><effort none>"),
        ({"chat_template_kwargs": {"add_generation_prompt": False, "continue_final_message": True, "self": 1}}, ""),
    ],
)
def test_variables_of_the_template(deployment: Deployment, fields: dict[str, Any], expected: str) -> None:
    deployment.chat("hi", **fields)
    assert deployment.prompt_text == f"<|user|>hi{expected}<|assistant|>"


def test_other_variables_are_not_passed_on(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    template = deployment.services.template
    assert template is not None
    given: dict[str, Any] = {}
    monkeypatch.setattr(template, "render", lambda messages, **variables: given.update(variables) or "prompt")
    deployment.chat(chat_template_kwargs={"enable_thinking": 0, "unused": 2})
    assert given.pop("enable_thinking") == 0
    ours = {"tools", "documents", "add_generation_prompt", "continue_final_message", "keep_null_content"}
    assert set(given) == ours


def test_a_broken_template_is_the_clients_error_and_not_a_crash(deployment: Deployment) -> None:
    for source in ("{% for %}", "{{ messages[0].content.nothing.at_all }}", "{{ 1 / 0 }}"):
        deployment.use_template(source)
        with pytest.raises(ApiError) as caught:
            deployment.chat()
        assert caught.value.status == 400


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"truncate_prompt_tokens": 3}, [8, 9, 10]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, [1, 2, 3]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, [8, 9, 10]),
        ({"truncate_prompt_tokens": 100}, list(range(1, 11))),
    ],
)
def test_truncation(deployment: Deployment, fields: dict[str, Any], expected: list[int]) -> None:
    deployment.complete(list(range(1, 11)), **fields)
    assert deployment.engine.prompt == expected


BEYOND = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello <new>"}]},
    "/v1/completions": {"prompt": "hello <new>"},
    "/v1/completions#list": {"prompt": ["hello", "hello <new>"]},
    "/v1/completions#suffix": {"prompt": "hello <new>", "suffix": "world"},
    "/v1/completions#beams": {"prompt": "hello <new>", "use_beam_search": True, "max_tokens": 2, "n": 2},
    "/v1/chat/completions/batch": {"messages": [[{"role": "user", "content": "hello <new>"}]]},
}


@pytest.mark.parametrize("route", BEYOND)
def test_a_token_that_only_the_tokenizer_knows_is_refused(route: str, tmp_path: Path) -> None:
    deployment = Deployment(with_more_tokens(tmp_path))
    path = route.partition("#")[0]
    error = refused(deployment, path, BEYOND[route])
    assert error.status == 400 and "out of vocabulary" in error.message and "<new>" in error.message
    assert error.param == ("prompt" if "chat" not in path else "messages.0" if "batch" in path else "messages")
    body = {"prompt": "hello <new>", "truncate_prompt_tokens": 1, "truncation_side": "right"}
    assert deployment.request("POST", "/v1/completions", body).status == 200, "a token that is cut off does no harm"
    count = deployment.request("POST", "/tokenize", {"prompt": "<new>"}).body
    assert isinstance(count, dict) and count["count"] == 2


def test_reasoning_whose_markers_the_model_lacks_cannot_be_bounded(tmp_path: Path) -> None:
    tokenizer = with_more_tokens(tmp_path, "<think>", "</think>")
    deployment = Deployment(tokenizer)
    deployment.services.reasoning_format = ReasoningFormat("qwen3", FORMATS["qwen3"])
    body = {"messages": [{"role": "user", "content": "hello"}], "thinking_token_budget": 5}
    error = refused(deployment, "/v1/chat/completions", body)
    assert error.status == 400 and error.param == "thinking_token_budget" and "out of vocabulary" in error.message


def with_more_tokens(directory: Path, *names: str) -> Tokenizer:
    """The fakes' tokenizer with a few tokens more than the model has rows."""
    make_tokenizer(directory)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    vocab = content["model"]["vocab"]
    ends = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]  # the model has these
    fillers = [f"<filler {i}>" for i in range(VOCAB_SIZE - len(ends) - len(vocab) - len(content["added_tokens"]))]
    own = [*(entry["content"] for entry in content["added_tokens"]), *ends, *fillers]
    vocab |= {name: token_id for token_id, name in enumerate(own, len(vocab))}
    more = [{"id": vocab[text], "content": text, **flags} for text in ends]
    more += [{"id": VOCAB_SIZE + i, "content": text, **flags} for i, text in enumerate(("<new>", *names))]
    content["added_tokens"] += more
    path.write_text(json.dumps(content))
    return Tokenizer.load(directory)


def test_minus_one_truncates_to_what_leaves_room_for_one_token(deployment: Deployment) -> None:
    deployment.complete([1] * 1000, truncate_prompt_tokens=-1)
    assert len(deployment.engine.prompt) == MAX_MODEL_LEN - 1
    assert deployment.engine.sampling.max_tokens == 1


def test_a_truncated_chat_echoes_and_returns_what_was_used(deployment: Deployment) -> None:
    body = deployment.complete("abcdef", truncate_prompt_tokens=3, echo=True)
    assert body["choices"][0]["text"] == "defhello world"
    assert body["usage"]["prompt_tokens"] == 3
    assert deployment.chat("abc", truncate_prompt_tokens=2, return_prompt_text=True)["prompt_text"] == "c"
