"""Reasoning over the API: under both of its names, counted, hidden, and in time."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from ember.front.formats import choose_formats, formats_of
from ember.settings import Settings
from tests.api.fakes import Deployment
from tests.api.talking import message_of, talking

SAID = "<think>\nTwo and two.\n</think>\n\nFour."
REASONING_TOKENS = len("\nTwo and two.\n")


@pytest.fixture
def deployment() -> Deployment:
    deployment = talking()
    deployment.says(SAID)
    return deployment


def test_reasoning_has_two_names(deployment: Deployment) -> None:
    whole = deployment.chat()
    message = whole["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "Two and two."
    assert message["content"] == "Four."
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": REASONING_TOKENS}
    assert whole["usage"]["completion_tokens"] == len("\nTwo and two.\n\n\nFour.") + 3  # two marks and the end
    chunks = deployment.stream_chat(stream_options={"include_usage": True})
    streamed = message_of(chunks[:-1])
    assert (streamed["reasoning"], streamed["content"]) == ("Two and two.", "Four.")
    assert chunks[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": REASONING_TOKENS}


@pytest.mark.parametrize("per_step", [1, 4, 1000])
def test_hidden_reasoning(deployment: Deployment, per_step: int) -> None:
    deployment.says(SAID, per_step)
    whole = deployment.chat(include_reasoning=False, return_token_ids=True, logprobs=True)
    choice = whole["choices"][0]
    assert choice["message"]["reasoning"] is choice["message"]["reasoning_content"] is None
    assert choice["message"]["content"] == "Four."
    shown = deployment.tokenizer.decode(choice["token_ids"])
    assert shown == "\n\nFour."
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": REASONING_TOKENS}
    assert "Two" not in str(deployment.stream_chat(include_reasoning=False))


def test_content_is_null_while_there_is_only_reasoning(deployment: Deployment) -> None:
    choice = deployment.chat(max_tokens=5)["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"] == "Two"
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "is_open"),
    [
        ({"enable_thinking": True}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"thinking": True}}, True),
        ({"reasoning_effort": "high"}, True),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high", "enable_thinking": False}, False),
    ],
)
def test_the_prompt_may_open_or_close_it(deployment: Deployment, fields: dict[str, Any], is_open: bool) -> None:
    deployment.says("hm\n</think>\nFour." if is_open else "Four.")
    body = deployment.chat(**fields, thinking_token_budget=9)  # one of them for a newline
    message = body["choices"][0]["message"]
    assert message["content"] == "Four."
    assert message["reasoning"] == ("hm" if is_open else None)
    assert deployment.prompt_text.endswith("<think>\n" if is_open else "<think></think>")
    thinking = deployment.engine.sampling.thinking
    assert thinking is not None
    assert (thinking.is_open, thinking.budget) == (is_open, 8)


def test_the_operator_sets_template_variables() -> None:
    deployment = talking(default_chat_template_kwargs={"enable_thinking": False})
    deployment.chat()
    assert deployment.prompt_text.endswith("<think></think>")
    deployment.chat(chat_template_kwargs={"enable_thinking": True})
    assert deployment.prompt_text.endswith("<think>\n")
    deployment.chat(enable_thinking=True)
    assert deployment.prompt_text.endswith("<think>\n")


def test_a_grammar_begins_after_the_reasoning(deployment: Deployment) -> None:
    deployment.chat(structured_outputs={"regex": "[a-z]+"}, enable_thinking=True)
    sampling = deployment.engine.sampling
    assert sampling.grammar is not None
    assert sampling.thinking is not None
    assert sampling.thinking.is_open
    assert sampling.thinking.end_token_ids == [[deployment.tokenizer.token_id("</think>")]]
    deployment.chat()
    assert deployment.engine.sampling.thinking is None


def test_reasoning_of_the_history_is_taken_under_both_names(deployment: Deployment) -> None:
    for name in ("reasoning", "reasoning_content"):
        messages = [{"role": "assistant", "content": "a", name: "hm"}, {"role": "user", "content": "b"}]
        deployment.request("POST", "/v1/chat/completions", {"messages": messages})
        assert deployment.prompt_text == "<|assistant|><think>hm</think>a<|user|>b<|assistant|>"


def test_stop_strings_count_in_reasoning_too(deployment: Deployment) -> None:
    choice = deployment.chat(stop=[" two"])["choices"][0]
    assert choice["message"]["reasoning"] == "Two and"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", " two")
    choice = deployment.chat(stop=["</think>"])["choices"][0]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("Two and two.", None)


def test_every_sample_has_its_own(deployment: Deployment) -> None:
    whole = deployment.chat(n=3)
    assert [choice["message"]["reasoning"] for choice in whole["choices"]] == ["Two and two."] * 3
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3 * REASONING_TOKENS}


def test_echo_comes_before_content(deployment: Deployment) -> None:
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is"}]
    body = {"messages": messages, "echo": True, "continue_final_message": True, "add_generation_prompt": False}
    deployment.says(" four.")
    answer = deployment.request("POST", "/v1/chat/completions", body).body
    assert answer["choices"][0]["message"]["content"] == "It is four."


def test_the_log_says_what_was_chosen_and_why(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    template = deployment.services.template
    formats = choose_formats(Settings(model_name="org/x"), deployment.tokenizer, template, Path("/nowhere"))
    assert formats.reasoning is not None
    assert formats.tools is not None
    assert (formats.reasoning.name, formats.tools.name) == ("qwen3", "hermes")
    assert "reasoning format: qwen3 (the chat template has '<think>')" in caplog.text
    assert "tool call format: hermes (" in caplog.text
    off = Settings(model_name="org/x", reasoning_parser="none", tool_call_parser="none")
    formats = choose_formats(off, deployment.tokenizer, template, Path("/nowhere"))
    assert (formats.reasoning, formats.tools) == (None, None)
    with pytest.raises(ValueError, match="REASONING_PARSER=x: there is no such format"):
        choose_formats(
            Settings(model_name="org/x", reasoning_parser="x"), deployment.tokenizer, template, Path("/nowhere")
        )


def test_formats_follow_the_overridden_model_type(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "seed_oss"}')

    def chosen(overrides: dict[str, Any]) -> tuple[str, str]:
        formats = formats_of(Settings(model_name="org/x", hf_overrides=overrides), None, None, tmp_path)
        return formats.reasoning_name, formats.tools_name

    assert chosen({}) == ("seed_oss", "seed_oss")
    assert chosen({"model_type": "gpt_oss"}) == ("openai_gptoss", "openai")
    assert chosen({"model_type": 7}) == ("none", "none")


def test_text_behind_the_reasoning_comes_as_it_is_made(deployment: Deployment) -> None:
    deployment.says("<think></think>Four")
    deltas = [chunk["choices"][0]["delta"] for chunk in deployment.stream_chat()]
    assert deltas == [{"role": "assistant", "content": ""}, *({"content": character} for character in "Four"), {}]


def test_an_aborted_sample_keeps_what_was_held_back(deployment: Deployment) -> None:
    deployment.says("<think>a</think>one\nsto")
    whole = deployment.engine.script
    deployment.engine.script = lambda prompt, sampling: whole(prompt, sampling)[:-1]
    choice = deployment.chat(stop=["stop"])["choices"][0]
    assert choice["finish_reason"] == "abort"
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("a", "one\nsto")
    deployment.says("<think>a\n</thi")
    whole_again = deployment.engine.script
    deployment.engine.script = lambda prompt, sampling: whole_again(prompt, sampling)[:-1]
    assert deployment.chat(stop=["</x"])["choices"][0]["message"]["reasoning"] == "a\n</thi"
