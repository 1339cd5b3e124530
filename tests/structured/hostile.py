"""Grammars that are small and cost much, each by other means. Names say how."""

from __future__ import annotations

import json
import random

from ember.wire import Grammar


def ambiguous(num_rules: int, lexeme: str = "/[a-z ]/", start: str = "a0", seed: int = 0) -> str:
    """Rules that are each other's alternatives: what was said has more parses than atoms are in the world."""
    chosen = random.Random(seed)
    all_rules = " | ".join(f"a{i}" for i in range(num_rules))
    rules = [
        f"a{i}: a{i} a{i} | a{chosen.randrange(num_rules)} a{chosen.randrange(num_rules)} | {all_rules} | {lexeme}"
        for i in range(num_rules)
    ]
    return "\n".join([f"start: {start}", *rules])


def _chain(length: int, link: str, name: str = "a") -> str:
    rules = [link.format(name=name, i=i, j=i + 1) for i in range(length)]
    return "\n".join([f"start: {name}0", *rules, f'{name}{length}: "x"'])


def _nested(depth: int) -> dict[str, object]:
    """Definitions that each require the next one."""
    links = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["a"]} for i in range(depth)}
    return {**links, f"d{depth}": {}}


def _schema(schema: object) -> Grammar:
    return Grammar("json_schema", json.dumps(schema), "response_format")


def _lark(text: str) -> Grammar:
    return Grammar("lark", text, "guided_grammar")


ENDLESS = {
    "a mask of seconds": _lark(ambiguous(30)),
    "a compilation of minutes": _lark(ambiguous(140)),
    "a mask of hours, later": _lark(ambiguous(140, start='"x" "y" a0')),
    "an overflow of the stack": _lark(_chain(9_000, "{name}{i}: {name}{j}")),
    "an overflow of the stack in terminals": _lark(
        _chain(9_000, 'A{i}: "(" A{j} ")"').replace("a", "A").replace("stArt", "start")
    ),
    "an overflow of the stack in a schema": _schema({"$ref": "#/$defs/d0", "$defs": _nested(4_000)}),
}
LARGE = {
    "a counted repetition": Grammar("regex", "(a|b){0,100000}", "guided_regex"),
    "counted repetitions in each other": Grammar("regex", "((a{1,100}){1,100}){1,100}b", "guided_regex"),
    "many states": Grammar("regex", "(.{0,1000}a){0,50}.{1000}", "guided_regex"),
    "doubling": _lark("start: s25\n" + "\n".join(f"s{i}: s{i - 1} s{i - 1}" for i in range(1, 26)) + '\ns0: "x"'),
    "empty words": _lark('start: a\na: a a a | /[a-z ]/ | ""'),
    "a wide anyOf": _schema(
        {
            "anyOf": [
                {"type": "object", "properties": {f"p{i}": {"type": "string"}}, "required": [f"p{i}"]}
                for i in range(1000)
            ]
        }
    ),
    "a large enum": _schema({"enum": [f"value {i} of {i * i}" for i in range(8000)]}),
    "many optional properties": _schema(
        {
            "type": "object",
            "properties": {f"p{i}": {"type": "string"} for i in range(2000)},
            "additionalProperties": False,
        }
    ),
    "bounds of lengths": _schema(
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": 100_000},
            "minItems": 1,
            "maxItems": 100_000,
        }
    ),
    "a long constant": _schema({"const": "abc " * 5_000}),
}
