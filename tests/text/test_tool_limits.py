"""What an output or a schema may cost: work in proportion to its length, and never an error that is ours."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from ember.front.text import json_one_of, json_reference
from ember.front.text.output import Content, Marker, Reasoning, ToolCallArguments, ToolCallStart
from ember.front.text.tools import ToolFormat, scanner
from ember.front.text.tools.formats import FORMATS
from ember.front.text.tools.schema import Tool
from tests.text.parts import parts_of
from tests.text.test_reasoning import format_of
from tests.text.test_tools import BOTH, WITH_TOKENS, WITHOUT_TOKENS, check_cuts, cut, joined, read
from tests.text.tool_vectors import HARMONY_VECTORS, TOOLS, VECTORS


def num_events(work: Any) -> int:
    """How many functions are called, those of C too."""
    count = 0

    def tick(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tick)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


# ------------------------------------------------------------------------------------------------------------ schemas


def branching(keyword: str) -> dict[str, Any]:
    return {"$defs": {"x": {keyword: [{"$ref": "#/$defs/x"}] * 8 + [{"type": "string"}]}}, "$ref": "#/$defs/x"}


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf"])
def test_types_of_a_schema_that_refers_to_itself(keyword: str) -> None:
    tool = Tool(
        "f", {"type": "object", "properties": {"a": branching(keyword)}, "$defs": branching(keyword)["$defs"]}, False
    )
    made: list[Any] = []
    assert num_events(lambda: made.append(tool.types("a"))) < 2000
    assert made == [("string",)]


def test_types_of_schemas_that_share_their_parts() -> None:
    levels = {f"l{i}": {"anyOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 2} for i in range(14)}
    definitions = {**levels, "l14": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}
    tool = Tool("f", {"$defs": definitions, "properties": {"a": {"$ref": "#/$defs/l0"}}}, False)
    made: list[Any] = []
    assert num_events(lambda: made.append(tool.types("a"))) < 2000
    assert made == [("integer", "null")]


def test_types_are_found_once_for_each_argument() -> None:
    tool = Tool("f", {"properties": {"a": {"anyOf": [{"const": i} for i in range(500)]}}}, False)
    first = num_events(lambda: tool.types("a"))
    assert num_events(lambda: tool.types("a")) < first / 50


def test_an_untyped_branch_allows_everything() -> None:
    tool = Tool("f", {"properties": {"a": {"anyOf": [{"type": "string"}, {}]}, "b": {"allOf": [{}, {}]}}}, False)
    assert (tool.types("a"), tool.types("b"), tool.types("c")) == ((), (), None)


@pytest.mark.parametrize("name", ["qwen3_coder", "pythonic", "gemma4", "hermes", "deepseek_v32"])
@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf"])
def test_grammars_of_schemas_that_refer_to_themselves_come_to_an_end(name: str, keyword: str) -> None:
    inner = {"type": "object", "$defs": branching(keyword)["$defs"], "properties": {"a": {"$ref": "#/$defs/x"}}}
    head = {"type": "object", keyword: [{"$ref": "#"}]}
    for parameters in (inner, head):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]

        def work() -> None:
            try:
                ToolFormat(name).grammar(tools, at_least_one=True, parallel=True, tokenizer=WITHOUT_TOKENS)  # noqa: B023
            except ValueError as error:
                assert str(error)

        assert num_events(work) < 60_000


@pytest.mark.parametrize("name", ["gemma4", "qwen3_coder"])
def test_grammars_of_schemas_that_share_their_parts_come_to_an_end(name: str) -> None:
    levels = {f"l{i}": {"anyOf": [{"allOf": [{"$ref": f"#/$defs/l{i + 1}"}]}] * 2} for i in range(20)}
    definitions = {**levels, "l20": {"type": "integer"}}
    parameters = {"type": "object", "$defs": definitions, "properties": {"a": {"$ref": "#/$defs/l0"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]

    def work() -> None:
        try:
            ToolFormat(name).grammar(tools, at_least_one=True, parallel=True, tokenizer=WITHOUT_TOKENS)
        except ValueError as error:
            assert "too large" in str(error)

    assert num_events(work) < 2_000_000


def exclusive(num_branches: int, num_values: int) -> tuple[Any, list[Any]]:
    branches = [
        {
            "type": "object",
            "properties": {"kind": {"enum": [f"{i}-{j}" for j in range(num_values)]}},
            "required": ["kind"],
        }
        for i in range(num_branches)
    ]
    return {"oneOf": branches}, branches


def test_values_of_branches_are_looked_at_once() -> None:
    root, branches = exclusive(30, 60)
    exclusion = json_one_of.Exclusion(root)
    made: list[Any] = []
    assert num_events(lambda: made.append(exclusion.excludes(branches, None))) < 60 * 30 * 60
    assert made == [True]
    branches[3]["properties"]["kind"]["enum"][5] = "17-2"
    assert not json_one_of.Exclusion(root).excludes(branches, None)


def test_very_many_values_are_not_looked_at() -> None:
    root, branches = exclusive(2, json_one_of.MAX_VALUES + 1)
    exclusion = json_one_of.Exclusion(root)
    made: list[Any] = []
    assert num_events(lambda: made.append(exclusion.excludes(branches, None))) < 1000
    assert made == [False]
    root, branches = exclusive(2, json_one_of.MAX_VALUES)
    assert json_one_of.Exclusion(root).excludes(branches, None)


def test_required_names_without_values_cost_little() -> None:
    branches = [{"type": "object", "required": [f"n{i}" for i in range(5000)]} for _ in range(40)]
    assert num_events(lambda: json_one_of.Exclusion({"oneOf": branches}).excludes(branches, None)) < 400_000


@pytest.mark.parametrize("index", ["9" * 5000, "٣", "01", "-1", "3", ""])
def test_an_index_that_is_none_leads_nowhere(index: str) -> None:
    document = {"a": [1, 2, 3]}
    assert json_reference.References(document).lookup(f"#/a/{index}", document) is None
    assert json_reference.References(document).lookup("#/a/2", document) == 3


# ------------------------------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("hermes", '<tool_call>\n{"name": "f\\ud800", "arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "f\\udfff", "arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": "{\\"a\\": \\"\\udc00\\"}"}\n</tool_call>'),
        ("llama3_json", '{"name": "now", "parameters": "{\\"a\\": \\"\\udc00\\"}"}'),
        ("pythonic", "[now(a='\\udc00')]"),
        ("qwen3_coder", "<function=note>\n<parameter=tags>\n['\\udc00']\n</parameter>\n</function>"),
    ],
)
def test_lone_surrogates_leave_as_no_surrogates(name: str, output: str) -> None:
    for tokenizer in BOTH.values():
        _, calls = joined(read(name, [parts_of(output, ToolFormat(name), tokenizer)], tokenizer))
        assert len(calls) == 1
        for text in (calls[0][0], calls[0][2]):
            text.encode()
        json.loads(calls[0][2])


def test_a_surrogate_in_a_name_is_no_marker() -> None:
    output = '<tool_call>\n{"name": "f\\ud800\\ud801", "arguments": {}}\n</tool_call>'
    _, calls = joined(read("hermes", [parts_of(output, ToolFormat("hermes"), WITH_TOKENS)], WITH_TOKENS))
    assert [name for name, _, _ in calls] == ["f\ufffd\ufffd"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_marker_in_a_name_is_spelled_out_or_refused(name: str) -> None:
    chosen = ToolFormat(name)
    for vector in VECTORS:
        if vector.name != name or "weather" not in vector.output:
            continue
        before, _, behind = vector.output.partition("weather")
        head, tail = parts_of(before + "wea", chosen, WITH_TOKENS), parts_of("ther" + behind, chosen, WITH_TOKENS)
        for text in sorted(WITH_TOKENS.vocab_entry(token_id) or "" for token_id in chosen.markers(WITH_TOKENS)):
            for delta in read(name, [[*head, Marker(text), *tail]], WITH_TOKENS):
                if isinstance(delta, ToolCallStart):
                    delta.name.encode()
                else:
                    assert isinstance(delta, Content | ToolCallArguments | Reasoning)
                    delta.text.encode()


def test_very_long_numbers_are_no_error() -> None:
    digits = "9" * 4400
    for name, output in (
        ("hermes", f'<tool_call>\n{{"name": "now", "arguments": {digits}}}\n</tool_call>'),
        ("hermes", f'<tool_call>\n{{"name": "now", "arguments": {{"a": {digits}}}}}\n</tool_call>'),
        ("hermes", f'<tool_call>\n{{"name": "now", "arguments": [{digits}]}}\n</tool_call>'),
        ("hermes", f'<tool_call>\n{{"name": "now", "arguments": "{{\\"a\\": {digits}}}"}}\n</tool_call>'),
        ("qwen3_coder", f"<function=weather>\n<parameter=days>\n{digits}\n</parameter>\n</function>"),
        ("qwen3_coder", f"<function=note>\n<parameter=tags>\n[{digits}]\n</parameter>\n</function>"),
        ("pythonic", f"[weather(days={digits})]"),
        ("gemma4", f"<|tool_call>call:weather{{days:{digits}}}<tool_call|>"),
        ("deepseek_v32", f'<｜DSML｜invoke name="now"><｜DSML｜parameter name="a" string="false">{digits}'),
    ):
        check_cuts(name, output, "text", random.Random(0))


LONG_NAMES = [
    ("hermes", '<tool_call>\n{"name": "%s", "arguments": {}}\n</tool_call>'),
    ("hermes", '<tool_call>\n{"%s": 1, "name": "now", "arguments": {}}\n</tool_call>'),
    ("olmo3", "<function_calls>%s()</function_calls>"),
    ("qwen3_coder", "<function=%s>\n</function>"),
    ("qwen3_coder", "<function=now>\n<parameter=%s>\n1\n</parameter>\n</function>"),
    ("gemma4", "<|tool_call>call:%s{}<tool_call|>"),
    ("kimi_k2", "<|tool_call_begin|>%s<|tool_call_argument_begin|>{}<|tool_call_end|>"),
]


@pytest.mark.parametrize(("name", "output"), LONG_NAMES)
@pytest.mark.parametrize("length", [250, 256, 257, 300, 1020, 1024, 1025, 1100, 5000])
def test_cuts_do_not_matter_in_long_names(name: str, output: str, length: int) -> None:
    check_cuts(name, output % ("n" * length), "text", random.Random(length))


UNITS = [
    *("{", "[", "(", "<", "`", '"', "'", "\\", " ", "\n", ",", ":", "a", "🦜"),
    *('{"', '{"name": "now", ', '{"x": "', '{"x": {', '{"name": "now", "parameters": {}}; ', "[now(", "[now([", "now("),
    *("[weather('", '[weather(city="""', "[f(x=", '{"name": ', '{"name":"now","arguments":', "}", "]", ")", "x=1,"),
    *(
        "<function=now>",
        "<parameter=tags>[",
        '<parameter=tags>["',
        "<invoke name=",
        "call:now{a:",
        "functools[",
        "```json",
    ),
    *("functions.now", "now\n", "assistant", "commentary to=functions.now ", '"a', "\\u00", "1", "{a:[", "[call:now"),
]


def units(name: str) -> list[str]:
    marks = [mark for mark in FORMATS[name].calls.marks if mark]
    first = marks[0] if marks else ""
    return [
        *marks,
        *("".join(pair) for pair in itertools.pairwise(marks)),
        *UNITS,
        *(first + unit for unit in UNITS if first),
        *(mark + "now" for mark in marks),
        *(mark + "\n" for mark in marks),
    ]


def work_of(name: str, parts: Sequence[str], at_once: bool) -> int:
    pushes = [parts] if at_once else [[part] for part in parts]
    parser = ToolFormat(name).parser(TOOLS, WITHOUT_TOKENS)

    def work() -> None:
        for push in pushes:
            parser.push(push)
            if not at_once:
                parser.release()
        parser.finish()

    return num_events(work)


@pytest.mark.parametrize("at_once", [True, False], ids=["whole", "stream"])
@pytest.mark.parametrize("name", FORMATS)
def test_work_is_in_proportion_to_the_output(name: str, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the output, about twice the work, whatever is repeated in it: nothing is read again and again."""
    length, step = (240, 1) if at_once else (120, 2)  # a stream's work is that of each push before all
    monkeypatch.setattr(scanner, "FREE_REPEATS", length)
    for unit in list(dict.fromkeys(units(name)))[::step]:
        num = 1 + length // len(unit)
        short, long = (work_of(name, list(unit * count), at_once) for count in (num, 3 * num))
        assert long < 4.2 * short + 5 * length, unit


@pytest.mark.parametrize("name", FORMATS)
def test_cuts_do_not_matter_where_the_reading_was_given_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanner, "FREE_REPEATS", 64)
    monkeypatch.setattr(scanner, "REPEATS", 0)
    call = next(vector.output for vector in (*VECTORS, *HARMONY_VECTORS) if vector.name == name and vector.calls)
    for unit in dict.fromkeys(units(name)):
        check_cuts(name, unit * 5 + call + unit, "text", random.Random(1))


def test_after_many_failures_a_call_is_still_found() -> None:
    output = "See [1] and [x](y). " * 2000 + "[now()]"
    _, calls = joined(read("pythonic", [[output]], WITHOUT_TOKENS))
    assert [name for name, _, _ in calls] == ["now"]


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "granite", "hunyuan_a13b", "ernie45", "openai_gptoss"])
@pytest.mark.parametrize(
    "unit", ["\n", " ", "<", "a", "<think>", "</think>\n", "Here is ", "<answer>", "<|start|>", "<|start|>a"]
)
def test_reasoning_takes_work_in_proportion(name: str, unit: str) -> None:
    def work(count: int) -> int:
        chosen = format_of(name)
        pushes = [list(parts_of(unit, chosen, WITH_TOKENS)) for _ in range(count)]
        parser = chosen.parser(WITH_TOKENS, WITH_TOKENS.encode("<|assistant|>", False), {}, with_tools=True)

        def run() -> None:
            for parts in pushes:
                parser.push(parts)
            parser.finish()

        return num_events(run)

    assert work(600) < 3.6 * work(200) + 1000


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "hunyuan_a13b"])
@pytest.mark.parametrize("blanks", [4000, 4096, 4097, 5000])
def test_cuts_do_not_matter_behind_very_many_blanks(name: str, blanks: int) -> None:
    from tests.text.test_reasoning import joined as joined_reasoning
    from tests.text.test_reasoning import read as read_reasoning

    output = " " * blanks + "<think>a</think>" + "\n" * blanks + "<answer>b</answer>"
    for tokenizer in BOTH.values():
        parts = parts_of(output, format_of(name), tokenizer)
        whole = joined_reasoning(read_reasoning(name, "", [parts], tokenizer))
        assert whole == joined_reasoning(read_reasoning(name, "", [[part] for part in parts], tokenizer))
        assert whole == joined_reasoning(read_reasoning(name, "", cut(parts, random.Random(2)), tokenizer))
