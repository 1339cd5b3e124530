"""Validation of a value against a JSON schema, for values that a schema lists and for names of properties."""

from __future__ import annotations

import json
from typing import Any

from ember.front.text import regular_language
from ember.front.text.json_keywords import FORMAT_PATTERNS, Keywords
from ember.front.text.json_numbers import tighter_high, tighter_low
from ember.front.text.json_reference import References
from ember.front.text.lark import in_slashes
from ember.front.text.portable_regex import portable, searched

_MAX_DEPTH = 64


def canonical(value: Any) -> str:
    """A text that is equal for equal values: 1.0 and 1 are equal numbers, and the order of names does not matter."""
    return json.dumps(_canonical(value), sort_keys=True)


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def type_of(value: Any) -> str:
    """The JSON type of a value. A number without a fraction is an integer."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


class Fits:
    """Validates values against the schemas of one document. Keywords that cannot be enforced are not checked."""

    def __init__(self, references: References, keywords: Keywords) -> None:
        self._references = references
        self._keywords = keywords
        self._listed: dict[int, frozenset[str]] = {}  # the values that a schema lists, by id(schema)
        self._known: dict[tuple[int, str], bool] = {}  # results by id(schema) and value

    def __call__(self, value: Any, schema: Any, depth: int = 0) -> bool:
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return schema is not False
        key = (id(schema), canonical(value))
        if key not in self._known:  # without this, schemas with several references would take exponential time
            self._known[key] = self._judge(value, schema, depth)
        return self._known[key]

    def _judge(self, value: Any, schema: dict[str, Any], depth: int) -> bool:
        if isinstance(schema.get("$ref"), str):
            target = self._references.lookup(schema["$ref"], schema)
            if target is not None and not self(value, target, depth + 1):
                return False
        for keyword, wanted in (("allOf", all), ("anyOf", any), ("oneOf", any)):
            branches = self._keywords.list_of(schema, keyword)
            if branches and not wanted(self(value, branch, depth + 1) for branch in branches):
                return False
        listed = self._keywords.listed(schema)
        if listed is not None:
            if id(schema) not in self._listed:
                self._listed[id(schema)] = frozenset(map(canonical, listed))
            if canonical(value) not in self._listed[id(schema)]:
                return False
        return self._fits_type(value, schema, depth)

    def _fits_type(self, value: Any, schema: dict[str, Any], depth: int) -> bool:
        kind = type_of(value)
        types = self._keywords.types(schema)
        if kind not in types and not (kind == "integer" and "number" in types):
            return False
        match kind:
            case "integer" | "number":
                return self._fits_number(value, schema)
            case "string":
                return self._fits_string(value, schema)
            case "array":
                return self._fits_array(value, schema, depth)
            case "object":
                return self._fits_object(value, schema, depth)
        return True

    def _fits_number(self, value: float, schema: dict[str, Any]) -> bool:
        low, high = self._keywords.bounds({**schema})
        at = self._keywords.bounds({"minimum": value})[0]
        if low is not None and tighter_low(low, at) != at:
            return False
        if high is not None and tighter_high(high, at) != at:
            return False
        step = self._keywords.multiple_of(schema)
        return not step or at is None or at[0] % step == 0

    def _fits_string(self, value: str, schema: dict[str, Any]) -> bool:
        if not self._has_size(len(value), schema, "minLength", "maxLength"):
            return False
        patterns = (schema.get("pattern"), FORMAT_PATTERNS.get(str(schema.get("format"))))
        return all(_is_found(pattern, value) for pattern in patterns if isinstance(pattern, str))

    def _fits_array(self, value: list[Any], schema: dict[str, Any], depth: int) -> bool:
        prefix, rest = self._keywords.items(schema)
        return self._has_size(len(value), schema, "minItems", "maxItems") and all(
            self(item, prefix[i] if i < len(prefix) else rest, depth + 1) for i, item in enumerate(value)
        )

    def _fits_object(self, value: dict[str, Any], schema: dict[str, Any], depth: int) -> bool:
        if not self._has_size(len(value), schema, "minProperties", "maxProperties"):
            return False
        if any(name not in value for name in self._keywords.required(schema)):
            return False
        properties = self._keywords.schemas(schema, "properties")
        patterns = self._keywords.schemas(schema, "patternProperties")
        for name, inner in value.items():
            found = [properties[name]] if name in properties else []
            found += [rule for pattern, rule in patterns.items() if _is_found(pattern, name)]
            if not all(self(inner, rule, depth + 1) for rule in found or [self._keywords.additional(schema)]):
                return False
            if not self(name, schema.get("propertyNames", True), depth + 1):
                return False
        return True

    def _has_size(self, size: int, schema: dict[str, Any], least: str, most: str) -> bool:
        low, high = self._keywords.size(schema, least), self._keywords.size(schema, most)
        return size >= (low or 0) and (high is None or size <= high)


def _is_found(pattern: str, text: str) -> bool:
    """Whether a pattern matches somewhere in a text. Both are from the client, so the search must not backtrack. An
    invalid pattern counts as a match: it is refused or dropped elsewhere."""
    regular_language.check_length(pattern)
    try:
        return regular_language.matches(f"/(?:{in_slashes(searched(portable(pattern)))})/", text)
    except ValueError:
        return True
