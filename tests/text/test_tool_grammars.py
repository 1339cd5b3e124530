"""Grammars of tool calls: what a model is held to can be read back, and fits the tools' schemas."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools import ToolFormat
from ember.front.text.tools.formats import FORMATS
from tests.support.byte_tokenizer import EOS, byte_tokenizer
from tests.text.parts import parts_of
from tests.text.test_tools import BOTH, WITH_TOKENS, is_framed, joined, read
from tests.text.tool_vectors import HARMONY_VECTORS, NOW, ONE, TOOLS, VECTORS, tool

RICH = [
    *TOOLS,
    tool(
        "book",
        ("kind", "seats", "who"),
        kind={"enum": ["train", "bus <A>"]},
        seats={
            "type": "array",
            "items": {"type": "integer", "minimum": 1, "maximum": 99},
            "minItems": 1,
            "maxItems": 3,
        },
        who={
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 5}, "child": {"type": "boolean"}},
            "required": ["name"],
            "additionalProperties": False,
        },
        code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
        price={"type": ["number", "null"]},
        via={"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]},
    ),
]
SNIPPETS = [
    *(
        "\n</parameter>",
        "</parameter>",
        "</｜DSML｜parameter>",
        "</arg_value>",
        "]<]minimax[>[",
        "</atem:parameter>",
        "</ifm|arg_value>",
        "<|close|>argument<|sep|>",
        '<|"|>',
        "<escape>",
        '"',
        "'",
        "]",
        "}",
        ")",
    ),
    *("</function>", "</invoke>", "</｜DSML｜invoke>", "</tool_call>", "\n</tool_call>", '"}', "1", "null", "é🦜"),
]


@lru_cache(maxsize=4)
def engine_tokenizer(tokenizer: Tokenizer) -> LLTokenizer:
    eos = tokenizer.token_id(EOS)
    assert eos is not None
    return LLTokenizer(tokenizer._backend.to_str(), eos_token=[eos])


def matcher(
    name: str, tokenizer: Tokenizer, tools: list[dict[str, Any]], at_least_one: bool = True, parallel: bool = True
) -> LLMatcher:
    grammar = ToolFormat(name).grammar(tools, at_least_one=at_least_one, parallel=parallel, tokenizer=tokenizer)
    made = LLMatcher(engine_tokenizer(tokenizer), LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not made.is_error(), made.get_error()
    return made


def accepts(made: LLMatcher, tokenizer: Tokenizer, text: str) -> bool:
    own = made.deep_copy()
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return own.try_consume_tokens(token_ids) == len(token_ids) and own.is_accepting()


def walk(made: LLMatcher, tokenizer: Tokenizer, chance: random.Random) -> str | None:
    """A random output that the grammar allows; None for one that does not end soon."""
    own = made.deep_copy()
    snippets = [tokenizer.encode(text, add_special_tokens=False) for text in SNIPPETS]
    taken: list[int] = []
    eos = tokenizer.token_id(EOS)
    for _ in range(1500):
        if own.is_stopped() or (own.is_accepting() and chance.random() < 0.7):
            break
        if chance.random() < 0.4:
            chance.shuffle(snippets)
            fit = next((ids for ids in snippets if own.validate_tokens(ids) == len(ids)), None)
            if fit is not None:
                own.consume_tokens(fit)
                taken += fit
                continue
        mask = own.compute_bitmask()
        allowed = [i for i in range(tokenizer.vocab_size) if mask[i // 8] >> (i % 8) & 1 and i != eos]
        if not allowed:
            break
        plain = [i for i in allowed if 0x20 <= (tokenizer.token_bytes(i) or b"\0")[0] < 0x7F]
        own.consume_token(token := chance.choice(plain or allowed))
        taken.append(token)
    return tokenizer.decode(taken, skip_special_tokens=False) if own.is_accepting() else None


def schemas(tools: list[dict[str, Any]]) -> dict[str, Any]:
    return {entry["function"]["name"]: entry["function"]["parameters"] for entry in tools}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_allowed_can_be_read_back_and_fits(name: str, kind: str) -> None:
    if is_framed(name) and kind == "text":
        pytest.skip("the marks of messages are tokens in every tokenizer")
    tokenizer = BOTH[kind]
    made = matcher(name, tokenizer, RICH)
    wanted = schemas(RICH)
    seen: set[str] = set()
    for seed in range(12):
        output = walk(made, tokenizer, random.Random(seed))
        if output is None:
            continue
        content, calls = joined(read(name, [parts_of(output, ToolFormat(name), tokenizer)], tokenizer, RICH))
        assert calls and content == "", output
        for called, _, arguments in calls:
            jsonschema.validate(json.loads(arguments), wanted[called])
            seen.add(called)
    assert len(seen) >= 2, seen


@pytest.mark.parametrize("name", FORMATS)
def test_one_call_where_calls_are_not_parallel(name: str) -> None:
    made = matcher(name, WITH_TOKENS, TOOLS[1:2], parallel=False)
    for seed in range(3):
        output = walk(made, WITH_TOKENS, random.Random(seed))
        assert output is not None
        _, calls = joined(read(name, [parts_of(output, ToolFormat(name), WITH_TOKENS)], WITH_TOKENS))
        assert [(called, arguments.replace(" ", "")) for called, _, arguments in calls] == [("now", "{}")]
        assert not accepts(made, WITH_TOKENS, output + output)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", FORMATS)
def test_text_may_stand_before_calls_that_are_not_demanded(name: str, kind: str) -> None:
    if is_framed(name) and kind == "text":
        pytest.skip("the marks of messages are tokens in every tokenizer")
    tokenizer = BOTH[kind]
    strict = [tool("weather", ("city",), strict=True, city={"enum": ["Rome"]}), *TOOLS[1:]]
    made = matcher(name, tokenizer, strict, at_least_one=False)
    assert accepts(made, tokenizer, "Nothing to call, [1] and {2}.")
    call = walk(matcher(name, tokenizer, strict[:1]), tokenizer, random.Random(0))
    assert call is not None and accepts(made, tokenizer, call)
    assert not accepts(made, tokenizer, call.replace("Rome", "Oslo"))
    if FORMATS[name].calls.marks and any(mark in call for mark in FORMATS[name].calls.marks):
        assert accepts(made, tokenizer, "I look." + call)
    assert not accepts(matcher(name, tokenizer, strict), tokenizer, "Nothing to call.")


def spelled(name: str) -> str:
    """The calls of a vector."""
    return next(vector.output for vector in VECTORS if vector.name == name and vector.calls == [ONE, NOW]).removeprefix(
        "Ok."
    )


def test_published_spellings_are_allowed() -> None:
    """Whole calls of the vectors that are spelled as the family's template spells them."""
    for name, output in (
        ("hermes", VECTORS[0].output),
        ("llama3_json", '{"name": "weather", "parameters": {"city": "Rome", "days": 3}}'),
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Rome", "days": 3}'),
        (
            "qwen3_coder",
            "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        ),
        ("glm45", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>"),
        ("glm47", "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>"),
        ("gemma4", '<|tool_call>call:weather{city:<|"|>Rome<|"|>,days:3}<tool_call|>'),
        ("pythonic", '[weather(city="Rome", days=3), now()]'),
        ("openai", "<|start|>assistant" + next(vector.output for vector in HARMONY_VECTORS if vector.name == "openai")),
        ("deepseek_v3", spelled("deepseek_v3")),
        (
            "cohere_command3",
            '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Rome"}}, '
            '{"tool_call_id": "1", "tool_name": "now", "parameters": {}}]<|END_ACTION|>',
        ),
        ("apertus", '<|tools_prefix|>[{"weather": {"city": "Rome"}}, {"now": {}}]<|tools_suffix|>'),
        ("gigachat3", '<|function_call|>{"name": "weather", "arguments": {"city": "Rome"}}'),
        (
            "step3",
            '<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="weather">\n'
            '<steptml:parameter name="city">Rome</steptml:parameter>\n</steptml:invoke><｜tool_call_end｜>\n'
            "<｜tool_calls_end｜>",
        ),
        (
            "hy_v3",
            "<tool_calls>\n<tool_call>weather<tool_sep>\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
            "</tool_call>\n</tool_calls>",
        ),
        (
            "minicpm5",
            '<function name="weather"><param name="city">Rome</param></function><function name="now"></function>',
        ),
        ("kimi_k2", spelled("kimi_k2")),
    ):
        assert accepts(matcher(name, WITH_TOKENS, TOOLS), WITH_TOKENS, output), name


def test_mistral_writes_a_list_where_its_tokenizer_is_of_the_older_kind() -> None:
    older = byte_tokenizer(("[TOOL_CALLS]",))
    made = matcher("mistral", older, TOOLS)
    assert accepts(made, older, '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome", "days": 3}}]')
    assert not accepts(made, older, '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}')


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"days": 3}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "now", "arguments": {"x": 1}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "now", "arguments": {}}'),
        ("llama3_json", '{"name": "weather", "parameters": {"city": 3}}'),
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Rome", "days": 99}'),
        ("qwen3_coder", "<tool_call>\n<function=weather>\n</function>\n</tool_call>"),
        (
            "qwen3_coder",
            "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n"
            "<parameter=days>\nthree\n</parameter>\n</function>\n</tool_call>",
        ),
        ("glm45", "<tool_call>weather\n<arg_key>town</arg_key>\n<arg_value>Rome</arg_value>\n</tool_call>"),
        ("gemma4", "<|tool_call>call:weather{city:Rome}<tool_call|>"),
        ("gemma4", '<|tool_call>call:weather{city:<|"|>Rome<|"|>,days:15}<tool_call|>'),
        ("pythonic", "[weather(days=3)]"),
        ("pythonic", "[weather(city=Rome)]"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, output: str) -> None:
    assert not accepts(matcher(name, WITH_TOKENS, TOOLS), WITH_TOKENS, output)


def strict(parameters: Any, name: str = "f", is_strict: bool = True) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": is_strict}}


UNENFORCEABLE: list[tuple[Any, str]] = [
    ({"type": "array"}, "type object"),
    ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "`uniqueItems`"),
    ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "`not`"),
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": "a(?=b)"}}}, "`pattern`"),
    ({"type": "object", "properties": {"a": {"type": "string", "pattern": "a**"}}}, "`pattern`"),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/gone"}}, "required": ["a"]}, "`.ref`"),
    ({"type": "object", "properties": {"a": {"type": "strin"}}}, "`type`"),
    ({"type": "object", "properties": ["a"]}, "`properties`"),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": True}, "`required`"),
    ({"type": "object", "properties": {"a": 3}}, "`schema`"),
    ({"type": "object", "properties": {"a": {}}, "if": {}, "then": {}}, "`if`"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no (value|call)"),
]


@pytest.mark.parametrize(("parameters", "words"), UNENFORCEABLE)
@pytest.mark.parametrize("name", FORMATS)
def test_schemas_that_cannot_be_enforced(name: str, parameters: Any, words: str) -> None:
    """A strict tool is refused, with its name; another one is held to the rest of its schema."""
    with pytest.raises(ValueError, match=f"in the schema of 'f': .*{words}"):
        ToolFormat(name).grammar([strict(parameters)], at_least_one=True, parallel=True, tokenizer=WITH_TOKENS)
    tools = [strict(parameters, is_strict=False), strict({"type": "object", "properties": {}}, "g")]
    for at_least_one in (True, False):
        made = matcher(name, WITH_TOKENS, tools, at_least_one)
        assert not made.is_stopped()


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "gemma4", "pythonic"])
def test_schemas_that_are_too_large_together(name: str) -> None:
    properties = {f"a property with a long name {i}": {"type": "integer", "maximum": i} for i in range(30)}
    tools = [strict({"type": "object", "properties": properties}, f"tool_{i}", is_strict=False) for i in range(150)]
    matcher(name, WITH_TOKENS, tools)
    held = [strict({"type": "object", "properties": properties}, f"tool_{i}") for i in range(150)]
    with pytest.raises(ValueError, match="too large"):
        ToolFormat(name).grammar(held, at_least_one=True, parallel=True, tokenizer=WITH_TOKENS)


@pytest.mark.parametrize("name", ["gemma4", "functiongemma"])
def test_a_number_without_quotes_is_none_of_the_strings(name: str) -> None:
    either = {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "minimum": 1000}]}
    tools = [strict({"type": "object", "properties": {"a": either}, "required": ["a"]})]
    made = matcher(name, WITH_TOKENS, tools, parallel=False)
    found = set()
    for seed in range(12):
        output = walk(made, WITH_TOKENS, random.Random(seed))
        if output is not None:
            _, calls = joined(read(name, [parts_of(output, ToolFormat(name), WITH_TOKENS)], WITH_TOKENS, tools))
            value = json.loads(calls[0][2])["a"]
            jsonschema.validate(value, either)
            found.add(type(value))
    assert found == {int, str}


def test_there_must_be_a_tool() -> None:
    with pytest.raises(ValueError, match="no tool"):
        ToolFormat("hermes").grammar([], at_least_one=True, parallel=True, tokenizer=WITH_TOKENS)


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "gemma4", "pythonic", "glm45"])
def test_the_rest_of_a_schema_is_enforced_and_the_log_names_what_is_not(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {"type": "array", "items": {"enum": ["x", "y"]}, "uniqueItems": True, "maxItems": 2}
    parameters = {
        "type": "object",
        "properties": {"kinds": kinds, "size": {"type": "integer", "maximum": 5, "not": {"const": 3}}},
        "required": ["kinds", "size"],
    }
    tools = [strict(parameters, f"save_{name}", is_strict=False)]
    made = matcher(name, WITH_TOKENS, tools)
    matcher(name, WITH_TOKENS, tools)
    told = [record.getMessage() for record in caplog.records if f"save_{name}" in record.getMessage()]
    assert len(told) == 1 and "not, uniqueItems" in told[0]
    without: dict[str, Any] = json.loads(json.dumps(parameters))
    del without["properties"]["kinds"]["uniqueItems"], without["properties"]["size"]["not"]
    num_read = 0
    for seed in range(8):
        output = walk(made, WITH_TOKENS, random.Random(seed))
        if output is not None:
            _, calls = joined(read(name, [parts_of(output, ToolFormat(name), WITH_TOKENS)], WITH_TOKENS, tools))
            for _, _, arguments in calls:
                jsonschema.validate(json.loads(arguments), without)
                num_read += 1
    assert num_read


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "gemma4", "pythonic", "glm45"])
def test_recursive_and_composed_schemas(name: str) -> None:
    node = {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
        "required": ["v"],
    }
    parameters = {
        "type": "object",
        "$defs": {"node": node},
        "properties": {"root": {"$ref": "#/$defs/node"}},
        "required": ["root"],
    }
    either = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    }
    tools = [
        {"type": "function", "function": {"name": "tree", "parameters": parameters}},
        {"type": "function", "function": {"name": "either", "parameters": either}},
    ]
    made = matcher(name, WITH_TOKENS, tools)
    seen = set()
    for seed in range(12):
        output = walk(made, WITH_TOKENS, random.Random(seed))
        if output is None:
            continue
        _, calls = joined(read(name, [parts_of(output, ToolFormat(name), WITH_TOKENS)], WITH_TOKENS, tools))
        for called, _, arguments in calls:
            jsonschema.validate(json.loads(arguments), schemas(tools)[called])
            seen.add(called)
    assert seen == {"tree", "either"}
