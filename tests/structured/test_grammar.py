"""From a grammar's text to a matcher, or to an error that the client can act on."""

import json
import shutil

import pytest

from ember.engine.core.grammars.grammar import (
    MAX_GRAMMAR_BYTES,
    compile_grammar,
    load_tokenizer,
    size_error,
)
from ember.engine.errors import GrammarError
from ember.wire import Grammar
from tests.structured.json_model import CALL, NUM_ROWS, THINK, load


@pytest.fixture(scope="module")
def vocabulary(directory):
    return load_tokenizer(directory, NUM_ROWS, [load(directory).eos_token_id])


def compiled(vocabulary, kind, text):
    return compile_grammar(vocabulary, Grammar(kind, text))


def accepts(matcher, tokenizer, text) -> bool:
    """Whether the whole text is in the grammar's language."""
    own = matcher.deep_copy()
    return own.consume_tokens(tokenizer.encode(text, add_special_tokens=False)) and own.is_accepting()


@pytest.mark.parametrize(
    ("kind", "text", "good", "bad"),
    [
        ("json_schema", '{"type":"array","items":{"type":"integer"},"maxItems":2}', ["[]", "[1,22]"], ["[1,2,3]", "1"]),
        ("regex", "a+/b{2}", ["a/bb", "aaa/bb"], ["a/b", "xa/bb", "a/bbb"]),
        ("lark", 'start: "x" NUMBER\nNUMBER: /[0-9]{2}/', ["x12"], ["x1", "12", "x123"]),
        ("gbnf", 'root ::= "x" digit+\ndigit ::= [0-9]', ["x1", "x123"], ["x", "1"]),
    ],
)
def test_every_kind_of_grammar(vocabulary, directory, kind, text, good, bad):
    tokenizer = load(directory)
    matcher = compiled(vocabulary, kind, text)
    assert [accepts(matcher, tokenizer, word) for word in good] == [True] * len(good)
    assert [accepts(matcher, tokenizer, word) for word in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", '{"type":"array","uniqueItems":true}', "uniqueItems"),
        ("json_schema", '{"not":{"type":"string"}}', '"not"'),
        ("json_schema", '{"type":"strin"}', "strin"),
        ("json_schema", '{"$ref":"#/$defs/missing"}', "/$defs/missing"),
        ("json_schema", '{"type":"integer","minimum":5,"maximum":3}', "minimum (5)"),
        ("json_schema", '{"type":"string","pattern":"a(?=b)"}', "look-around"),
        ("json_schema", "{", "line 1"),
        ("regex", "(a", "unclosed group"),
        ("regex", r"(a)\1", "backreferences"),
        ("lark", "start: A\nA: /x(?=y)/", "the regular expression 'x(?=y)' in line 2: look-around"),
        ("lark", "start: missing", "missing"),
        ("lark", "", "Empty"),
        ("gbnf", "root ::= missing", "missing"),
        ("gbnf", "root", "::="),
        ("gbnf", "root ::= " + "(" * 5000, ""),
        ("yacc", "a: b", "yacc"),
    ],
)
def test_a_bad_grammar_is_a_short_reason(vocabulary, kind, text, reason):
    with pytest.raises(GrammarError) as caught:
        compiled(vocabulary, kind, text)
    message = str(caught.value)
    assert reason in message and 0 < len(message) < 500 and "\n" not in message and "<state>" not in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(a", "unclosed group"),
        ("a{2,1}", "invalid repetition count range, the start must be <= the end"),
        ("a(?=b)", "look-around, including look-ahead and look-behind, is not supported"),
        ('"(in regex): (', "unclosed group"),
        ("a$b", r"anchors and word boundaries (`^`, `$`, `\b`) inside a regular expression are not supported"),
        (r"\ba", r"anchors and word boundaries (`^`, `$`, `\b`) inside a regular expression are not supported"),
        ("a\n\n   1 | (", "unclosed group"),
        ("x" * 5000 + "[", "unclosed character class"),
    ],
)
def test_a_bad_regular_expression_is_the_parsers_words_alone(vocabulary, text, reason):
    with pytest.raises(GrammarError) as caught:
        compiled(vocabulary, "regex", text)
    assert str(caught.value) == reason


def test_a_large_grammar_is_refused():
    schema = json.dumps({"enum": ["x" * 1000 + str(i) for i in range(MAX_GRAMMAR_BYTES // 1000 + 1)]})
    assert "bytes, at most" in str(size_error(Grammar("json_schema", schema)))
    assert size_error(Grammar("regex", "a" * MAX_GRAMMAR_BYTES)) is None


def test_deep_nesting_and_explosions_end_as_errors_or_matchers(vocabulary, directory):
    deep: dict = {"type": "integer"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    with pytest.raises(GrammarError):
        compiled(vocabulary, "json_schema", json.dumps(deep))
    matcher = compiled(vocabulary, "regex", "((a{1,100}){1,100}){1,100}b")
    assert accepts(matcher, load(directory), "aaab")


def test_masks_are_as_wide_as_the_logits(directory):
    assert load_tokenizer(directory, NUM_ROWS, [0]).vocab_size == NUM_ROWS
    assert load_tokenizer(directory, 5000, [0]).vocab_size == 5000
    assert load_tokenizer(directory, 10, [0]).vocab_size == load(directory).vocab_size  # a mask has to name every token


def test_added_tokens_of_the_config_count(vocabulary, directory):
    tokenizer = load(directory)
    for text in (CALL, THINK):
        token_id = tokenizer.token_id(text)
        matcher = compiled(vocabulary, "lark", f'start: <[{token_id}]> "a"')
        own = matcher.deep_copy()
        assert own.consume_tokens([token_id, *tokenizer.encode("a")]) and own.is_stopped()
        assert not matcher.deep_copy().consume_tokens(tokenizer.encode("a"))


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_a_model_without_a_usable_tokenizer_says_so(directory, tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(GrammarError, match=r"this model: its tokenizer\.json cannot be used"):
        load_tokenizer(tmp_path, NUM_ROWS, [0])
    shutil.copy(directory / "tokenizer.json", tmp_path / "tokenizer.json")
    load_tokenizer(tmp_path, NUM_ROWS, [0])


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", '{"$ref":"#"}', "no value matches the schema, or it refers to itself without end"),
        ("json_schema", '{"oneOf":[{"type":"integer"},{"type":"number"}]}', "use `anyOf`"),
        ("json_schema", '{"type":"integer","minimum":1000000000000000000000000000000}', "bounds of integers"),
        ("json_schema", '{"type":"number","minimum":1e300}', "bound of a number is too large"),
        ("regex", r"a[^\s\S]", "no text matches the regular expression"),
        (
            "lark",
            'start: %json {"type":"array","uniqueItems":true}',
            'in a JSON schema: Unimplemented keys: ["uniqueItems"]',
        ),
    ],
)
def test_errors_say_what_to_change(vocabulary, kind, text, words):
    with pytest.raises(GrammarError) as caught:
        compiled(vocabulary, kind, text)
    said = str(caught.value)
    assert words in said
    assert not any(inside in said for inside in ("NoExtensionBias", "coerce", "start:", "Some("))
