"""Choices: whatever they hold, however many there are."""

from __future__ import annotations

import random

import pytest

from ember.engine.core.grammars.grammar import compile_grammar, load_tokenizer
from ember.front.text.lark import choice
from ember.wire import Grammar
from tests.structured.json_model import load


@pytest.fixture(scope="module")
def takes(directory):
    """Whether the grammar of the choices takes the whole text."""
    tokenizer = load(directory)
    vocabulary = load_tokenizer(directory, 512, [tokenizer.eos_token_id])

    def check(texts: list[str], text: str) -> bool:
        matcher = compile_grammar(vocabulary, Grammar("lark", choice(texts)))
        token_ids = tokenizer.encode(text)
        return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()

    return check


@pytest.mark.parametrize(
    ("texts", "others"),
    [
        (["a", "ab", "abc d"], ["b", "", "abc", "aa"]),
        (["", "x"], ["y", "xx"]),
        ([""], ["x"]),
        (['he"llo\n', "/re/i", "[a-z]", "日本"], ["c", "re", "日"]),
    ],
)
def test_each_and_no_other(takes, texts, others):
    assert all(takes(texts, text) for text in texts)
    assert not any(takes(texts, other) for other in others)


def test_more_than_a_parser_holds_alternatives(takes):
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh", k=8)) for _ in range(5000)]
    assert takes(texts, texts[77])
    assert not takes(texts, "zzzzzzzz")
