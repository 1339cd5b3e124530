"""JSON schemas by name, of every keyword that output can be held to, alone and together. `ALL` has them all."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

Schema = dict[str, Any]
INTEGER: Schema = {"type": "integer"}
SHORT: Schema = {"type": "string", "maxLength": 8}
BOOLEAN: Schema = {"type": "boolean"}


def record(required: Any = "", *, rest: Any = False, **properties: Any) -> Schema:
    """An object; `required` is a text, names with blanks between, and `rest` its additionalProperties."""
    made: Schema = {"type": "object", "properties": properties, "additionalProperties": rest}
    return {**made, "required": required.split()} if required else made


def array(items: Any, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


NUMBERS: dict[str, Schema] = {
    "any integer": INTEGER,
    "any number": {"type": "number"},
    **{
        f"integer in {low} to {high}": {"type": "integer", "minimum": low, "maximum": high}
        for low, high in (
            (0, 0),
            (0, 9),
            (-5, 5),
            (1, 31),
            (97, 1003),
            (-1200, -7),
            (-1, 250),
            (1900, 2100),
            (0, 10**6),
        )
    },
    "integer from": {"type": "integer", "minimum": 18},
    "integer up to": {"type": "integer", "maximum": -3},
    "integer above": {"type": "integer", "exclusiveMinimum": 7, "exclusiveMaximum": 12},
    "integer above, as in draft 4": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "integer",
        "minimum": 7,
        "exclusiveMinimum": True,
        "maximum": 10,
    },
    **{
        f"number in {low} to {high}": {"type": "number", "minimum": low, "maximum": high}
        for low, high in ((0, 1), (-1, 1), (0.5, 0.75), (-273.15, 1000), (1.25, 100), (-0.5, 0.01))
    },
    "number between": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "number above nothing": {"type": "number", "exclusiveMinimum": 0},
    **{f"multiple of {step}": {"type": "integer", "multipleOf": step} for step in (2, 7, 10, 60)},
    "multiple in bounds": {"type": "integer", "multipleOf": 5, "minimum": 3, "maximum": 61},
    "multiple of a fraction": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 10},
    "integer with bounds that are not": {"type": "integer", "minimum": 0.5, "maximum": 4.5},
}

PATTERNS: dict[str, Schema] = {
    f"pattern {pattern}": {"type": "string", "pattern": pattern}
    for pattern in (
        r"^[A-Z]{2}\d{4}$",
        r"^\d{3}-\d{2}-\d{4}$",
        r"^(\(\d{3}\))?\d{3}-\d{4}$",
        r"^#[0-9a-fA-F]{6}$",
        r"^[a-z][a-z0-9_]{0,9}$",
        r"^(?:red|green|blue)$",
        r"^a|z$",
        r"ab",
        r"^\w+@\w+\.(com|org)$",
        r"^\S{1,5}$",
        r"^\s*\d+\s*$",
        r"^[^\d\s]{2,6}$",
        r"^\D{1,4}$",
        r"^\W$",
        r"^.{0,6}$",
        r"^[\w.-]{1,10}$",
        r"^v\d+(\.\d+){0,2}(-[a-z]+)?$",
        r"^https?://[a-z]{1,8}\.[a-z]{2,3}(/[a-z]*)*$",
        r"^\"quoted\"$",
        r"^a\\b/c$",
        r"^[\]\[{}]{3}$",
        r"^[^\"\\]{1,8}$",
        r"^(a|b)*?c$",
        r"^x{,3}$",
        r"^[äöü]+$",
        r"^\u00e9\x41$",
        r"^(?i:yes|no)$",
        r"^$",
        r"^\t\n?$",
        r"^[&&~~|]+$",
    )
}

FORMATS: dict[str, Schema] = {
    f"format {name}": {"type": "string", "format": name}
    for name in (
        *("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"),
        *("json-pointer", "relative-json-pointer", "int32", "phone"),
    )
}

STRINGS: dict[str, Schema] = {
    "any string": {"type": "string"},
    **{
        f"string of {low} to {high}": {"type": "string", "minLength": low, "maxLength": high}
        for low, high in ((0, 0), (0, 1), (1, 3), (5, 5), (3, 40))
    },
    "string of at least": {"type": "string", "minLength": 4},
    "pattern and length": {"type": "string", "pattern": "^[a-c]+$", "minLength": 3, "maxLength": 5},
    "format and pattern": {"type": "string", "format": "date", "pattern": "^20"},
    "format and other types": {"type": ["string", "null", "integer"], "format": "date-time"},
    "two patterns": {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$"}, {"maxLength": 6}]},
    **PATTERNS,
    **FORMATS,
}

VALUES: dict[str, Schema] = {
    "enum of strings": {"enum": ["low", "middle", "high"]},
    "enum with a type": {"type": "string", "enum": ["a b", 'with "quotes"', "line\nbreak", "tab\t", "\\", "ü", ""]},
    "enum of everything": {"enum": [1, -2.5, True, None, "x", [1, "a"], {"k": {"l": []}}]},
    "enum that its type cuts": {"type": "integer", "enum": [1, "1", 2, None]},
    "large enum": {"enum": [f"value {i}" for i in range(300)]},
    "const string": {"const": "exactly / this"},
    "const number": {"const": 42},
    "const object": {"const": {"a": [1, {"b": None}], "c": "ü"}},
    "null": {"type": "null"},
    "boolean": BOOLEAN,
    "several types": {"type": ["integer", "boolean", "null"]},
    "nullable string": {"type": ["string", "null"], "maxLength": 5},
    "anything": {},
    "anything but a type": {"title": "Anything", "description": "of any kind", "default": 3},
}

ARRAYS: dict[str, Schema] = {
    "any array": {"type": "array"},
    "array of anything but small": {"type": "array", "maxItems": 2},
    **{
        f"array of {low} to {high}": array(INTEGER, minItems=low, maxItems=high)
        for low, high in ((0, 0), (0, 1), (1, 1), (2, 4), (7, 9))
    },
    "array of at least": array(BOOLEAN, minItems=3),
    "array of strings": array(SHORT, maxItems=4),
    "array of arrays": array(array(array(BOOLEAN, maxItems=2), minItems=1, maxItems=3), maxItems=2),
    "matrix": array(
        array({"type": "number", "minimum": 0, "maximum": 1}, minItems=2, maxItems=2), minItems=2, maxItems=2
    ),
    "array of records": array(record("x", x=INTEGER, y=BOOLEAN), maxItems=3),
    "array of choices": array({"anyOf": [INTEGER, SHORT, {"type": "null"}]}, minItems=1, maxItems=4),
    "pair": {"type": "array", "prefixItems": [SHORT, INTEGER], "items": False, "minItems": 2},
    "pair and more": {"type": "array", "prefixItems": [BOOLEAN, {"const": "x"}], "items": INTEGER, "maxItems": 4},
    "pair that may be shorter": {"type": "array", "prefixItems": [BOOLEAN, INTEGER], "items": False},
    "pair, as in draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [INTEGER, BOOLEAN],
        "additionalItems": False,
        "minItems": 2,
    },
    "array that need not be unique": {**array(BOOLEAN, maxItems=3), "uniqueItems": False},
    "nothing in it": array(False),
}

OBJECTS: dict[str, Schema] = {
    "any object": {"type": "object"},
    "empty object": record(),
    "one required": record("a", a=INTEGER),
    "one optional": record(a=INTEGER),
    **{
        f"required {required or 'nothing'} of four": record(required, a=BOOLEAN, b=INTEGER, c={"type": "null"}, d=SHORT)
        for required in ("", "a", "b", "d", "a d", "b c", "a b c d")
    },
    "twelve optional": record(**{f"p{i}": BOOLEAN for i in range(12)}),
    "required that is not described": record("a z", rest=BOOLEAN, a=INTEGER),
    "additional integers": {"type": "object", "additionalProperties": INTEGER, "maxProperties": 3},
    "additional records": {"type": "object", "additionalProperties": record("v", v=BOOLEAN), "maxProperties": 2},
    "additional beside named": record("a", rest={"type": "boolean"}, a=INTEGER),
    "open beside named": {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "maxProperties": 2},
    "at least one": {"type": "object", "additionalProperties": INTEGER, "minProperties": 1, "maxProperties": 4},
    "at least two of few names": {
        "type": "object",
        "patternProperties": {"^[a-d]$": INTEGER},
        "additionalProperties": False,
        "minProperties": 2,
        "maxProperties": 3,
    },
    "two or three of four": {
        **record("b", a=BOOLEAN, b=INTEGER, c={"type": "null"}, d=SHORT),
        "minProperties": 2,
        "maxProperties": 3,
    },
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,3}$": INTEGER},
        "additionalProperties": False,
    },
    "names by pattern beside named": {
        "type": "object",
        "properties": {"id": INTEGER},
        "required": ["id"],
        "patternProperties": {"^s_[a-z]{1,3}$": SHORT, "^n_[a-z]{1,3}$": BOOLEAN},
        "additionalProperties": False,
    },
    "names from a list": {"type": "object", "propertyNames": {"enum": ["de", "fr"]}, "additionalProperties": SHORT},
    "names of a pattern": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z]{1,4}$"},
        "additionalProperties": BOOLEAN,
        "maxProperties": 3,
    },
    "any names": {
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": BOOLEAN,
        "maxProperties": 2,
    },
    "a property that must not be": record(no=False, yes=BOOLEAN),
    "names with odd characters": record('a"b', **{'a"b': INTEGER, "c d": BOOLEAN, "e\\f": BOOLEAN, "ü/é": BOOLEAN}),
    "names that are keywords": record("type", type={"const": "t"}, enum=BOOLEAN, title=SHORT, oneOf=INTEGER),
    "deep": record("a", a=record("b", b=record("c", c=record("d", d=array(record("e", e=BOOLEAN), maxItems=2))))),
    "no type, but properties": {"properties": {"a": INTEGER}, "required": ["a"], "type": "object", "maxProperties": 1},
    "nothing unevaluated": {"type": "object", "properties": {"a": BOOLEAN}, "unevaluatedProperties": False},
}

_CAT = record("kind", kind={"const": "cat"}, lives={"type": "integer", "minimum": 1, "maximum": 9})
_DOG = record("kind name", kind={"const": "dog"}, name=SHORT)

CHOICES: dict[str, Schema] = {
    "any of scalars": {"anyOf": [INTEGER, BOOLEAN, {"type": "string", "maxLength": 3}]},
    "any of records": {"anyOf": [record("a", a=INTEGER), record("b", b=SHORT), {"type": "null"}]},
    "any of overlapping": {"anyOf": [record("a", a=INTEGER), record("a b", a=INTEGER, b=INTEGER)]},
    "any of beside type": {"type": "object", "anyOf": [record("a", a=BOOLEAN), record("b", b=BOOLEAN)]},
    "any of ranges": {
        "anyOf": [{"type": "integer", "maximum": -10}, {"type": "integer", "minimum": 10}, {"enum": ["none"]}]
    },
    "optional number": record("a", a={"anyOf": [{"type": "number"}, {"type": "null"}], "default": None}),
    "one of types": {"oneOf": [INTEGER, SHORT, array(INTEGER, maxItems=2)]},
    "one of constants": {"oneOf": [{"const": "a"}, {"const": 1}, {"enum": ["b", "c"]}]},
    "one of tagged": {"oneOf": [_CAT, _DOG]},
    "one of tagged, by name": {
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "$defs": {"Cat": _CAT, "Dog": _DOG},
        "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
    },
    "one of tagged, tag not required": {
        "oneOf": [record(t={"const": 1}, a=BOOLEAN), record(t={"const": 2}, b=BOOLEAN)],
        "discriminator": {"propertyName": "t"},
    },
    "one of beside any of": {"oneOf": [INTEGER, BOOLEAN], "anyOf": [{"minimum": 3, "maximum": 5}]},
    "one of, recursive": {
        "$ref": "#/$defs/Value",
        "$defs": {"Value": {"oneOf": [BOOLEAN, {"type": "null"}, array({"$ref": "#/$defs/Value"}, maxItems=3)]}},
    },
    "all of records": {
        "allOf": [
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
            {"properties": {"b": BOOLEAN}, "required": ["b"], "maxProperties": 2},
        ]
    },
    "all of bounds": {"type": "integer", "allOf": [{"minimum": 3}, {"maximum": 30}, {"multipleOf": 3}]},
    "all of with a reference": {
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": BOOLEAN}}],
        "$defs": {"base": {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}},
    },
    "all of one": record("a", a={"allOf": [{"$ref": "#/$defs/E"}], "description": "as of old"})
    | {"$defs": {"E": {"enum": ["p", "q"]}}},
    "not of nothing": {"type": "integer", "not": False, "maximum": 9, "minimum": 0},
}

_NODE = record("value next", value=INTEGER, next={"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]})
_TREE = record("leaf children", leaf=BOOLEAN, children=array({"$ref": "#/$defs/Tree"}, maxItems=2))

RECURSIVE: dict[str, Schema] = {
    "linked list": {"$ref": "#/$defs/Node", "$defs": {"Node": _NODE}},
    "tree": {"$ref": "#/$defs/Tree", "$defs": {"Tree": _TREE}},
    "tree that is the root": record("name", name=SHORT, children=array({"$ref": "#"}, maxItems=1)),
    "optional child": record("v", v=BOOLEAN, child={"$ref": "#"}),
    "described child": record("v", v=BOOLEAN, child={"$ref": "#", "description": "the next one"}),
    "mutual": {
        "$ref": "#/$defs/A",
        "$defs": {
            "A": record("b", b={"anyOf": [{"$ref": "#/$defs/B"}, BOOLEAN]}),
            "B": record("a", a={"anyOf": [{"$ref": "#/$defs/A"}, INTEGER]}),
        },
    },
    "two references to one": {
        "$defs": {"P": record("x y", x=INTEGER, y=INTEGER)},
        **record("from to", **{"from": {"$ref": "#/$defs/P"}, "to": {"$ref": "#/$defs/P"}}),
    },
    "old definitions": {"definitions": {"s/t": SHORT}, **record("a", a={"$ref": "#/definitions/s~1t"})},
    "reference into properties": record("a b", a=INTEGER, b={"$ref": "#/properties/a"}),
    "nested arrays, recursive": {"$ref": "#/$defs/L", "$defs": {"L": array({"$ref": "#/$defs/L"}, maxItems=2)}},
    "expressions": {
        "$ref": "#/$defs/E",
        "$defs": {
            "E": {"anyOf": [INTEGER, {"$ref": "#/$defs/Op"}]},
            "Op": record("op args", op={"enum": ["+", "*"]}, args=array({"$ref": "#/$defs/E"}, minItems=2, maxItems=2)),
        },
    },
    "any json": {
        "$ref": "#/$defs/J",
        "$defs": {
            "J": {
                "anyOf": [
                    {"type": ["boolean", "null", "integer"]},
                    array({"$ref": "#/$defs/J"}, maxItems=2),
                    {"type": "object", "additionalProperties": {"$ref": "#/$defs/J"}, "maxProperties": 2},
                ]
            }
        },
    },
}


# -------------------------------------------------------------------------------------------- what data classes become


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Step(BaseModel):
    explanation: str = Field(max_length=12)
    output: str | None = Field(default=None, max_length=6)


class Solution(BaseModel):
    steps: list[Step] = Field(max_length=3)
    final: float


class Person(BaseModel):
    """A person."""

    name: str = Field(min_length=1, max_length=10, description="how to call them")
    age: int = Field(ge=0, le=150)
    colour: Colour
    tags: dict[str, int] = Field(default_factory=dict, max_length=2)
    pair: tuple[int, bool]
    choice: Literal["x", "y", 3]
    born: Annotated[str, Field(json_schema_extra={"format": "date"})] | None


class Literally(BaseModel):
    op: Literal["lit"] = "lit"
    value: int


class Sum(BaseModel):
    op: Literal["sum"] = "sum"
    left: Expression
    right: Expression


Expression = Annotated[Literally | Sum, Field(discriminator="op")]


class Names(BaseModel):
    by_key: dict[Literal["a", "b"], bool]
    by_pattern: Annotated[dict[Annotated[str, Field(pattern="^[a-z]{1,3}$")], int], Field(max_length=2)]


class Folder(BaseModel):
    name: str = Field(max_length=5)
    inside: list[Folder] = Field(max_length=2)
    parent: Folder | None = Field(default=None, description="where it is")


Sum.model_rebuild()

MODELS: dict[str, Schema] = {
    model.__name__: model.model_json_schema() for model in (Step, Solution, Person, Literally, Sum, Names, Folder)
}

ALL: dict[str, Schema] = NUMBERS | STRINGS | VALUES | ARRAYS | OBJECTS | CHOICES | RECURSIVE | MODELS
# Whole answers, as one would ask for them: each of the others in a list and in a field.
ALL |= {
    f"field of {name}": record("answer", answer=schema, note=SHORT)
    for name, schema in (NUMBERS | STRINGS | VALUES).items()
    if "$schema" not in schema
}
