"""The tools of a request: their names, and the schemas and types of their arguments."""

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
        """The parameters' schema, after a reference at its root."""
        return self.resolve(self.parameters)

    @cached_property
    def properties(self) -> dict[str, Any]:
        """The schemas of the declared arguments, in `properties` or in the parts of `allOf` and similar keywords."""
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
        """The names of the declared arguments, in order."""
        return list(self.properties)

    def resolve(self, schema: Any) -> Any:
        """The schema at the end of a chain of `$ref`s in this tool's document."""
        return self._references.resolve(schema)

    def types(self, key: str) -> tuple[str, ...] | None:
        """The JSON types that an argument may have, in the order of the schema. None if it is not declared, empty if
        every type is allowed."""
        if key not in self.properties:
            return None
        if key not in self._types:
            self._types[key] = self.types_of(self.properties[key])
        return self._types[key]

    def types_of(self, schema: Any) -> tuple[str, ...]:
        """The JSON types that a schema allows."""
        return self._types_of(schema, set(), 0) or ()

    def _types_of(self, schema: Any, seen: set[int], depth: int) -> tuple[str, ...] | None:
        """None if the schema was seen before: it adds nothing to the alternatives that contain it."""
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
    """The tools of a request by name."""

    def __init__(self, given: Sequence[Mapping[str, Any]] | None) -> None:
        self._by_name = {tool.name: tool for tool in _tools(given or ())}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def own_name(self, name: str) -> str:
        """The tool with a name. Some models write a tool's name twice, as `f.f`."""
        head, _, tail = name.partition(".")
        return head if head == tail and name not in self._by_name and head in self._by_name else name

    def get(self, name: str) -> Tool:
        """The types of an argument. A tool that was not offered has no declared arguments."""
        return self._by_name.get(name) or Tool(name, None, False)


def _tools(given: Sequence[Mapping[str, Any]]) -> Iterable[Tool]:
    """Read `{"type": "function", "function": {...}}`, or the inner object alone."""
    for entry in given:
        function = entry.get("function", entry)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            yield Tool(function["name"], function.get("parameters"), function.get("strict") is True)


def is_text(types: tuple[str, ...] | None) -> bool:
    """Whether an argument of these types is a string, whatever its text."""
    return types is None or (types[:1] == ("string",) and "null" not in types)


def typed(text: str, types: tuple[str, ...] | None) -> str:
    """Convert a plain text to JSON: to the first of the types that fits, or else to a string."""
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
    """The JSON of a text as one type; None if it is not of that type."""
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
    """A text that is JSON unchanged, or the JSON of a Python literal."""
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
    """The text is not a Python literal."""


def python_value(text: str) -> Any:
    """The value of a Python literal; the class `NotPython` if it is not one."""
    try:
        value = _evaluated(ast.parse(text.strip(), mode="eval").body)
        dumps(value)
    except (NotPython, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return NotPython
    return value


_NAMED = {"true": True, "false": False, "null": None}  # JSON's literals, which are names in Python


def _evaluated(node: ast.expr) -> Any:
    """The value of a literal; a set becomes a list in the written order. Raises NotPython if it is not a literal."""
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
    """A value as JSON text. Raises ValueError or TypeError for values that JSON does not have."""
    return encodable(json.dumps(value, ensure_ascii=False, allow_nan=False))


def encodable(text: str) -> str:
    """The text with surrogate pairs replaced by their characters, and unpaired surrogates, which JSON encoders refuse,
    by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
