"""Structural tags: which texts their grammars accept, with markers that are tokens and markers that are text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ember.engine.core.grammars.grammar import compile_grammar, load_tokenizer
from ember.front.text.structural_tag import structural_tag_grammar
from ember.wire import Grammar
from tests.structured.json_model import NUM_ROWS, load

INTEGERS = {"type": "json_schema", "json_schema": {"type": "array", "items": {"type": "integer"}}}
REGEX = {"type": "regex", "pattern": r"\d+/x"}


def tag(begin: str, content: dict[str, Any], end: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end, **more}


def triggered(triggers: list[str], *tags: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "triggered_tags", "triggers": triggers, "tags": list(tags), **more}


@pytest.fixture(scope="module")
def accepts(directory):
    """Whether a text, with its markers as tokens, is in the language of a tag."""
    tokenizer = load(directory)
    vocabulary = load_tokenizer(directory, NUM_ROWS, [tokenizer.eos_token_id])

    def check(structural_tag: dict[str, Any], text: str) -> bool:
        grammar = structural_tag_grammar(structural_tag, tokenizer)
        matcher = compile_grammar(vocabulary, Grammar("lark", grammar))
        return matcher.consume_tokens(tokenizer.encode(text, add_special_tokens=False)) and matcher.is_accepting()

    return check


FORMATS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "const_string", "value": 'a"<b'}, ['a"<b'], ["", "a", 'a"<bc']),
    (INTEGERS, ["[]", "[1, 2]"], ["", "[a]"]),
    (REGEX, ["1/x", "22/x"], ["/x", "1/xx"]),
    ({"type": "any_text"}, ["", "anything <f> at\nall"], []),
    ({"type": "any_text", "excludes": ["<f>", "end"]}, ["", "<f", "en d"], ["a<f>b", "the end"]),
    ({"type": "sequence", "elements": [REGEX, {"type": "const_string", "value": "!"}]}, ["1/x!"], ["1/x", "!"]),
    ({"type": "or", "elements": [REGEX, INTEGERS]}, ["1/x", "[1]"], ["", "1/x[1]"]),
    (tag("<f>", INTEGERS, "</f>"), ["<f>[1]</f>"], ["[1]", "<f>[1]", "<f>1</f>", "x<f>[1]</f>"]),
    (tag("<f>", INTEGERS, ["</f>", "."]), ["<f>[1]</f>", "<f>[]."], ["<f>[1]"]),
    (tag("<f>", {"type": "any_text"}, "</f>"), ["<f></f>", "<f>a<b</f>"], ["<f>a", "<f></f></f>", "<f>a</f>b"]),
    (tag("<think>", {"type": "any_text"}, "</think>"), ["<think>a\nb</think>"], ["a", "<think>a", "<think></think>b"]),
    (tag("<think>\n", INTEGERS, "\n</think>!"), ["<think>\n[1]\n</think>!"], ["<think>[1]</think>!"]),
    (
        triggered(["<f="], tag("<f=a>", INTEGERS, "</f>"), tag("<f=b>", REGEX, "</f>")),
        ["", "text", "<f=a>[1]</f>", "say <f=b>1/x</f> and <f=a>[]</f> again", "< f=a"],
        ["<f=", "<f=c>", "<f=a>1/x</f>", "<f=b>[1]</f>", "a <f=a>[1]"],
    ),
    (
        triggered(["<f="], tag("<f=a>", INTEGERS, "</f>"), at_least_one=True),
        ["<f=a>[1]</f>", "a<f=a>[1]</f>b"],
        ["", "text"],
    ),
    (
        triggered(["<f="], tag("<f=a>", INTEGERS, "</f>"), stop_after_first=True),
        ["", "a", "a<f=a>[1]</f>"],
        ["<f=a>[1]</f>b", "<f=a>[1]</f><f=a>[1]</f>"],
    ),
    (
        triggered(["<call>"], tag("<call>", INTEGERS, "</think>")),
        ["", "a", "a<call>[1]</think>b<call>[2]</think>"],
        ["<call>", "<call>x</think>", "<call>[1]"],
    ),
    (
        triggered(["<f=", "<g"], tag("<f=a>", INTEGERS, ";"), tag("<g>", REGEX, ";")),
        ["x<f=a>[1];y<g>1/x;", "<"],
        ["<g", "<f=a>1/x;"],
    ),
    (
        {"type": "tags_with_separator", "tags": [tag("a", REGEX, ";"), tag("b", INTEGERS, ";")], "separator": ", "},
        ["", "a1/x;", "a1/x;, b[1];, a2/x;"],
        ["a1/x;b[1];", "a1/x;, ", "c"],
    ),
    (
        {
            "type": "tags_with_separator",
            "tags": [tag("a", REGEX, ";")],
            "separator": ",",
            "at_least_one": True,
            "stop_after_first": True,
        },
        ["a1/x;"],
        ["", "a1/x;,a1/x;"],
    ),
    (
        {
            "type": "sequence",
            "elements": [tag("<think>", {"type": "any_text"}, "</think>"), triggered(["<f"], tag("<f>", REGEX, "."))],
        },
        ["<think>hm</think>", "<think></think>a<f>1/x.b"],
        ["a", "<think>hm</think><f>."],
    ),
]


@pytest.mark.parametrize(("form", "good", "bad"), FORMATS)
def test_formats(accepts, form, good, bad):
    for text in good:
        assert accepts({"type": "structural_tag", "format": form}, text), text
    for text in bad:
        assert not accepts({"type": "structural_tag", "format": form}, text), text


def test_the_older_form(accepts):
    structures = [
        {"begin": "<function=f>", "schema": {"type": "integer"}, "end": "</function>"},
        {"begin": "<function=g>", "schema": {"type": "boolean"}, "end": "</function>"},
    ]
    old = {"type": "structural_tag", "structures": structures, "triggers": ["<function="]}
    assert accepts(old, "") and accepts(old, "so <function=f>3</function>, <function=g>true</function>.")
    assert not accepts(old, "<function=f>true</function>") and not accepts(old, "<function=h>")


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ([], "is an object"),
        ({}, "either `format`"),
        ({"format": []}, "object with a `type`"),
        ({"format": {"type": "xml"}}, "'xml' is not supported"),
        ({"format": {"type": "const_string"}}, "`value`"),
        ({"format": {"type": "json_schema", "json_schema": False}}, "allows nothing"),
        ({"format": {"type": "json_schema"}}, "a schema is an object"),
        ({"format": {"type": "sequence", "elements": []}}, "`elements`"),
        ({"format": {"type": "sequence", "elements": [{"type": "any_text"}, REGEX]}}, "at the end"),
        ({"format": {"type": "sequence", "elements": [triggered(["a"], tag("a", REGEX, "b")), REGEX]}}, "at the end"),
        ({"format": tag("a", REGEX, [])}, "`end`"),
        ({"format": triggered(["<f"], tag("<g", REGEX, "b"))}, "no trigger begins the tag '<g'"),
        ({"format": triggered(["<f", "<g"], tag("<f", REGEX, "b"))}, "no tag begins with the trigger '<g'"),
        ({"format": triggered(["a<call>"], tag("a<call>", REGEX, "b"))}, "special token inside"),
        ({"format": triggered(["<call>a"], tag("<call>a", REGEX, "b"))}, "use the token alone"),
        ({"format": {"type": "regex", "pattern": "a*+"}}, "possessive"),
        ({"structures": "a", "triggers": ["a"]}, "list of objects"),
        ({"structures": [{"begin": "a", "end": "b"}]}, "`triggers`"),
    ],
)
def test_what_cannot_be_used_is_named(directory, tag, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        structural_tag_grammar(tag, load(directory))


def test_tags_have_limits(directory):
    nested: dict[str, Any] = REGEX
    for _ in range(40):
        nested = {"type": "sequence", "elements": [nested]}
    with pytest.raises(ValueError, match="32 levels"):
        structural_tag_grammar({"format": nested}, load(directory))
    with pytest.raises(ValueError, match="1024 tags"):
        structural_tag_grammar(
            {"format": triggered(["a"], *[tag(f"a{i}", REGEX, ".") for i in range(1025)])}, load(directory)
        )
