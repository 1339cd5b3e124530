"""From a grammar's text to a matcher, or to an error that the client can act on."""

import json
import shutil
import time
from concurrent.futures import Future

import pytest

from ember.engine.core.grammar import (
    MAX_GRAMMAR_BYTES,
    NUM_CACHED,
    CompilingRequests,
    GrammarCompiler,
    GrammarError,
    load_tokenizer,
)
from ember.engine.core.sequence import Sequence
from ember.wire import Grammar, SamplingParams
from tests.structured.json_model import CALL, NUM_ROWS, THINK, load


@pytest.fixture(scope="module")
def compiler(directory):
    return GrammarCompiler(directory, NUM_ROWS, [load(directory).eos_token_id])


def compiled(compiler, kind, text):
    return compiler.submit(Grammar(kind, text)).result(timeout=60)


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
def test_every_kind_of_grammar(compiler, directory, kind, text, good, bad):
    tokenizer = load(directory)
    matcher = compiled(compiler, kind, text)
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
        ("lark", "start: missing", "missing"),
        ("lark", "", "Empty"),
        ("gbnf", "root ::= missing", "missing"),
        ("gbnf", "root", "::="),
        ("gbnf", "root ::= " + "(" * 5000, ""),
        ("yacc", "a: b", "yacc"),
    ],
)
def test_a_bad_grammar_is_a_short_reason(compiler, kind, text, reason):
    with pytest.raises(GrammarError) as caught:
        compiled(compiler, kind, text)
    message = str(caught.value)
    assert reason in message and 0 < len(message) < 500 and "\n" not in message and "<state>" not in message


def test_a_large_grammar_is_refused(compiler):
    schema = json.dumps({"enum": ["x" * 1000 + str(i) for i in range(MAX_GRAMMAR_BYTES // 1000 + 1)]})
    with pytest.raises(GrammarError, match="bytes, at most"):
        compiled(compiler, "json_schema", schema)


def test_deep_nesting_and_explosions_end_as_errors_or_matchers(compiler, directory):
    deep: dict = {"type": "integer"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    with pytest.raises(GrammarError):
        compiled(compiler, "json_schema", json.dumps(deep))
    matcher = compiled(compiler, "regex", "((a{1,100}){1,100}){1,100}b")
    assert accepts(matcher, load(directory), "aaab")


def test_equal_grammars_are_compiled_once_and_errors_again(compiler):
    assert compiler.submit(Grammar("regex", "ab*")) is compiler.submit(Grammar("regex", "ab*", param="guided_regex"))
    assert compiler.submit(Grammar("regex", "ab*")) is not compiler.submit(Grammar("lark", "ab*"))
    first = compiler.submit(Grammar("regex", "(("))
    assert first.exception(timeout=60) is not None
    assert compiler.submit(Grammar("regex", "((")) is not first


def test_the_cache_is_bounded(directory):
    compiler = GrammarCompiler(directory, NUM_ROWS, [0])
    first = compiler.submit(Grammar("regex", "start"))
    for i in range(NUM_CACHED):
        compiler.submit(Grammar("regex", f"a{i}"))
    assert len(compiler._compiled) == NUM_CACHED
    assert compiler.submit(Grammar("regex", "start")) is not first


def test_masks_are_as_wide_as_the_logits(directory):
    assert load_tokenizer(directory, NUM_ROWS, [0]).vocab_size == NUM_ROWS
    assert load_tokenizer(directory, 5000, [0]).vocab_size == 5000
    assert load_tokenizer(directory, 10, [0]).vocab_size == load(directory).vocab_size  # a mask has to name every token


def test_added_tokens_of_the_config_count(compiler, directory):
    tokenizer = load(directory)
    for text in (CALL, THINK):
        token_id = tokenizer.token_id(text)
        matcher = compiled(compiler, "lark", f'start: <[{token_id}]> "a"')
        own = matcher.deep_copy()
        assert own.consume_tokens([token_id, *tokenizer.encode("a")]) and own.is_stopped()
        assert not matcher.deep_copy().consume_tokens(tokenizer.encode("a"))


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_a_model_without_a_usable_tokenizer_says_so(directory, tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(GrammarError, match=r"this model: its tokenizer\.json cannot be used"):
        compiled(GrammarCompiler(tmp_path, NUM_ROWS, [0]), "regex", "a")
    shutil.copy(directory / "tokenizer.json", tmp_path / "tokenizer.json")
    compiled(GrammarCompiler(tmp_path, NUM_ROWS, [0]), "regex", "a")


# ------------------------------------------------------------------------------------------------------- the waiting


def waiting_sequence() -> Sequence:
    params = SamplingParams(max_tokens=1)
    return Sequence(1, 0, [1], 1, params, seed=0, priority=0, arrival=0, salt=b"")


class SlowCompiler(GrammarCompiler):
    """Its futures are finished by the test."""

    def __init__(self) -> None:
        self.futures: list[Future] = []

    def submit(self, grammar: Grammar) -> Future:
        self.futures.append(Future())
        return self.futures[-1]


def test_requests_wait_for_their_own_grammar_alone():
    compiler = SlowCompiler()
    requests = CompilingRequests(compiler)
    first, second = waiting_sequence(), waiting_sequence()
    requests.add([first], Grammar("regex", "a"))
    requests.add([second], Grammar("regex", "b"))
    assert len(requests) == 2 and requests.take() == []
    compiler.futures[1].set_result("matcher")
    (taken,) = requests.take()
    assert (taken.sequences, taken.matcher, taken.error) == ([second], "matcher", None)
    panic = type("PanicException", (BaseException,), {})
    compiler.futures[0].set_exception(panic("much\ntoo much"))  # whatever the library may raise
    (taken,) = requests.take()
    assert (taken.sequences, taken.matcher, taken.error) == ([first], None, "PanicException: much too much")
    assert not requests


def test_nobody_waits_for_ever():
    requests = CompilingRequests(SlowCompiler(), timeout_s=0.01)
    requests.add([waiting_sequence()], Grammar("regex", "a"))
    time.sleep(0.02)
    (taken,) = requests.take()
    assert taken.matcher is None and "0.01 seconds" in taken.error
    assert not requests


def test_samples_aborted_meanwhile_are_left_out():
    compiler = SlowCompiler()
    requests = CompilingRequests(compiler)
    first, second = waiting_sequence(), waiting_sequence()
    requests.add([first, second], Grammar("regex", "a"))
    first.is_finished = True
    assert len(requests) == 1
    compiler.futures[0].set_result("matcher")
    assert requests.take()[0].sequences == [second]
    requests.add([first], Grammar("regex", "a"))
    assert requests.take() == [] and not requests


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
def test_errors_say_what_to_change(compiler, kind, text, words):
    with pytest.raises(GrammarError) as caught:
        compiled(compiler, kind, text)
    said = str(caught.value)
    assert words in said
    assert not any(inside in said for inside in ("NoExtensionBias", "coerce", "start:", "Some("))
