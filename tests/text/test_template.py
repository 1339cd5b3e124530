from __future__ import annotations

import copy
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from ember.front.text.template import ChatTemplate, TemplateError
from ember.front.text.tokenizer import Tokenizer
from tests.text.templates import CONVERSATIONS, DOCUMENTS, EVERYTHING, LLAMA3, MISTRAL, TEMPLATES, THINKING, TOOLS

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@pytest.fixture(scope="session")
def reference(model_dirs: dict[str, Path]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(model_dirs["byte_fallback"]), pad_token="<pad>")


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("extras", ["none", "tools", "documents", "variables"])
@pytest.mark.parametrize("ending", ["plain", "prompt", "continue"])
def test_output_is_that_of_transformers(conversation, template, extras, ending, reference):
    """Equal text, or an error from both."""
    choices: dict[str, dict[str, Any]] = {
        "none": {},
        "tools": {"tools": TOOLS},
        "documents": {"documents": DOCUMENTS},
        "variables": {"enable_thinking": False, "reasoning_effort": "high", "bos_token": "<own>"},
    }
    arguments = choices[extras]
    arguments["add_generation_prompt"] = ending == "prompt"
    arguments["continue_final_message"] = ending == "continue"
    messages = CONVERSATIONS[conversation]
    special = {**reference.special_tokens_map}
    expected: str | None
    try:
        expected = reference.apply_chat_template(
            copy.deepcopy(messages), chat_template=TEMPLATES[template], tokenize=False, **arguments
        )
    except Exception:
        expected = None
    before = copy.deepcopy(messages)
    try:
        rendered = ChatTemplate(TEMPLATES[template], special).render(messages, **arguments)
    except TemplateError as error:
        assert expected is None, error
    else:
        assert rendered == expected
    assert messages == before


def test_most_combinations_render():
    """The comparison above is not one of errors: each template renders what it is made for."""
    for name, conversation in [
        ("chatml_tools", "tools"),
        ("llama3", "system"),
        ("mistral", "one"),
        ("thinking", "system"),
    ]:
        assert ChatTemplate(TEMPLATES[name], SPECIAL).render(CONVERSATIONS[conversation], tools=TOOLS)


def test_text_of_a_known_case():
    text = ChatTemplate(LLAMA3, SPECIAL).render(CONVERSATIONS["system"][:2])
    assert text == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot|>\n"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot|>\n"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert (
        ChatTemplate(THINKING, SPECIAL)
        .render(CONVERSATIONS["reasoning"], add_generation_prompt=False)
        .endswith("<think>\nbe kind\n</think>\n\nHello <|im_end|>\n")
    )
    assert (
        ChatTemplate(THINKING, SPECIAL)
        .render(CONVERSATIONS["reasoning"], add_generation_prompt=False, continue_final_message=True)
        .endswith("</think>\n\nHello ")
    )
    assert (
        ChatTemplate(LLAMA3, SPECIAL)
        .render(CONVERSATIONS["reasoning"], add_generation_prompt=False, continue_final_message=True)
        .endswith("\n\nHello")
    )


def test_errors_of_the_template_itself():
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(MISTRAL, SPECIAL).render(CONVERSATIONS["two_users"])
    assert caught.value.message == "Roles must alternate user/assistant/user/assistant/..."


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ messages[0].content.nothing.more }}", "UndefinedError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ messages.__class__ }}{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% for i in range(1000000) %}{% endfor %}", "OverflowError"),
        ("{{ lipsum() }}", "UndefinedError"),
        ("{% include 'x' %}", "TypeError"),
        ("{% set ns = namespace(_x=1) %}", "SecurityError"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "SecurityError"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
        ("{% if %}", "not valid Jinja: line 1"),
        ("\n\n{% for m in messages %}", "not valid Jinja: line 3"),
    ],
)
def test_other_errors_are_template_errors(source, says):
    with pytest.raises(TemplateError, match=says):
        ChatTemplate(source, SPECIAL).render([{"role": "user", "content": "x"}])


def test_bad_arguments():
    template = ChatTemplate(LLAMA3, SPECIAL)
    one = CONVERSATIONS["one"]
    with pytest.raises(TemplateError, match="at least one"):
        template.render([])
    with pytest.raises(TemplateError, match="list of objects"):
        template.render(["text"])  # type: ignore[list-item]
    with pytest.raises(TemplateError, match="documents"):
        template.render(one, documents=["text"])  # type: ignore[list-item]
    with pytest.raises(TemplateError, match="cannot both"):
        template.render(one, continue_final_message=True)
    for message in ({"role": "assistant"}, {"role": "assistant", "content": [{"type": "image"}]}):
        with pytest.raises(TemplateError, match="no text to continue"):
            template.render([message], continue_final_message=True, add_generation_prompt=False)
    for source in ("{{ messages[0].content | upper | replace('-', '') }}", "{{ messages[0].content[:1] }}"):
        with pytest.raises(TemplateError, match="drops or changes"):
            ChatTemplate(source, SPECIAL).render(one, continue_final_message=True, add_generation_prompt=False)
    with pytest.raises(TemplateError, match="does not print"):
        ChatTemplate("x", SPECIAL).render(one, continue_final_message=True, add_generation_prompt=False)


def test_variables_cannot_replace_the_conversation():
    template = ChatTemplate("{{ messages[0].content }}{{ bos_token }}{{ own }}", SPECIAL)
    assert template.render([{"role": "user", "content": "x"}], own=1, bos_token="!") == "x!1"


def test_strftime_now():
    import time

    text = ChatTemplate("{{ strftime_now('%Y') }}", {}).render([{"role": "user", "content": "x"}])
    assert text in (time.strftime("%Y"), str(int(time.strftime("%Y")) - 1))


def test_rendering_in_threads():
    template = ChatTemplate(EVERYTHING, SPECIAL)
    expected = ChatTemplate(EVERYTHING, SPECIAL).render(CONVERSATIONS["system"])
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(template.render(CONVERSATIONS["system"]))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def each(body: str) -> str:
    return "{% for m in messages %}" + body + "{% endfor %}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        *[(TEMPLATES[name], "string") for name in ("chatml_tools", "llama3", "mistral", "thinking")],
        (EVERYTHING, "openai"),
        (each("{{ m.content }}"), "string"),
        (each("{% for p in m.content %}{{ p.text }}{% endfor %}"), "openai"),
        (each("{% for p in m['content'] if p.type == 'text' %}{{ p.text }}{% endfor %}"), "openai"),
        (each("{% for p in m.get('content', []) %}{{ p.text }}{% endfor %}"), "openai"),
        (each("{% set c = m.content %}{% set d = c %}{% for p in d %}{{ p.text }}{% endfor %}"), "openai"),
        (each("{% set d = m.content[1:] | list %}{% for p in d %}{{ p.text }}{% endfor %}"), "openai"),
        (each("{% set c = m.content if m.content else [] %}{% for p in c %}{{ p.text }}{% endfor %}"), "openai"),
        (each("{% for p in m.content or [] %}{{ p.text }}{% endfor %}"), "openai"),
        (each("{% set ns = namespace() %}{% set ns.c = m.content %}{% for p in ns.c %}{% endfor %}"), "openai"),
        (each("{% with c = m.content %}{% for p in c %}{{ p.text }}{% endfor %}{% endwith %}"), "openai"),
        (each("{% set a, c = 1, m.content %}{% for p in c %}{{ p.text }}{% endfor %}"), "openai"),
        (each("{{ m.content | map(attribute='text') | join }}"), "openai"),
        (each("{{ m.content | selectattr('type', 'equalto', 'text') | list | length }}"), "openai"),
        ("{% macro f(x) %}{% for p in x %}{% endfor %}{% endmacro %}" + each("{{ f(m.content) }}"), "openai"),
        ("{% macro f(x, y) %}{% for p in y %}{% endfor %}{% endmacro %}" + each("{{ f(1, y=m.content) }}"), "openai"),
        ("{% macro f(x, y) %}{% for p in x %}{% endfor %}{% endmacro %}" + each("{{ f(1, m.content) }}"), "string"),
        (each("{% for line in m.content.split('x') %}{{ line }}{% endfor %}"), "string"),
        (each("{% for call in m.tool_calls %}{{ call.name }}{% endfor %}{{ m.content }}"), "string"),
        ("{{ messages | map(attribute='content') | join }}", "string"),
    ],
)
def test_content_format(source, expected):
    assert ChatTemplate(source, {}).content_format == expected


def test_variables():
    thinking = ChatTemplate(THINKING, {}).variables
    assert thinking >= {"messages", "add_generation_prompt", "enable_thinking"}
    assert not thinking & {"namespace", "ns", "message", "loop", "content", "tools"}
    assert ChatTemplate(EVERYTHING, {}).variables == {
        "messages", "tools", "documents", "add_generation_prompt", "reasoning_effort", "bos_token", "pad_token",
    }  # fmt: skip
    with pytest.raises(TemplateError, match="not valid Jinja"):
        _ = ChatTemplate("{% if %}", {}).variables


def test_choice_for_a_tokenizer(model_dirs, tmp_path):
    tokenizer = Tokenizer.load(model_dirs["byte_fallback"])
    one = [{"role": "user", "content": "x"}]

    def rendered(custom: str | None = None, with_tools: bool = False) -> str | None:
        template = ChatTemplate.for_tokenizer(tokenizer, custom, with_tools=with_tools)
        return None if template is None else template.render(one)

    assert rendered() is None
    tokenizer.chat_template = "own{{ bos_token }}"
    assert (rendered(), rendered(with_tools=True)) == ("own<s>", "own<s>")
    tokenizer.chat_template = {"default": "d", "tool_use": "t", "rag": "r"}
    assert (rendered(), rendered(with_tools=True), rendered("rag")) == ("d", "t", "r")
    path = tmp_path / "custom.jinja"
    path.write_text("file {{ eos_token }}")
    assert rendered(str(path)) == "file </s>"
    assert rendered("text {{ eos_token }}") == "text </s>"
    with pytest.raises(TemplateError, match="neither Jinja nor a readable file"):
        rendered(str(tmp_path / "nowhere.jinja"))
    tokenizer.chat_template = {"rag": "r"}
    with pytest.raises(TemplateError, match="choose one of: rag"):
        rendered()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"{{ bos_token }}\n{% for m in messages %}{{ m.role }}:\t{{ m.content }}\n{% endfor %}", "<s>\nuser:\tx\n"),
        (r"{{ 'a\nb' }}\n\n", "a\nb\n"),  # Jinja drops the last line break
        (r"{{ 'a\\nb' }}\\n", "a\\nb\\n"),
        (r"it's {{ bos_token }} isn't\n.", "it's <s> isn't\n."),
        (r'"{{ "q\"\n" }}"\n\"', '"q"\n"\n"'),
        (r"{% if true %}\n  yes\n{% endif %}", "  yes\n"),
        (r"{{ bos_token\n }}Gr\u00fc\xdfe, größer \U0001F98A \q \d", "<s>Grüße, größer 🦊 \\q \\d"),
        (r"{# it's a note #}\n{{ bos_token }}", "<s>"),
        ("{{ bos_token }}\n\\n", "<s>\n\\n"),
    ],
)
def test_a_template_on_one_line_has_escapes_for_its_line_breaks(text, expected, model_dirs):
    tokenizer = Tokenizer.load(model_dirs["byte_fallback"])
    template = ChatTemplate.for_tokenizer(tokenizer, text)
    assert template is not None
    assert template.render([{"role": "user", "content": "x"}]) == expected


def test_a_template_in_a_file_stays_as_it_is(model_dirs, tmp_path):
    tokenizer = Tokenizer.load(model_dirs["byte_fallback"])
    path = tmp_path / "one-line.jinja"
    path.write_text(r"{{ bos_token }}\n")
    template = ChatTemplate.for_tokenizer(tokenizer, str(path))
    assert template is not None and template.render([{"role": "user", "content": "x"}]) == r"<s>\n"


def test_a_template_file_has_a_bound(model_dirs, tmp_path):
    tokenizer = Tokenizer.load(model_dirs["byte_fallback"])
    (tmp_path / "long.jinja").write_text("x" * (2 << 20))
    os.mkfifo(tmp_path / "fifo")
    for name, says in (("long.jinja", "2,097,152 bytes"), ("fifo", "not a regular file")):
        with pytest.raises(TemplateError, match=says):
            ChatTemplate.for_tokenizer(tokenizer, str(tmp_path / name))
    with pytest.raises(TemplateError, match="not a regular file"):
        ChatTemplate.for_tokenizer(tokenizer, "/dev/zero")
    with pytest.raises(TemplateError, match="2,097,152 characters; 1,048,576 are allowed"):
        ChatTemplate.for_tokenizer(tokenizer, "{# " + "x" * (2**21 - 6) + " #}")
