"""The kinds of nodes that a JSON schema is divided into, as data. `json_nodes.py` makes them; the rules of the grammar
(`json_rules.py`) and of tools' arguments are written from them.

A node refers to others by their numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ember.front.text.json_fits import type_of
from ember.front.text.lark import quoted

NAME = r'/"[^"\\\x00-\x1f\x7f]*"/'  # of a property that is not listed: without escapes, so that each has one spelling


@dataclass(slots=True)
class Leaf:
    """A Lark expression, or, if it is a terminal, the expression of one lexeme."""

    body: str
    is_terminal: bool = False


@dataclass(slots=True)
class String:
    """A node of strings: lengths in characters, and patterns and formats as keywords of the engine's compiler."""

    least: int
    most: int | None
    rules: list[dict[str, str]]


@dataclass(slots=True)
class Values:
    """A node of values that the schema lists (`enum`, `const`)."""

    values: list[Any]


@dataclass(slots=True)
class Array:
    prefix: list[int]
    rest: int
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class OtherNames:
    """Names of properties that are not listed: all names but `taken` that satisfy the conditions, which are terminals
    that include the quotes."""

    taken: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()

    @property
    def terminal(self) -> str:
        """The terminal of these names, with their quotes in JSON."""
        listed = " | ".join(quoted(json.dumps(name, ensure_ascii=False)) for name in self.taken)
        return " & ".join([NAME, *self.conditions, *([f"~({listed})"] if listed else [])])


@dataclass(slots=True)
class Object:
    """A node of objects. `items` in order: name, node, and whether it is required. `free`: the nodes of other names."""

    items: list[tuple[str, int, bool]]
    free: list[tuple[OtherNames, int]]
    least: int
    most: int | None


@dataclass(slots=True)
class Alternatives:
    nodes: list[int] = field(default_factory=list)


Node = Leaf | String | Values | Array | Object | Alternatives


def kind_of(node: Node) -> str:
    """The common type of the values, if they have one. A whole number is a number."""
    match node:
        case Leaf(body):
            return {'"null"': "null", "/true|false/": "boolean"}.get(body, "number")
        case Values([first, *_]):
            return type_of(first).replace("integer", "number")
        case String():
            return "string"
        case Array():
            return "array"
    return "object"


def string_schema(least: int, most: int | None, rules: list[dict[str, str]]) -> dict[str, Any]:
    """The schema of the strings that fit, for the engine's compiler."""
    schema: dict[str, Any] = {"type": "string", "allOf": rules, "x-guidance": {"whitespace_flexible": False}}
    if least:
        schema["minLength"] = least
    return schema if most is None else {**schema, "maxLength": most}
