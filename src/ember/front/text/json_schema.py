"""JSON schemas of clients, as the engine's grammar compiler takes them.

What the compiler understands differently, or more loosely, than the specification is written out for it: regular
expressions (see `portable_regex`), and formats that it lacks or takes too lightly (the 30th of February is no date).
What it does not know, and what can be said in other words, is said so: a `oneOf` of exclusive branches, the names of
properties. Annotations, and keywords that demand nothing as they stand, are taken out; formats that the specification
does not define are annotations. Everything else goes through, and what the compiler cannot enforce is an error there:
nothing is ignored.
"""

from __future__ import annotations

import json
from typing import Any

from ember.front.text.json_one_of import Exclusion
from ember.front.text.json_reference import lookup
from ember.front.text.portable_regex import portable

MAX_DEPTH = 64
# One blank, or one line break with its indentation: models are known to fall into endless blank lines otherwise.
DEFAULT_WHITESPACE = r" ?|\r?\n[ \t]{0,24}"

_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMA_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SCHEMAS = (
    "items",
    "additionalProperties",
    "additionalItems",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
)
_ANNOTATIONS = {
    *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$comment"),
    *("discriminator", "externalDocs", "xml"),
    "x-guidance",  # options of the compiler, some of which make it ignore what it cannot do
}
_IN_PLACE = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "then", "else", "not", "dependentSchemas")
_FORMATS = {
    *("date", "date-time", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
    *("uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer"),
    "regex",
}

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_MONTH_AND_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_MONTH_AND_DAY}|{_LEAP_YEAR}-02-29)"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"
_FORMAT_PATTERNS = {
    "date": f"^{_DATE}$",  # RFC 3339
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "json-pointer": f"^{_POINTER}$",  # RFC 6901
    "relative-json-pointer": f"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$",
}


def schema_text(
    schema: Any, *, whitespace: str = DEFAULT_WHITESPACE, closed: bool = False, owner: str | None = None
) -> str:
    """The schema as JSON for the compiler, which also takes it behind `%json` in a Lark grammar.

    `whitespace` is a regular expression for what may stand between the parts of the output, "" for nothing; `closed`
    forbids additional properties where the schema says nothing of them; `owner` stands in the engine's errors of this
    schema. Raises ValueError for what is no schema.
    """
    if schema is False:
        raise ValueError("the schema `false` allows nothing")
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError(f"a schema is an object, not {type(schema).__name__}")
    _check_depth(schema)
    prepared = _Preparation(schema, closed).run()
    if whitespace:
        prepared["x-guidance"] = {"whitespace_pattern": whitespace}
    else:
        prepared["x-guidance"] = {"whitespace_flexible": False}
    if owner is not None:
        prepared["$comment"] = owner
    return json.dumps(prepared, ensure_ascii=False, separators=(",", ":"))


def _check_depth(schema: dict[str, Any]) -> None:
    level: list[Any] = [schema]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"the schema is nested more than {MAX_DEPTH} levels deep")
        inner: list[Any] = []
        for value in level:
            inner += value.values() if isinstance(value, dict) else value
        level = [value for value in inner if isinstance(value, dict | list)]


class _Preparation:
    """Rewrites one document. What does not have the form of a schema is left for the compiler to refuse."""

    def __init__(self, root: dict[str, Any], closed: bool) -> None:
        self._root = root
        self._closed = closed
        self._exclusion = Exclusion(root)
        self._tags: list[tuple[str, str]] = []  # reference, and the property that its schema has to require

    def run(self) -> dict[str, Any]:
        prepared: dict[str, Any] = self._prepare(self._root)
        for reference, name in self._tags:
            _require(lookup(prepared, reference), name)
        return prepared

    def _prepare(self, schema: Any) -> Any:
        """A schema at any depth."""
        if not isinstance(schema, dict):
            return schema
        prepared = {key: self._keyword(key, value) for key, value in schema.items() if key not in _ANNOTATIONS}
        if not isinstance(prepared.get("items"), list):  # it means something beside the list of an older draft alone
            prepared.pop("additionalItems", None)
        _drop_empty(prepared)
        _name_properties(prepared)
        _write_out_strings(prepared)
        if isinstance(prepared.get("oneOf"), list):
            self._one_of(schema, prepared)
        if self._closed and (prepared.get("type") == "object" or "properties" in prepared):
            prepared.setdefault("additionalProperties", False)
        return prepared

    def _keyword(self, key: str, value: Any) -> Any:
        if key in _SCHEMA_MAPS and isinstance(value, dict):
            rename = portable if key == "patternProperties" else str
            renamed = {rename(name): self._prepare(inner) for name, inner in value.items()}
            if len(renamed) < len(value):
                raise ValueError("two of its `patternProperties` are for the same names")
            return renamed
        if (key in _SCHEMA_LISTS or key == "items") and isinstance(value, list):
            return [self._prepare(inner) for inner in value]
        return self._prepare(value) if key in _SCHEMAS else value

    def _one_of(self, schema: dict[str, Any], prepared: dict[str, Any]) -> None:
        """Exclusive branches are an `anyOf`. A discriminator that a branch does not require is required from now on:
        without it nobody could tell the branches apart."""
        branches = schema["oneOf"]
        tag = schema.get("discriminator")
        tag = tag.get("propertyName") if isinstance(tag, dict) else None
        if not isinstance(tag, str) or any(self._exclusion.values_of(branch, tag) is None for branch in branches):
            tag = None
        if not self._exclusion.excludes(branches, tag):
            return
        alternatives = prepared.pop("oneOf")
        if tag is not None:
            for branch, alternative in zip(branches, alternatives, strict=True):
                if isinstance(branch.get("$ref"), str):
                    self._tags.append((branch["$ref"], tag))
                else:
                    _require(alternative, tag)
        if "anyOf" in prepared:
            prepared["allOf"] = [*_list(prepared.get("allOf")), {"anyOf": alternatives}]
        else:
            prepared["anyOf"] = alternatives


def _require(schema: Any, name: str) -> None:
    if isinstance(schema, dict):
        required = _list(schema.get("required"))
        if name not in required:
            schema["required"] = [*required, name]


def _drop_empty(schema: dict[str, Any]) -> None:
    """Keywords that demand nothing, in place."""
    for key, empty in (("uniqueItems", False), ("not", False), ("dependentRequired", {}), ("dependencies", {})):
        if key in schema and type(schema[key]) is type(empty) and schema[key] == empty:
            del schema[key]
    if "if" not in schema or not ("then" in schema or "else" in schema):
        _remove(schema, "if", "then", "else")
    if "contains" not in schema or (schema.get("minContains") == 0 and "maxContains" not in schema):
        _remove(schema, "contains", "minContains", "maxContains")
    for key in ("unevaluatedProperties", "unevaluatedItems"):
        if schema.get(key) is True or schema.get(key) == {}:
            del schema[key]
    if "unevaluatedProperties" in schema and not any(key in schema for key in _IN_PLACE):
        schema.setdefault("additionalProperties", schema.pop("unevaluatedProperties"))


def _remove(schema: dict[str, Any], *keys: str) -> None:
    for key in keys:
        schema.pop(key, None)


def _name_properties(schema: dict[str, Any]) -> None:
    """`propertyNames`, in place: listed names are properties, a pattern of names is one of `patternProperties`."""
    names = schema.get("propertyNames")
    if names is True:
        names = {}
    if not isinstance(names, dict) or names.get("type", "string") != "string":
        return
    rules = {key: value for key, value in names.items() if key != "type"}
    has_properties = "properties" in schema or "patternProperties" in schema
    values = schema.get("additionalProperties", True)
    match rules:
        case {"enum": list(listed), **rest} if not rest and not has_properties:
            schema["properties"] = {name: values for name in listed if isinstance(name, str)}
        case {"pattern": str(pattern), **rest} if not rest and not has_properties:
            schema["patternProperties"] = {pattern: values}
        case _ if rules:
            return
    if rules:
        schema["additionalProperties"] = False
    del schema["propertyNames"]


def _write_out_strings(schema: dict[str, Any]) -> None:
    """Pattern and format, in place."""
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = portable(schema["pattern"])
    form = schema.get("format")
    if not isinstance(form, str):
        return
    if form not in _FORMATS:
        del schema["format"]
    elif form in _FORMAT_PATTERNS:
        del schema["format"]
        # A format binds strings alone; in a branch of its own it leaves other types and another pattern as they are.
        schema["allOf"] = [*_list(schema.get("allOf")), {"pattern": _FORMAT_PATTERNS[form]}]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
