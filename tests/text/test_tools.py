"""Tool-call formats: what is content and what are calls, however the output is cut."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.front.text.output import Content, Delta, Marker, Reasoning, ToolCallArguments, ToolCallStart
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools import ToolFormat, choose_tool_format, formats
from ember.front.text.tools.formats import ALIASES, FORMATS, WITHOUT_FORM
from ember.front.text.tools.schema import refuse_constant
from tests.support.byte_tokenizer import byte_tokenizer
from tests.text.parts import parts_of
from tests.text.tool_vectors import HARMONY_VECTORS, ONE, TOOLS, VECTORS, Vector, hermes, hunyuan

# Every mark that published tokenizers have as a token. Tags with a name in them are text everywhere.
SPECIAL = (
    *dict.fromkeys(
        mark
        for entry in FORMATS.values()
        for mark in entry.calls.marks
        if mark.startswith(("<", "["))
        and not any(part in mark for part in ("=", "|> <", "><|", "function>", "_calls>", "<|open|>", "plamo"))
        and not mark.startswith("<|close|>")
    ),
    "]<]minimax[>[",
    "<|action_start|>",
    "<|plugin|>",
    "<|start|>",
    "<|constrain|>",
    *("<|open|>", "<|close|>", "<|sep|>", "<ifm|tool_calls>", "</ifm|tool_calls>"),
    *("<|plamo:begin_", "<|plamo:end_", ":plamo|>", "<|plamo:constrain|>", "<|plamo:msg|>"),
)
WITH_TOKENS = byte_tokenizer(SPECIAL)
WITHOUT_TOKENS = byte_tokenizer(("<|user|>",))
BOTH = {"tokens": WITH_TOKENS, "text": WITHOUT_TOKENS}


def read(
    name: str, pushes: Sequence[Sequence[str]], tokenizer: Tokenizer, tools: Any = TOOLS, is_whole: bool = False
) -> list[Delta]:
    """`is_whole`: the answer is sent when all of it is there."""
    parser = ToolFormat(name).parser(tools, tokenizer)
    deltas: list[Delta] = []
    for parts in pushes:
        deltas += parser.push(parts)
        if not is_whole and parts is not pushes[-1]:
            deltas += parser.release()
    return deltas + parser.finish()


def joined(deltas: Sequence[Delta]) -> tuple[str, list[tuple[str, str | None, str]]]:
    """The content, and name, id and arguments of each call. Calls begin in order and their arguments follow."""
    content = ""
    calls: list[tuple[str, str | None, str]] = []
    for delta in deltas:
        if isinstance(delta, Content):
            content += delta.text
        elif isinstance(delta, ToolCallStart):
            assert delta.index == len(calls)
            calls.append((delta.name, delta.id, ""))
        elif isinstance(delta, ToolCallArguments):
            assert delta.index == len(calls) - 1 and delta.text
            calls[-1] = (*calls[-1][:2], calls[-1][2] + delta.text)
        else:
            assert isinstance(delta, Reasoning)
    return content, calls


def cut(parts: Sequence[str], cuts: random.Random) -> list[list[str]]:
    """The parts in pushes of random sizes; ordinary text is also cut inside and joined."""
    pushes: list[list[str]] = [[]]
    for part in parts:
        pieces = [part]
        if type(part) is not Marker and len(part) > 1:
            place = cuts.randint(0, len(part))
            pieces = [part[:place], part[place:]]
        for piece in pieces:
            if cuts.random() < 0.4:
                pushes.append([])
            last = pushes[-1]
            if last and type(piece) is not Marker and type(last[-1]) is not Marker and cuts.random() < 0.5:
                last[-1] += piece
            else:
                last.append(piece)
    return pushes


def check(vector: Vector, tokenizer: Tokenizer) -> None:
    parts = parts_of(vector.output, ToolFormat(vector.name), tokenizer)
    content, calls = joined(read(vector.name, [parts], tokenizer, is_whole=True))
    assert content == vector.content
    assert [name for name, _, _ in calls] == [name for name, _ in vector.calls]
    for (_, _, text), (_, expected) in zip(calls, vector.calls, strict=True):
        assert (text if isinstance(expected, str) else json.loads(text)) == expected
    if any(vector.ids):
        assert [call_id for _, call_id, _ in calls] == vector.ids
    assert joined(read(vector.name, [parts], tokenizer)) == (content, calls)  # nothing was sent before
    characters = [[part] if type(part) is Marker else list(part) for part in parts]
    single = [[c] for chars in characters for c in chars]
    assert joined(read(vector.name, single, tokenizer, is_whole=True)) == (content, calls)
    streamed = joined(read(vector.name, single, tokenizer))
    if vector.sent is None:
        assert streamed == (content, calls)
    else:
        assert [(name, text) for name, _, text in streamed[1]] == vector.sent
    for seed in range(5):
        pushes = cut(parts, random.Random(seed))
        assert joined(read(vector.name, pushes, tokenizer, is_whole=True)) == (content, calls)
        check_streamed((content, calls), joined(read(vector.name, pushes, tokenizer)))
    check_streamed((content, calls), joined(read(vector.name, [[part] for part in parts], tokenizer)))


Read = tuple[str, list[tuple[str, str | None, str]]]


def check_streamed(whole: Read, streamed: Read) -> None:
    """A stream says what the whole answer does, but that it cannot take back a call whose arguments become no JSON."""
    if whole == streamed:
        return
    same = 0
    while same < min(len(whole[1]), len(streamed[1])) and whole[1][same] == streamed[1][same]:
        same += 1
    assert same < len(streamed[1]), (whole, streamed)
    with pytest.raises(ValueError):
        json.loads(streamed[1][same][2], parse_constant=refuse_constant)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector.name}-{vector.output[:24]!r}")
def test_vectors(vector: Vector, kind: str) -> None:
    check(vector, BOTH[kind])


@pytest.mark.parametrize("vector", HARMONY_VECTORS, ids=lambda vector: vector.output[:40])
def test_harmony(vector: Vector) -> None:
    check(vector, WITH_TOKENS)


@pytest.mark.parametrize("kind", BOTH)
def test_the_worked_example_of_the_table_is_true(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.strip() for line in (formats.__doc__ or "").splitlines() if line.startswith("    ")]
    output, row = (next(line for line in lines if line.startswith(begin)) for begin in ("<call>", "Entry("))
    monkeypatch.setitem(FORMATS, "worked example", eval(row, vars(formats)))
    check(Vector("worked example", output, [("weather", {"city": "Rome"})]), BOTH[kind])
    grammar = ToolFormat("worked example").grammar(TOOLS, at_least_one=True, parallel=False, tokenizer=BOTH[kind])
    assert "</call>" in grammar


def test_every_format_has_a_vector() -> None:
    assert {vector.name for vector in (*VECTORS, *HARMONY_VECTORS)} == set(FORMATS)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector.name}-{vector.output[:24]!r}")
def test_every_beginning_of_an_output(vector: Vector, kind: str) -> None:
    """Cut off anywhere, the stream is still that of the whole text at once, and loses no plain text."""
    tokenizer = BOTH[kind]
    parts = parts_of(vector.output, ToolFormat(vector.name), tokenizer)
    for end in range(len(parts)):
        whole = joined(read(vector.name, [parts[:end]], tokenizer, is_whole=True))
        check_streamed(whole, joined(read(vector.name, [[part] for part in parts[:end]], tokenizer)))
        if not whole[1]:
            check_content(vector.name, "".join(parts[:end]), whole[0])


def check_content(name: str, output: str, content: str) -> None:
    """Without a call everything is content, but blocks of marks alone."""
    if content == output:
        return
    marks = sorted({mark for mark in FORMATS[name].calls.marks if mark}, key=len, reverse=True)
    place = 0
    while place < len(output):
        if content and output.startswith(content[0], place):
            rest = next((mark for mark in marks if output.startswith(mark, place)), "")
            if not rest or content.startswith(rest):
                content, place = content[1:], place + 1
                continue
        mark = next((mark for mark in [*marks, *"[] \t\r\n"] if output.startswith(mark, place)), None)
        assert mark, (output, content)
        place += len(mark)
    assert not content


PIECES = [
    *sorted({mark for entry in FORMATS.values() for mark in entry.calls.marks if mark}),
    *("{", "}", "[", "]", "(", ")", ",", ":", ";", '"', "'", "\\", "=", "\n", " ", "<", "</", "|>", "`", ">"),
    *("weather", "now", "name", "arguments", "parameters", "city", "days", "3", "true", "None", "é🦜", "call:"),
    *(
        '{"name": "now", "arguments": {',
        '"city": "',
        "weather(city=",
        "<function=now>",
        "<parameter=city>",
        "functions.",
    ),
    *('<invoke name="now">', "assistant", "commentary to=functions.now", "\\u00", "1e", "-", "call:now{", "now[ARGS]{"),
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.sampled_from(PIECES), max_size=24).map("".join),
    st.sampled_from(sorted(BOTH)),
    st.randoms(use_true_random=False),
)
def test_cuts_do_not_matter(name: str, output: str, kind: str, cuts: random.Random) -> None:
    check_cuts(name, output, kind, cuts)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(VECTORS), st.sampled_from(sorted(BOTH)), st.randoms(use_true_random=False), st.data())
def test_cuts_do_not_matter_in_broken_calls(
    vector: Vector, kind: str, cuts: random.Random, data: st.DataObject
) -> None:
    """A vector from which something was taken out, and to which something was added."""
    start, end = sorted(data.draw(st.integers(0, len(vector.output))) for _ in range(2))
    added = data.draw(st.sampled_from(["", *PIECES]))
    check_cuts(vector.name, vector.output[:start] + added + vector.output[end:], kind, cuts)


def is_framed(name: str) -> bool:
    """Whether calls are messages, whose marks are tokens in every tokenizer."""
    return FORMATS[name].is_harmony or FORMATS[name].frames is not None


def check_cuts(name: str, output: str, kind: str, cuts: random.Random) -> None:
    tokenizer = BOTH[kind]
    parts = parts_of(output, ToolFormat(name), tokenizer)
    whole = joined(read(name, [parts], tokenizer, is_whole=True))
    pushes = cut(parts, cuts)
    assert whole == joined(read(name, [parts], tokenizer))
    assert whole == joined(read(name, pushes, tokenizer, is_whole=True))
    assert whole == joined(read(name, [[part] for part in parts], tokenizer, is_whole=True))
    check_streamed(whole, joined(read(name, pushes, tokenizer)))
    check_streamed(whole, joined(read(name, [[part] for part in parts], tokenizer)))
    if not whole[1] and not is_framed(name):
        check_content(name, output, whole[0])


def test_arguments_leave_as_they_arrive() -> None:
    parser = ToolFormat("hermes").parser(TOOLS, WITHOUT_TOKENS)

    def push(text: str) -> list[Delta]:
        return [*parser.push([text]), *parser.release()]

    assert push('<tool_call>\n{"name": "weather", "argu') == []
    assert push('ments": {"ci') == [ToolCallStart(0, "weather"), ToolCallArguments(0, '{"ci')]
    assert push('ty":  "Z') == [ToolCallArguments(0, 'ty":  "Z')]
    assert push('"}}\n</tool_c') == [ToolCallArguments(0, '"}')]
    assert [*parser.push(["all>"]), *parser.finish()] == []
    parser = ToolFormat("qwen3_coder").parser(TOOLS, WITHOUT_TOKENS)
    push("<tool_call>\n<function=weather>\n<parameter=city>")
    assert push("\nZü") == [ToolCallArguments(0, '{"city": "Zü')]
    assert push("rich\n") == [ToolCallArguments(0, "rich")]
    assert push("</parameter>\n</function>\n</tool_call>") == [ToolCallArguments(0, '"}')]


def test_content_leaves_as_it_arrives() -> None:
    parser = ToolFormat("hermes").parser(TOOLS, WITHOUT_TOKENS)
    assert parser.push(["a < b"]) == [Content("a < b")]
    assert parser.push([" <tool"]) == []
    assert parser.push(["box>"]) == [Content(" <toolbox>")]


def test_marks_spelled_with_ordinary_tokens_are_text_where_the_tokenizer_has_them_as_tokens() -> None:
    assert joined(read("hermes", [[hermes("now", "{}")]], WITH_TOKENS)) == (hermes("now", "{}"), [])
    inside = [Marker("<tool_call>"), '{"name": "note", "arguments": {"text": "', Marker("</tool_call>"), '"}}']
    content, calls = joined(read("hermes", [inside], WITH_TOKENS))
    assert (content, json.loads(calls[0][2])) == ("", {"text": "</tool_call>"})


def test_a_marker_of_another_format_is_text() -> None:
    assert joined(read("hermes", [["a", Marker("<|sep|>"), "b"]], WITH_TOKENS)) == ("a<|sep|>b", [])


def test_long_arguments_take_time_in_proportion() -> None:
    """Nothing is read again and again: the text that is kept stays short."""
    parser = ToolFormat("hermes").parser(TOOLS, WITHOUT_TOKENS)
    parser.push(['<tool_call>{"name": "note", "arguments": {"text": "'])
    parser.release()
    for _ in range(2000):
        assert [*parser.push(["word "]), *parser.release()] == [ToolCallArguments(0, "word ")]
        assert len(parser._scanner.text) < 64  # type: ignore[attr-defined]


def test_deep_nesting_ends() -> None:
    for name, text in (
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": ' + "[" * 100_000),
        ("gemma4", "<|tool_call>call:now{a:" + "[" * 100_000),
        ("gemma4", "<|tool_call>call:now{a:" + "{a:" * 100_000),
        ("pythonic", "[now(a=" + "[" * 100_000 + ")]"),
        ("qwen3_coder", "<function=note><parameter=tags>" + "[" * 100_000 + "</parameter></function>"),
        ("llama3_json", '{"function": ' * 10_000),
        ("hermes", "<tool_call>" + '{"function": ' * 10_000),
        ("xlam", "[{" * 10_000),
    ):
        joined(read(name, [[text]], WITHOUT_TOKENS))


def test_ids() -> None:
    assert ToolFormat("hermes").make_id(0, "f").startswith("chatcmpl-tool-")
    assert ToolFormat("kimi_k2").make_id(2, "f") == "functions.f:2"
    assert len(ToolFormat("mistral").make_id(0, "f")) == 9 and ToolFormat("mistral").make_id(0, "f").isalnum()
    assert ToolFormat("mistral").make_id(0, "f") != ToolFormat("mistral").make_id(0, "f")


def test_overrides() -> None:
    for name in FORMATS:
        assert choose_tool_format("<tool_call>", None, "", f" {name.upper()} ")[0] == ToolFormat(name)
    for alias, name in ALIASES.items():
        assert choose_tool_format("", None, "", alias) == (ToolFormat(name), "TOOL_CALL_PARSER says so")
    assert choose_tool_format("<tool_call>", None, "qwen3", "none")[0] is None
    with pytest.raises(ValueError, match=r"TOOL_CALL_PARSER=hermess.*qwen3_coder.*qwen3_json"):
        choose_tool_format("", None, "", "hermess")


@pytest.mark.parametrize("name", sorted(WITHOUT_FORM))
def test_names_of_forms_that_are_not_supported_are_known(name: str) -> None:
    assert name not in FORMATS and name not in ALIASES
    expected = f"TOOL_CALL_PARSER={name}: the form of these calls is not supported; there are hermes, .*, none"
    with pytest.raises(ValueError, match=expected):
        choose_tool_format("<tool_call>", None, "", name)


@pytest.mark.parametrize("suffix", ["", ":6124c78e"])
def test_a_checkpoint_may_have_marks_of_its_own(suffix: str) -> None:
    tags = ("tool_calls", "tool_call", "arg_key", "arg_value")
    marks = [f"<{slash}{tag}{suffix}>" for tag in tags for slash in ("", "/")]
    tokenizer = byte_tokenizer((*marks, f"<tool_sep{suffix}>"))
    output = f"Ok.<tool_calls{suffix}>\n{hunyuan('weather', suffix, city='Zürich', days='3')}</tool_calls{suffix}>"
    chosen = ToolFormat("hy_v3")
    assert {tokenizer.vocab_entry(token_id) for token_id in chosen.markers(tokenizer)} == {
        *marks,
        f"<tool_sep{suffix}>",
    }
    content, calls = joined(read("hy_v3", [parts_of(output, chosen, tokenizer)], tokenizer))
    assert (content, [(name, json.loads(text)) for name, _, text in calls]) == ("Ok.", [ONE])
    grammar = chosen.grammar(TOOLS, at_least_one=True, parallel=True, tokenizer=tokenizer)
    ids = [tokenizer.token_id(mark) for mark in (*marks, f"<tool_sep{suffix}>")]
    assert all(f"<[{token_id}]>" in grammar for token_id in ids)
