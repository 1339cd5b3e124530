"""Conversations with tools in the families' formats: rendered as transformers does, recognised, and read back."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from ember.front.api.messages import prepare_messages
from ember.front.text.template import ChatTemplate
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools import ToolFormat, choose_tool_format
from ember.front.text.tools.formats import FORMATS
from tests.text.test_tools import BOTH, is_framed, joined, parts_of, read
from tests.text.tool_templates import FAMILIES, Family
from tests.text.tool_vectors import TOOLS

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("note", {"text": 'a <b> & "c" é🦜\nd', "tags": ["x", "y z"], "extra": {"a": 1.5, "ok": True}, "parent": None}),
    ("weather", {"city": "Zürich", "days": 3}),
    ("now", {}),
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "What is it like?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": f"functions.{name}:{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate(CALLS)
        ],
    },
    {"role": "tool", "content": "rain", "tool_call_id": "functions.note:0"},
    {"role": "assistant", "content": "Rain."},
    {"role": "user", "content": "Thanks."},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def ids(family: Family) -> str:
    return f"{family.format}-{family.model_type}"


def prepared(family: Family, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the chat route gives them to the family's template."""
    history = ChatTemplate(family.template, SPECIAL).history_form
    return prepare_messages(messages, "string", knows_developer=False, model_name="tiny", history=history)


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_how_the_template_takes_earlier_calls_is_found(family: Family) -> None:
    form = ChatTemplate(family.template, SPECIAL).history_form
    assert (form.arguments, form.empty_content, form.ids, form.problem) == (family.arguments, "text", None, None)


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_rendered_as_transformers_does(family: Family, length: int) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = prepared(family, MESSAGES[:length])
    is_over = messages[-1]["role"] == "assistant"
    ours = ChatTemplate(family.template, SPECIAL).render(
        copy.deepcopy(messages), tools=TOOLS, add_generation_prompt=not is_over
    )
    theirs, _ = render_jinja_template(
        conversations=[copy.deepcopy(messages)],
        tools=TOOLS,
        chat_template=family.template,
        add_generation_prompt=not is_over,
        **SPECIAL,
    )
    assert ours == theirs[0]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_calls_in_a_rendered_conversation_can_be_read_back(family: Family, kind: str) -> None:
    """What the template makes of calls is what the model was taught to write."""
    if is_framed(family.format) and kind == "text":
        pytest.skip("the marks of messages are tokens in every tokenizer")
    chosen, _ = choose_tool_format(family.template, family.model_type, family.model_name, None)
    assert chosen is not None
    tokenizer: Tokenizer = BOTH[kind]
    template = ChatTemplate(family.template, SPECIAL)
    prompt = template.render(MESSAGES[:1], tools=TOOLS, add_generation_prompt=True)
    whole = template.render(prepared(family, MESSAGES[:2]), tools=TOOLS, add_generation_prompt=False)
    assert whole.startswith(prompt)
    output = whole[len(prompt) :].removesuffix("<|end_of_turn|>").removesuffix("</s>")
    if family.format == "openai":
        output = output.removesuffix("<|end|>")
    content, calls = joined(read(chosen.name, [parts_of(output, chosen, tokenizer)], tokenizer))
    assert content == ""
    assert [(name, json.loads(arguments)) for name, _, arguments in calls] == CALLS
    if family.format == "kimi_k2":
        assert [call_id for _, call_id, _ in calls] == [call["id"] for call in MESSAGES[1]["tool_calls"]]


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_detected(family: Family) -> None:
    chosen, why = choose_tool_format(family.template, family.model_type, family.model_name, None)
    assert chosen == ToolFormat(family.format) and why


def test_every_claimed_family_has_a_template() -> None:
    small = {"longcat", "granite-20b-fc", "dots"}  # spellings of another one's core, by a name of their own
    assert {family.format for family in FAMILIES} == set(FORMATS) - small


@pytest.mark.parametrize(
    ("template", "model_type", "name", "expected"),
    [
        ("", None, "NousResearch/Hermes-3-Llama-3.1-8B", "hermes"),
        ("{{ messages }}", "qwen3", "Qwen/Qwen3-0.6B", "hermes"),
        ("{{ messages }}", "gpt_oss", "models/x", "openai"),
        ("{{ messages }}", "llama", "meta-llama/Llama-3.2-3B-Instruct", "llama3_json"),
        ("{{ messages }}", "glm4_moe", "zai-org/GLM-4.7", "glm47"),
        ("{{ messages }}", "glm4_moe", "zai-org/GLM-4.5-Air", "glm45"),
        ("{{ messages }}", "deepseek_v3", "deepseek-ai/DeepSeek-V3.1", "deepseek_v31"),
        ("{{ messages }}", "qwen3_moe", "Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_coder"),
        ("{{ messages }}", "mistral", "mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
        ("{{ messages }}", "cohere2", "CohereLabs/c4ai-command-r7b-12-2024", "cohere_command3"),
        ("{{ messages }}", "apertus", "swiss-ai/x", "apertus"),
        ("{{ messages }}", "deepseek_v3", "ai-sage/GigaChat3-10B-A1.8B", "gigachat3"),
        ("'<tool_calls:6124c78e>' '<tool_sep:6124c78e>' '<arg_key:6124c78e>'", None, "x", "hy_v3"),
        ("{{ messages }}", "llama", "models/x", None),
        ("", None, "", None),
    ],
)
def test_names_and_types_count_where_the_template_says_nothing(template, model_type, name, expected) -> None:
    chosen, why = choose_tool_format(template, model_type, name, None)
    assert (chosen.name if chosen else None) == expected and why


def test_the_demo_model_is_recognised() -> None:
    from pathlib import Path

    import ember.demo

    tokenizer = Tokenizer.load(Path(ember.demo.__file__).parent)
    assert isinstance(tokenizer.chat_template, str)
    chosen, why = choose_tool_format(tokenizer.chat_template, "qwen3", "ember-demo", None)
    assert chosen is not None and chosen.name == "hermes" and "<tool_call>" in why
    assert chosen.markers(tokenizer) == {tokenizer.token_id("<tool_call>"), tokenizer.token_id("</tool_call>")}
