"""Which texts the grammar of a schema takes: valid values in the usual spellings, and no others."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from ember.engine.core.grammars.grammar import compile_grammar, load_tokenizer
from ember.front.text.json_schema import schema_grammar
from ember.wire import Grammar
from tests.structured.json_model import NUM_ROWS, load
from tests.structured.schemas import ALL, BOOLEAN, INTEGER, record
from tests.structured.test_schemas import complaint

_TAGGED = {"oneOf": [record("t a", t={"const": "x"}, a=INTEGER), record("t b", t={"const": "y"}, b=INTEGER)]}


def string(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


CASES: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    (string(format="date"), ["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-04-31"]),
    (
        string(format="date"),
        ["0001-01-01"],
        ["0000-01-01", "2024-1-1", "2024-13-01", "2024-00-10", "2024-01-01T00:00:00Z"],
    ),
    (string(format="time"), ["23:59:59Z", "00:00:00.123456+14:00"], ["24:00:00Z", "23:60:00Z", "23:59:59", "1:00:00Z"]),
    (string(format="date-time"), ["2024-02-29T12:00:00Z"], ["2024-02-30T12:00:00Z", "2024-02-29 12:00:00Z"]),
    (string(format="uuid"), ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    (string(format="ipv4"), ["127.0.0.1"], ["256.0.0.1", "1.2.3"]),
    (string(format="json-pointer"), ["", "/a/~0~1/0"], ["a", "/~2"]),
    (string(pattern=r"^\d{2}$"), ["12"], ["123", "1", "١٢"]),
    (string(pattern="b"), ["abc", "b"], ["ac"]),
    (string(pattern="^a|c$"), ["ab", "bc", "a"], ["ba", "b"]),
    (string(minLength=2, maxLength=3), ["ab", "äöü", 'a"'], ["a", "abcd"]),
    (string(pattern="^[^x]*$", maxLength=4), ["", "a\nb", "\\"], ["axb"]),
    ({"type": "integer", "minimum": -3, "maximum": 12}, [-3, 0, 9, 12], [-4, 13, 1.5, "1"]),
    ({"type": "integer", "minimum": 7, "exclusiveMinimum": True, "maximum": 9}, [8, 9], [7, 10]),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, [0.5, 1], [0, 1.5, -1]),
    ({"type": "integer", "multipleOf": 7}, [0, 7, 49], [8]),
    ({"type": ["integer", "null"], "minimum": 3}, [3, None], [2, "a"]),
    ({"enum": [1, "a", None, {"x": [1]}]}, [1, "a", None, {"x": [1]}], [2, "b", {"x": [2]}]),
    (
        record("a", a=INTEGER, b=BOOLEAN),
        [{"a": 1}, {"a": 1, "b": True}],
        [{}, {"b": True}, {"a": 1, "c": 1}, {"a": "1"}],
    ),
    (record("z", rest=INTEGER, a=BOOLEAN), [{"z": 1}, {"a": True, "z": 2, "y": 3}], [{"a": True}, {"z": True}]),
    (
        {"type": "object", "propertyNames": {"enum": ["p", "q"]}, "additionalProperties": INTEGER},
        [{"p": 1}],
        [{"r": 1}],
    ),
    ({"type": "object", "minProperties": 1, "maxProperties": 2}, [{"a": 1}, {"a": 1, "b": 2}], [{}]),
    ({"type": "array", "prefixItems": [INTEGER], "items": BOOLEAN, "maxItems": 2}, [[1, True], []], [[True], [1, 1]]),
    (
        {"type": "array", "prefixItems": [INTEGER], "additionalItems": False, "minItems": 1, "maxItems": 2},
        [[1], [1, True]],
        [["a"], [], [1, 2, 3]],
    ),
    (
        ALL["names by pattern beside named"],
        [{"id": 1}, {"id": 1, "s_a": "x"}],
        [{"id": 1, "s_a": 1}, {"id": 1, "q": 1}],
    ),
    (_TAGGED, [{"t": "x", "a": 1}, {"t": "y", "b": 1}], [{"t": "x", "b": 1}, {"t": "z"}, {}]),
    (ALL["one of, recursive"], [True, [None, [True]], []], [1, [1]]),
    (ALL["one of beside any of"], [3, 5], [2, 6]),
    (ALL["all of records"], [{"a": 1, "b": True}], [{"a": 1}, {"b": True}]),
    (ALL["linked list"], [{"value": 1, "next": {"value": 2, "next": None}}], [{"value": 1}, {"value": 1, "next": 1}]),
    (ALL["described child"], [{"v": True, "child": {"v": False}}], [{"child": {"v": True}}, {"v": True, "child": {}}]),
    (
        ALL["Sum"],
        [{"op": "sum", "left": {"op": "lit", "value": 1}, "right": {"op": "lit", "value": 2}}],
        [{"op": "sum"}],
    ),
    (ALL["any object"], [{}, {"a": [1, {"b": None}], "c": "x"}], [1, [], "a"]),
]


@pytest.fixture(scope="module")
def accepts(directory):
    """Whether the grammar of a schema takes the whole text."""
    tokenizer = load(directory)
    vocabulary = load_tokenizer(directory, NUM_ROWS, [tokenizer.eos_token_id])

    def check(schema: dict[str, Any], text: str, **options: Any) -> bool:
        grammar = Grammar("json", schema_grammar(schema, **options))
        matcher = compile_grammar(vocabulary, grammar)
        return matcher.consume_tokens(tokenizer.encode(text, add_special_tokens=False)) and matcher.is_accepting()

    return check


@pytest.mark.parametrize(
    ("bounds", "good", "bad"),
    [
        ({"minimum": 1e308}, ["1" + "0" * 308, "1" + "0" * 308 + ".5", "9" * 309], ["9" * 308, "1", "-1" + "0" * 308]),
        ({"maximum": -1e308}, ["-1" + "0" * 308], ["1" + "0" * 308, "-1"]),
        ({"minimum": 18}, ["18", "18.5", "19", "100.25"], ["17", "17.9", "9", "-18"]),
        ({"minimum": 18, "maximum": 20}, ["18", "18.5", "19.99", "20"], ["20.1", "17.9", "180"]),
        ({"exclusiveMinimum": 18}, ["18.5", "19"], ["18", "17.9"]),
        ({"minimum": 0}, ["0", "0.5", "7.25"], ["-1", "00"]),
        ({"minimum": 10**60 + 7}, [str(10**60 + 7), str(9 * 10**60)], [str(10**60 + 6)]),
    ],
)
def test_numbers_within_bounds(accepts, bounds, good, bad):
    schema = {"type": "number", **bounds}
    assert [text for text in good if not accepts(schema, text)] == []
    assert [text for text in bad if accepts(schema, text)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "exclusiveMinimum": 1e308},
        {"type": "number", "minimum": 1e-300},
        {"type": "number", "maximum": -1e-120},
        {"type": "integer", "exclusiveMinimum": 10**100},
        {"type": "integer", "minimum": 10**120 + 1, "maximum": 10**121 + 1},
    ],
)
def test_bounds_of_too_many_digits_are_refused_in_words(schema):
    with pytest.raises(ValueError, match="a bound of a number has too many digits; use a bound of at most 70 digits"):
        schema_grammar(schema)


@pytest.mark.parametrize(("schema", "good", "bad"), CASES)
def test_valid_values_and_no_others(accepts, schema, good, bad):
    for value in good:
        assert complaint(_strict(schema), json.dumps(value)) is None, value
        for text in (
            json.dumps(value, ensure_ascii=False),
            _compact(value),
            json.dumps(value, indent=2, ensure_ascii=False),
        ):
            assert accepts(schema, text), text
    for value in bad:
        assert not accepts(schema, json.dumps(value, ensure_ascii=False)), value


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """With the draft named where the schema has a form that is of draft 4 alone."""
    if isinstance(schema.get("exclusiveMinimum"), bool):
        return {"$schema": jsonschema.Draft4Validator.META_SCHEMA["$schema"], **schema}
    return schema


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def test_whitespace_between_the_parts(accepts):
    schema = {"type": "array", "items": INTEGER}
    for text in ("[1,2]", "[1, 2]", "[\n  1,\n  2\n]", "[1,\r\n2]"):
        assert accepts(schema, text)
    for text in ("[1,  2]", "[1,\n\n2]", " [1]", "[1]\n", "[1,\t2]"):
        assert not accepts(schema, text)
    assert accepts(schema, "[1,2]", whitespace="") and not accepts(schema, "[1, 2]", whitespace="")
    assert accepts(schema, "[1,\t2]", whitespace=r"\t?") and not accepts(schema, "[1, 2]", whitespace=r"\t?")


def test_closed_and_open_objects(accepts):
    schema = {"type": "object", "properties": {"a": INTEGER}}
    assert accepts(schema, '{"a":1,"b":2}') and not accepts(schema, '{"a":1,"b":2}', closed=True)
    assert accepts(schema, '{"a":1}', closed=True)


def test_a_discriminator_must_be_said(accepts):
    schema = ALL["one of tagged, tag not required"]
    assert accepts(schema, '{"t":1,"a":true}') and accepts(schema, '{"t":2}')
    assert not accepts(schema, '{"a":true}') and not accepts(schema, "{}")
