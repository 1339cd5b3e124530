"""Which values the rules of a client's schema allow, and which schemas are refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ember.front.text import json_keywords, pace
from ember.front.text.json_keywords import Keywords
from ember.front.text.json_schema import JsonRules, schema_grammar
from tests.structured.random_schemas import matcher_of


def allows(schema: Any, *values: Any, **options: Any) -> list[bool]:
    """Of each value, whether the grammar takes it as it is usually written."""
    made = matcher_of(schema_grammar(schema, **options))
    found = []
    for value in values:
        own = made.deep_copy()
        text = list(json.dumps(value, ensure_ascii=False).encode())
        found.append(own.try_consume_tokens(text) == len(text) and own.is_accepting())
    return found


def takes(schema: Any, text: str, **options: Any) -> bool:
    own = matcher_of(schema_grammar(schema, **options)).deep_copy()
    given = list(text.encode())
    return own.try_consume_tokens(given) == len(given) and own.is_accepting()


def lenient(schema: Any) -> set[str]:
    """What is dropped where the schema need not hold; the rest must make a grammar."""
    lines: list[str] = []
    keywords = Keywords(lenient=True, closed=False)
    start = JsonRules(lines.append).read(schema, keywords)
    matcher_of("\n".join([f"start: {start}", *lines]))
    return keywords.dropped


def test_annotations_have_no_effect_and_properties_of_the_same_names_have() -> None:
    schema = {
        "title": "T",
        "default": 1,
        "x-guidance": {"lenient": True},
        "properties": {"title": {"type": "string", "examples": ["a"]}, "default": True},
        "enum": [{"title": "kept"}, {"title": 3}],
    }
    assert allows(schema, {"title": "kept"}, {"title": 3}, {}) == [True, False, False]


@pytest.mark.parametrize(
    "nothing",
    [
        *({"uniqueItems": False}, {"not": False}, {"dependentRequired": {}}, {"propertyNames": True}),
        *({"propertyNames": {}}, {"propertyNames": {"type": "string"}}, {"if": {"type": "null"}}, {"then": False}),
        *({"contains": {}, "minContains": 0}, {"minContains": 3}, {"unevaluatedItems": True}, {"format": "int64"}),
        {"madeUp": 1},
    ],
)
def test_keywords_that_demand_nothing(nothing: dict[str, Any]) -> None:
    assert allows({"type": "object", **nothing}, {"a": [1, 1]}, {}, 3) == [True, True, False]


@pytest.mark.parametrize(
    "demand",
    [
        *({"uniqueItems": True}, {"uniqueItems": 0}, {"not": {}}, {"dependentRequired": {"a": ["b"]}}),
        *({"if": True, "then": False}, {"contains": {}}, {"format": "iri"}, {"$dynamicRef": "#a"}),
        *({"contains": {}, "minContains": 0, "maxContains": 1}, {"unevaluatedItems": False}),
        *({"$ref": "#/$defs/no"}, {"$ref": "https://example.com/a.json"}, {"$ref": "#gone"}, {"$ref": 3}),
        *({"type": "strin"}, {"type": 3}, {"properties": []}, {"required": True}, {"anyOf": {}}, {"maxLength": -1}),
        *({"minimum": "3"}, {"multipleOf": 0}, {"pattern": 3}, {"pattern": "foo**"}, {"pattern": "a(?=b)"}),
        *({"patternProperties": {"a{2}{3}": True}}, {"patternProperties": {"(?<!a)b": True}}, {"minProperties": 2}),
        *({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, {"pattern": "[z-a]"}),
        *({"items": {"contains": {}}}, {"properties": {"a": {"not": {"type": "string"}}}}),
        {"unevaluatedProperties": False, "allOf": [{"properties": {"a": True}}]},
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name_or_dropped(demand: dict[str, Any]) -> None:
    keyword = next(iter(demand))
    if keyword in ("items", "properties") and demand[keyword]:
        keyword = "contains" if keyword == "items" else "not"
    whole = {"type": "object", "properties": {"x": demand}} if keyword != "minProperties" else demand
    with pytest.raises(ValueError, match=f"`{re.escape(keyword)}`"):
        schema_grammar(whole)
    assert keyword in lenient(whole)


@pytest.mark.parametrize("schema", [False, None, [], "string", 3])
def test_what_is_no_schema(schema: Any) -> None:
    with pytest.raises(ValueError, match="schema"):
        schema_grammar(schema)


def test_depth_and_size_are_limited_and_true_is_anything() -> None:
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"items": deep}
    with pytest.raises(ValueError, match="64 levels"):
        schema_grammar(deep)
    with pytest.raises(ValueError, match="too large"):
        schema_grammar({"properties": {f"property {i} of many": {"minLength": i} for i in range(9000)}})
    many = [{"anyOf": [{"minimum": i}, {"maximum": i}]} for i in range(30)]
    with pytest.raises(ValueError, match="too many alternatives"):
        schema_grammar({"allOf": many})
    assert allows(True, 1, "a", [None, {"b": True}]) == [True] * 3


def test_a_schema_that_no_value_fits() -> None:
    for schema in (
        {"$ref": "#"},
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"},
        {"type": "string", "enum": [1]},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "object", "required": ["a"], "maxProperties": 0},
        {"type": "string", "pattern": "^a$", "minLength": 2},
    ):
        with pytest.raises(ValueError, match="no value matches"):
            schema_grammar(schema)


# -------------------------------------------------------------------------------------------------- names of properties


def test_names_of_properties() -> None:
    listed = {"type": "object", "propertyNames": {"enum": ["a", 1]}, "additionalProperties": {"type": "null"}}
    assert allows(listed, {"a": None}, {}, {"a": 1}, {"b": None}) == [True, True, False, False]
    both = {"type": "object", "propertyNames": {"maxLength": 2, "pattern": "^[ab]"}, "properties": {"abc": True}}
    assert allows(both, {"ab": 1}, {"abc": 1}, {"c": 1}, {}) == [True, False, False, True]
    beside = {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "properties": {"a": {"const": 1}, "c": True}}
    assert allows(beside, {"a": 1, "b": 2}, {"a": 2}, {"c": 1}) == [True, False, False]


def test_a_name_has_one_spelling() -> None:
    """Otherwise an escaped name would be another one to the grammar, and the same to who reads the answer."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    assert takes(schema, '{"a":1,"b":"x"}')
    assert not takes(schema, r'{"a":1,"\u0061":"x"}')
    by_pattern = {"type": "object", "patternProperties": {"^a$": {"type": "integer"}}}
    assert takes(by_pattern, '{"a":1}') and not takes(by_pattern, r'{"\u0061":"x"}')


def test_names_that_come_twice_are_one_property() -> None:
    """So they do not count towards `minProperties`."""
    few = {"type": "object", "propertyNames": {"pattern": "^[ab]$"}, "minProperties": 2}
    assert allows(few, {"a": 1, "b": 2}, {"a": 1}) == [True, False]
    assert not takes(few, '{"a":1,"a":2}')
    choices: list[dict[str, Any]] = [
        {"patternProperties": {"^[abc]$": True}},
        {"patternProperties": {"^[ab]$": {}, "^c$": {}}},
    ]
    for names in choices:
        closed = {"type": "object", **names, "additionalProperties": False, "minProperties": 3, "maxProperties": 3}
        assert allows(closed, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2}) == [True, False]
        assert not takes(closed, '{"a":1,"b":1,"b":1}')
    one = {"type": "object", "minProperties": 1, "properties": {"x": True}}
    assert allows(one, {"free": 1}, {"x": 1}, {}) == [True, True, False]
    with pytest.raises(ValueError, match="`minProperties` cannot be enforced above 1"):
        schema_grammar({"type": "object", "minProperties": 2})
    beside = {"type": "object", "properties": {"x": True, "y": True}, "minProperties": 2}
    assert allows(beside, {"x": 1, "y": 2}, {"x": 1, "free": 2}, {"x": 1}) == [True, True, False]
    assert not takes(beside, '{"z":1,"z":2}')


def test_counts_of_properties_that_may_be_left_out() -> None:
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in "abcd"},
        "required": ["c"],
        "additionalProperties": False,
        "minProperties": 2,
        "maxProperties": 3,
    }
    good: list[Any] = [{"a": 1, "c": 1}, {"c": 1, "d": 1}, {"a": 1, "b": 1, "c": 1}]
    bad: list[Any] = [{"c": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1, "d": 1}, {}]
    assert allows(schema, *good, *bad) == [True] * 3 + [False] * 4


def test_a_property_that_patterns_cover_as_well() -> None:
    digit = {"type": "integer", "minimum": 0, "maximum": 9}
    schema = {
        "type": "object",
        "properties": {"s": digit},
        "patternProperties": {"^s$": {"type": "integer", "minimum": 3}},
        "required": ["s"],
        "additionalProperties": False,
    }
    assert allows(schema, {"s": 5}, {"s": 1}, {}) == [True, False, False]
    own = matcher_of(schema_grammar(schema)).deep_copy()
    assert own.try_consume_tokens(list(b'{"s":5')) == 6
    assert own.try_consume_tokens(list(b",")) == 0  # no other name is left
    overlapping = {
        "type": "object",
        "patternProperties": {"^a": {"minimum": 3, "type": "integer"}, "b$": {"maximum": 5}},
    }
    assert allows(overlapping, {"ab": 4}, {"ab": 9}, {"a": 9}, {"b": 2}, {"b": 9}, {"c": "x"}) == [
        *(True, False, True, True, False, True),
    ]


def test_conditions_of_several_schemas_hold_together() -> None:
    base = {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False}
    schema = {"additionalProperties": {"maximum": 5}, "allOf": [base], "patternProperties": {"^ab": {"minimum": 3}}}
    assert allows(schema, {"ab": 9}, {"a": 3}, {"a": 9}, {"ab": 2}, {"b": 1}) == [True, True, False, False, False]


def test_closed_schemas() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "array", "items": {"properties": {}}}}}
    schema = {"anyOf": [inner, {"type": "object", "additionalProperties": True, "required": ["open"]}]}
    values: tuple[Any, ...] = ({"a": [{}]}, {"a": [{"x": 1}]}, {"b": 1}, {"open": 1, "b": 2})
    assert allows(schema, *values, closed=True) == [True, False, False, True]
    assert allows({"properties": {"a": True}, "unevaluatedProperties": False, "type": "object"}, {"b": 1}) == [False]


# ----------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize("keyword", ["$defs", "definitions"])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        *(("Page<User>", "Page<User>"), ("Page<User>", "Page%3CUser%3E"), ("Box[int]", "Box[int]")),
        *(("My Type", "My Type"), ("My Type", "My%20Type"), ("Größe", "Größe"), ("Größe", "Gr%C3%B6%C3%9Fe")),
        *(("100%", "100%25"), ("100%", "100%"), ("100%25", "100%25"), ("a/b", "a~1b"), ("a~b", "a~0b")),
        *(("a/b", "a%2Fb"), ("a^b|c\\d", "a^b|c\\d"), ('q"', 'q"'), ("{x}", "%7Bx%7D"), ("A«B»", "A«B»")),
    ],
)
def test_names_in_references(keyword: str, name: str, reference: str) -> None:
    definitions = {name: {"enum": ["z"]}, "Outer<T>": {"items": {"$ref": f"#/{keyword}/{reference}"}, "type": "array"}}
    schema = {keyword: definitions, "$ref": f"#/{keyword}/Outer<T>"}
    assert allows(schema, ["z"], ["y"]) == [True, False]


def test_references_with_siblings_and_back_to_themselves() -> None:
    schema = {
        "$defs": {
            "List<T>": {
                "type": "object",
                "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/List%3CT%3E", "maxProperties": 1}},
                "required": ["v"],
            }
        },
        "$ref": "#/$defs/List<T>",
        "minProperties": 2,
        "description": "a list",
    }
    assert allows(schema, {"v": 1, "next": {"v": 2}}, {"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}) == [
        *(True, False, False),
    ]


def test_anchors_and_identifiers() -> None:
    schema = {
        "$id": "https://example.com/root.json",
        "$defs": {
            "a": {"$anchor": "here", "const": 1},
            "b": {"$id": "other.json", "$defs": {"c": {"const": 2}}, "$ref": "#/$defs/c"},
            "d": {"$id": "#old", "const": 3},
        },
        "type": "array",
        "prefixItems": [
            *({"$ref": "#here"}, {"$ref": "other.json"}, {"$ref": "https://example.com/other.json#/$defs/c"}),
            *({"$ref": "#old"}, {"$ref": "root.json#here"}),
        ],
        "minItems": 5,
        "items": False,
    }
    assert allows(schema, [1, 2, 2, 3, 1], [1, 2, 2, 3, 2]) == [True, False]


def test_a_circle_of_references_ends() -> None:
    circle = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    with pytest.raises(ValueError, match="without end"):
        schema_grammar({"$ref": "#/$defs/a", "$defs": circle})


# --------------------------------------------------------------------------------------------------------------- one of


def is_exclusive(first: Any, second: Any, **more: Any) -> bool:
    try:
        schema_grammar({"oneOf": [first, second], **more})
    except ValueError as error:
        assert "`oneOf`" in str(error) and "use `anyOf`" in str(error)
        return False
    return True


def tagged(values: Any, *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"t": values}, "required": list(required)}


EXCLUSIVE: list[tuple[Any, Any]] = [
    ({"type": "string"}, {"type": ["integer", "null"]}),
    ({"const": 1}, {"const": "1"}),
    ({"const": 1}, {"enum": [2, 3.5]}),
    ({"enum": [1]}, {"type": "string"}),
    (tagged({"const": "a"}, "t"), tagged({"const": "b"})),
    (tagged({"enum": ["a", "b"]}, "t"), tagged({"enum": ["c"]}, "t")),
    (False, {"type": "string"}),
]
OVERLAPPING: list[tuple[Any, Any]] = [
    ({"type": "integer"}, {"type": "number"}),
    ({"const": 1}, {"const": 1.0}),
    ({"const": [1]}, {"enum": [[1.0]]}),
    ({"type": "string", "maxLength": 3}, {"type": "string", "minLength": 3}),
    (tagged({"const": "a"}), tagged({"const": "b"})),  # both allow {}
    ({"properties": {"t": {"const": "a"}}, "required": ["t"]}, {"properties": {"t": {"const": "b"}}}),  # and others
    (tagged({"enum": ["a", "b"]}, "t"), tagged({"enum": ["b"]}, "t")),
    (True, {"type": "string"}),
]


@pytest.mark.parametrize(("first", "second"), EXCLUSIVE)
def test_exclusive_branches_are_alternatives(first: Any, second: Any) -> None:
    assert is_exclusive(first, second) and is_exclusive(second, first)
    references = {"$defs": {"a<b>": first, "b": {"$ref": "#/$defs/c"}, "c": second}}
    assert is_exclusive({"$ref": "#/$defs/a%3Cb%3E"}, {"$ref": "#/$defs/b"}, **references)


@pytest.mark.parametrize(("first", "second"), OVERLAPPING)
def test_branches_that_may_overlap(first: Any, second: Any) -> None:
    assert not is_exclusive(first, second) and not is_exclusive(second, first)


def test_a_discriminator_is_required_from_then_on() -> None:
    branches = [{"$ref": "#/$defs/A"}, tagged({"const": "b"})]
    given = {"oneOf": branches, "discriminator": {"propertyName": "t"}, "$defs": {"A": tagged({"const": "a"}, "x")}}
    assert allows(given, {"t": "a", "x": 1}, {"t": "b"}, {"x": 1}, {}) == [True, True, False, False]
    assert given["$defs"] == {"A": tagged({"const": "a"}, "x")}  # the client's own is as it was


def test_both_kinds_of_choices_hold() -> None:
    schema = {"oneOf": [{"type": "integer"}, {"type": "null"}], "anyOf": [{"minimum": 3}]}
    assert allows(schema, 3, None, 2) == [True, True, False]


# ------------------------------------------------------------------------------------------------- what has an end


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, ["1" * 19, "-" + "9" * 19], ["1" * 20, "-" + "1" * 20]),
        ({"type": "integer", "minimum": 7}, ["7", "9" * 19], ["6", "1" * 20]),
        ({"type": "integer", "maximum": -7}, ["-7", "-" + "9" * 19], ["-6", "7", "-" + "1" * 20]),
        ({"type": "integer", "minimum": 10**24}, ["1" + "0" * 24], ["9" * 19, "1" + "0" * 25]),
        ({"type": "number"}, ["0." + "3" * 17, "1" * 19 + ".5", "-2.5e-270"], ["0." + "3" * 18, "1" * 20, "1e1000"]),
        ({"type": "number", "minimum": 0}, ["0", "0." + "0" * 17, "5.25"], ["-1", "0." + "0" * 18, "-0.1"]),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, ["0.1", "1", "1.0"], ["0", "0.0", "1.01", "2"]),
        ({"type": "number", "minimum": -0.5, "maximum": 0.25}, ["-0.5", "0", "0.25", "0.2"], ["-0.51", "0.3", "1"]),
        ({"type": "number", "minimum": 97.5, "exclusiveMaximum": 100}, ["97.5", "99.99"], ["97.49", "100", "9.9"]),
        ({"type": "number", "maximum": -2.25}, ["-2.25", "-3", "-2.3"], ["-2.24", "2.5", "0"]),
        ({"type": "number", "minimum": 1e30}, ["1" + "0" * 30], ["1" * 19]),
        ({"type": "integer", "multipleOf": 7}, ["0", "-14", "700"], ["8", "7" * 19]),
        ({"type": "number", "multipleOf": 0.25}, ["1.50", "-0.25", "3"], ["0.3", "1.500"]),
        ({"type": "integer", "multipleOf": 5, "minimum": 3, "maximum": 61}, ["5", "60"], ["0", "65", "7"]),
        ({}, ["[1.5]", "1" * 19], ["1" * 20, '{"a":0.' + "1" * 18 + "}"]),
        ({"type": "object"}, ['{"a":1e5}'], ['{"a":' + "1" * 20 + "}"]),
        ({"type": "array"}, ["[ 1 ]", "[\n    1,\n    2\n]"], ["[  1]", "[\n\n1]", "[1,\n" + " " * 30 + "2]"]),
        ({"enum": [1, 1.0, "1"]}, ["1", '"1"'], ["1.0", "1.5"]),
    ],
)
def test_numbers_and_blanks_come_to_an_end(schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert [takes(schema, text) for text in good] == [True] * len(good)
    assert [takes(schema, text) for text in bad] == [False] * len(bad)


def test_patterns_that_backtrack_cost_little() -> None:
    """Both the pattern and the value that it is searched in are the client's."""
    schema = {"type": "string", "pattern": "^(x+x+)+y$", "enum": ["x" * 60, "xxy"]}
    assert allows(schema, "xxy", "x" * 60) == [True, False]
    names = {"type": "object", "properties": {"x" * 60: True}, "patternProperties": {"^(x+x+)+y$": {"type": "null"}}}
    assert allows(names, {"x" * 60: 1}, {"xxy": None}, {"xxy": 1}) == [True, True, False]


def test_many_values_that_are_listed_twice_cost_little() -> None:
    values = list(range(5000))
    assert allows({"enum": values, "allOf": [{"enum": values[10:]}]}, 4999, 3) == [True, False]


def _doubling(keyword: str, depth: int) -> dict[str, Any]:
    """Definitions each of which refers to the next one twice, and the last of which is a string."""
    made: dict[str, Any] = {
        f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(depth)
    }
    return {**made, f"d{depth}": {"type": "string", "maxLength": 3}}


@pytest.mark.parametrize("keyword", ["allOf", "anyOf"])
def test_references_that_double_at_each_step_cost_little(keyword: str) -> None:
    definitions = _doubling(keyword, 28)
    names = {"$defs": definitions, "properties": {"ab": {}, "abcd": {}}, "propertyNames": {"$ref": "#/$defs/d0"}}
    assert allows({**names, "type": "object"}, {"ab": 1}, {"abcd": 1}) == [True, False]
    assert allows({"$defs": definitions, "enum": ["ab", "abcd"], "$ref": "#/$defs/d0"}, "ab", "abcd") == [True, False]


def test_a_schema_that_is_too_large_is_refused_before_it_is_taken_apart() -> None:
    with pytest.raises(ValueError, match="too many alternatives"):
        schema_grammar({"anyOf": [{"minimum": i} for i in range(40_000)], "oneOf": [{"const": i} for i in range(60)]})
    with pytest.raises(ValueError, match="`enum` has 60000 values; 50000 are allowed"):
        schema_grammar({"enum": list(range(60_000))})
    long = "a?" * 50_000
    schemas: list[dict[str, Any]] = [
        {"pattern": long},
        {"pattern": long, "enum": ["a"]},
        {"patternProperties": {long: {}}},
    ]
    for schema in schemas:
        with pytest.raises(ValueError, match="at most 8192 characters"):
            schema_grammar({"type": ["string", "object"], **schema})


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "^a+$"},
        {"format": "uuid"},
        {"type": "number", "multipleOf": 7},
        {"type": "object", "patternProperties": {"^a": {}, "b$": {}}},
        {"type": "object", "propertyNames": {"maxLength": 3}},
    ],
)
def test_the_time_that_a_schema_takes_is_limited(schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert schema_grammar(schema)
    monkeypatch.setattr(json_keywords, "MAX_SECONDS", -1.0)
    with pytest.raises(ValueError, match="to check: use fewer patterns"):
        schema_grammar(schema)


def test_a_schema_that_takes_long_is_taken_apart_with_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(pace.time, "sleep", rests.append)
    assert schema_grammar({"type": "object", "properties": {"a": {"type": "string"}}})
    assert rests == []
    links = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["a"]} for i in range(4_000)}
    with pytest.raises(ValueError, match="the schema is too large"):
        schema_grammar({"$ref": "#/$defs/d0", "$defs": {**links, "d4000": {}}})
    assert rests and set(rests) == {pace.REST_SECONDS}
