"""The tools of a request: their names, and what their schemas say of each argument."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from ember.front.text.json_reference import References

_MAX_DEPTH = 64
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_LEADING_ZEROS = re.compile(r"\A(-?)0+(?=[0-9])")
_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


class Tool:
    """One function that the model may call."""

    def __init__(self, name: str, parameters: Any, is_strict: bool) -> None:
        self.name = name
        self.parameters: Any = {"type": "object", "properties": {}} if parameters is None else parameters
        self.is_strict = is_strict
        self._references = References(self.parameters)
        self._types: dict[str, tuple[str, ...]] = {}

    @cached_property
    def root(self) -> Any:
        """The parameters' schema, with a reference at its head followed."""
        return self.resolve(self.parameters)

    @cached_property
    def properties(self) -> dict[str, Any]:
        """The schemas of the arguments that are declared, in `properties` or in the parts of `allOf` and its like."""
        found: dict[str, Any] = {}
        pending = [self.parameters]
        for _ in range(64):
            if not pending:
                break
            schema = self.resolve(pending.pop(0))
            if not isinstance(schema, dict):
                continue
            properties = schema.get("properties")
            for key, value in properties.items() if isinstance(properties, dict) else ():
                found.setdefault(key, value)
            for keyword in ("allOf", "anyOf", "oneOf"):
                branches = schema.get(keyword)
                pending += branches if isinstance(branches, list) else []
        return found

    @cached_property
    def names(self) -> list[str]:
        """Those of the arguments that are declared, in their order."""
        return list(self.properties)

    def resolve(self, schema: Any) -> Any:
        """The schema that `$ref`s of this tool's document lead to."""
        return self._references.resolve(schema)

    def types(self, key: str) -> tuple[str, ...] | None:
        """The JSON types that an argument may have, in the order in which the schema has them. None where it is not
        declared; empty where everything is allowed."""
        if key not in self.properties:
            return None
        if key not in self._types:
            self._types[key] = self.types_of(self.properties[key])
        return self._types[key]

    def types_of(self, schema: Any) -> tuple[str, ...]:
        """The same of a schema."""
        return self._types_of(schema, set(), 0) or ()

    def _types_of(self, schema: Any, seen: set[int], depth: int) -> tuple[str, ...] | None:
        """None where the schema was seen before: it adds nothing to what it, or a part of it, is an alternative of."""
        schema = self.resolve(schema)
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return ()
        if id(schema) in seen:
            return None
        seen.add(id(schema))
        given = schema.get("type")
        if isinstance(given, str):
            return (given,)
        if isinstance(given, list):
            return tuple(name for name in given if isinstance(name, str))
        if "const" in schema or isinstance(schema.get("enum"), list):
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return tuple(dict.fromkeys(_NAMES.get(type(value), "null") for value in values))
        keyword = next((key for key in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(key), list)), None)
        if keyword is not None:
            found = [self._types_of(branch, seen, depth + 1) for branch in schema[keyword]]
            branches = [names for names in found if names is not None]
            if found and not branches:
                return None
            if keyword == "allOf":
                return next((names for names in branches if names), ())
            return () if not all(branches) else tuple(dict.fromkeys(name for names in branches for name in names))
        return ("object",) if "properties" in schema else ("array",) if "items" in schema else ()


class Tools:
    """All of them, by name."""

    def __init__(self, given: Sequence[Mapping[str, Any]] | None) -> None:
        self._by_name = {tool.name: tool for tool in _tools(given or ())}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def own_name(self, name: str) -> str:
        """The tool that is meant: some models write the name of one twice, as `f.f`."""
        head, _, tail = name.partition(".")
        return head if head == tail and name not in self._by_name and head in self._by_name else name

    def get(self, name: str) -> Tool:
        """One that was not offered has no declared arguments."""
        return self._by_name.get(name) or Tool(name, None, False)


def _tools(given: Sequence[Mapping[str, Any]]) -> Iterable[Tool]:
    """`{"type": "function", "function": {...}}`, or the inner object alone."""
    for entry in given:
        function = entry.get("function", entry)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            yield Tool(function["name"], function.get("parameters"), function.get("strict") is True)


def is_text(types: tuple[str, ...] | None) -> bool:
    """Whether an argument of these types is a string, whatever it looks like."""
    return types is None or (types[:1] == ("string",) and "null" not in types)


def typed(text: str, types: tuple[str, ...] | None) -> str:
    """What a model wrote as plain text, as JSON: the first of the types that it can be, a string where it is none."""
    if is_text(types):
        return json.dumps(text, ensure_ascii=False)
    assert types is not None
    bare = text.strip()
    if bare in ("null", "None") and ("null" in types or not types):
        return "null"
    for name in types or ("boolean", "number", "object", "array"):
        made = text_as(name, text, bare)
        if made is not None:
            return made
    return json.dumps(text, ensure_ascii=False)


def text_as(name: str, text: str, bare: str) -> str | None:
    """The JSON of a text as one type; None where it is not of that type."""
    match name:
        case "string":
            return json.dumps(text, ensure_ascii=False)
        case "integer":
            return _integer(_LEADING_ZEROS.sub(r"\1", bare))
        case "number":
            bare = _LEADING_ZEROS.sub(r"\1", bare)
            return bare if _NUMBER.fullmatch(bare) else None
        case "boolean":
            return bare.lower() if bare.lower() in ("true", "false") else None
        case "object":
            return _container(bare, dict)
        case "array":
            return _container(bare, list)
    return None


def _integer(text: str) -> str | None:
    if not _NUMBER.fullmatch(text):
        return None
    if text.lstrip("-").isdigit():
        return text
    value = float(text)
    return str(int(value)) if value.is_integer() else None


def _container(text: str, kind: type) -> str | None:
    """The text itself where it is JSON; what it means where it is Python."""
    try:
        value = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        pass
    else:
        return text if isinstance(value, kind) else None
    value = python_value(text)
    return dumps(value) if isinstance(value, kind) else None


def refuse_constant(name: str) -> Any:
    raise ValueError(name)


class NotPython(Exception):
    """A text that is no literal of Python."""


def python_value(text: str) -> Any:
    """What a literal of Python means; the class `NotPython` where it is none."""
    try:
        value = _evaluated(ast.parse(text.strip(), mode="eval").body)
        dumps(value)
    except (NotPython, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return NotPython
    return value


_NAMED = {"true": True, "false": False, "null": None}  # JSON's words, which are names in Python


def _evaluated(node: ast.expr) -> Any:
    """What a literal means, a set as a list in the order in which it is written. Raises NotPython for what is none."""
    match node:
        case ast.Constant(value) if isinstance(value, str | int | float | None):
            return value
        case ast.Name(name) if name in _NAMED:
            return _NAMED[name]
        case ast.List(items) | ast.Tuple(items):
            return [_evaluated(item) for item in items]
        case ast.Set(items):
            return list({dumps(value): value for value in map(_evaluated, items)}.values())
        case ast.Dict(keys, items):
            if None in keys:
                raise NotPython
            return {_key(key): _evaluated(item) for key, item in zip(keys, items, strict=True)}
        case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, ast.Constant(int() | float() as value)) if value is not True:
            return -value if isinstance(sign, ast.USub) else value
    raise NotPython


def _key(node: ast.expr | None) -> Any:
    key = None if node is None else _evaluated(node)
    if isinstance(key, list | dict):
        raise NotPython
    return key


def dumps(value: Any) -> str:
    """JSON text. Raises ValueError or TypeError for what JSON does not have."""
    return encodable(json.dumps(value, ensure_ascii=False, allow_nan=False))


def encodable(text: str) -> str:
    """The text with pairs of surrogates as the characters that they are, and lone ones, which no JSON encoder takes,
    as U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
