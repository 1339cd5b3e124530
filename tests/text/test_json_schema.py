"""What of a client's schema reaches the engine's compiler, and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ember.front.text.json_schema import DEFAULT_WHITESPACE, schema_text


def prepared(schema: Any, **options: Any) -> dict[str, Any]:
    made = json.loads(schema_text(schema, **options))
    made.pop("x-guidance")
    return made


def test_whitespace_is_bounded_unless_asked_otherwise():
    assert json.loads(schema_text({}))["x-guidance"] == {"whitespace_pattern": DEFAULT_WHITESPACE}
    assert json.loads(schema_text({}, whitespace="[ ]"))["x-guidance"] == {"whitespace_pattern": "[ ]"}
    assert json.loads(schema_text({}, whitespace=""))["x-guidance"] == {"whitespace_flexible": False}


def test_a_request_cannot_set_the_compilers_options():
    given = {"x-guidance": {"lenient": True}, "properties": {"a": {"x-guidance": {"lenient": True}}}}
    assert prepared(given) == {"properties": {"a": {}}}
    assert "lenient" not in schema_text(given)


def test_annotations_go_and_properties_of_the_same_names_stay():
    given = {
        "title": "T",
        "description": "D",
        "default": 1,
        "properties": {"title": {"type": "string", "examples": ["a"]}, "default": True},
        "enum": [{"title": "kept"}],
    }
    assert prepared(given) == {
        "properties": {"title": {"type": "string"}, "default": True},
        "enum": [{"title": "kept"}],
    }


@pytest.mark.parametrize(
    "nothing",
    [
        *({"uniqueItems": False}, {"not": False}, {"dependentRequired": {}}, {"propertyNames": True}),
        *({"propertyNames": {}}, {"propertyNames": {"type": "string"}}, {"if": {"type": "null"}}, {"then": False}),
        *({"contains": {}, "minContains": 0}, {"minContains": 3}, {"unevaluatedItems": True}, {"format": "int64"}),
    ],
)
def test_keywords_that_demand_nothing_go(nothing):
    assert prepared({"type": "object", **nothing}) == {"type": "object"}


@pytest.mark.parametrize(
    "demand",
    [
        *({"uniqueItems": True}, {"uniqueItems": 0}, {"not": {}}, {"dependentRequired": {"a": ["b"]}}),
        *({"propertyNames": {"maxLength": 3}}, {"if": True, "then": False}, {"contains": {}}, {"format": "iri"}),
        *({"contains": {}, "minContains": 0, "maxContains": 1}, {"unevaluatedItems": False}, {"madeUp": 1}),
        {"propertyNames": {"enum": ["a"]}, "properties": {"a": True}},
    ],
)
def test_demands_stay_for_the_compiler_to_meet_or_refuse(demand):
    assert prepared({"type": "object", **demand}) == {"type": "object", **demand}


def test_names_of_properties_in_other_words():
    assert prepared({"propertyNames": {"enum": ["a", 1]}, "additionalProperties": {"type": "null"}}) == {
        "properties": {"a": {"type": "null"}},
        "additionalProperties": False,
    }
    assert prepared({"propertyNames": {"type": "string", "pattern": r"^\d$"}}) == {
        "patternProperties": {"^[0-9]$": True},
        "additionalProperties": False,
    }


def test_patterns_that_become_one_are_refused():
    with pytest.raises(ValueError, match="same names"):
        schema_text({"patternProperties": {r"\d": True, "[0-9]": {"type": "null"}}})


def test_closed_schemas():
    inner = {"type": "object", "properties": {"a": {"type": "array", "items": {"properties": {}}}}}
    made = prepared({"anyOf": [inner, {"type": "object", "additionalProperties": True}]}, closed=True)
    assert made["anyOf"][0]["additionalProperties"] is False
    assert made["anyOf"][0]["properties"]["a"]["items"]["additionalProperties"] is False
    assert made["anyOf"][1]["additionalProperties"] is True
    named = prepared({"type": "object", "propertyNames": {"enum": ["a"]}}, closed=True)
    assert named["properties"] == {"a": True}
    assert prepared({"type": "object", "properties": {"a": True}, "unevaluatedProperties": False}) == {
        "type": "object",
        "properties": {"a": True},
        "additionalProperties": False,
    }


def test_formats_are_patterns_beside_what_was_there():
    made = prepared({"type": "string", "format": "date", "pattern": "^2", "allOf": [{"minLength": 1}]})
    assert made["pattern"] == "^2" and made["allOf"][0] == {"minLength": 1} and len(made["allOf"]) == 2
    assert "format" not in made


def one_of(first: Any, second: Any, **more: Any) -> str:
    """Whether the two became an `anyOf`, or stayed."""
    (name,) = {"oneOf", "anyOf"} & prepared({"oneOf": [first, second], **more}).keys()
    return name


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
    ({"$ref": "#/$defs/missing"}, {"type": "string"}),
    ({"$ref": "https://example.com/a.json"}, {"type": "string"}),
]


@pytest.mark.parametrize(("first", "second"), EXCLUSIVE)
def test_exclusive_branches_are_an_any_of(first, second):
    assert one_of(first, second) == one_of(second, first) == "anyOf"
    references = {"$defs": {"a": first, "b": {"$ref": "#/$defs/c"}, "c": second}}
    assert one_of({"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, **references) == "anyOf"


@pytest.mark.parametrize(("first", "second"), OVERLAPPING)
def test_branches_that_may_overlap_stay(first, second):
    assert one_of(first, second) == one_of(second, first) == "oneOf"


def test_a_discriminator_is_required_from_then_on():
    branches = [{"$ref": "#/$defs/A"}, tagged({"const": "b"})]
    given = {"oneOf": branches, "discriminator": {"propertyName": "t"}, "$defs": {"A": tagged({"const": "a"}, "x")}}
    made = prepared(given)
    assert made["$defs"]["A"]["required"] == ["x", "t"] and made["anyOf"][1]["required"] == ["t"]
    assert given["$defs"] == {"A": tagged({"const": "a"}, "x")}  # the client's own is as it was
    unlisted = {**given, "oneOf": [{"type": "string"}, {"type": "null"}]}
    assert prepared(unlisted)["$defs"]["A"]["required"] == ["x"]


def test_both_kinds_of_choices_hold():
    made = prepared({"oneOf": [{"type": "integer"}, {"type": "null"}], "anyOf": [{"minimum": 3}]})
    assert made == {"anyOf": [{"minimum": 3}], "allOf": [{"anyOf": [{"type": "integer"}, {"type": "null"}]}]}


def test_a_circle_of_references_ends():
    circle = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    assert one_of({"$ref": "#/$defs/a"}, {"type": "string"}, **{"$defs": circle}) == "oneOf"


@pytest.mark.parametrize("schema", [False, None, [], "string", 3])
def test_what_is_no_schema(schema):
    with pytest.raises(ValueError, match="schema"):
        schema_text(schema)


def test_depth_is_limited_and_true_is_anything():
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"not": deep}
    with pytest.raises(ValueError, match="64 levels"):
        schema_text(deep)
    assert prepared(True) == {}
