"""Reading and validating the keywords of a JSON schema.

An invalid or unenforceable keyword raises ValueError with its name. For a schema that need not hold
(`Keywords.lenient`), such a keyword counts as absent, and its name is noted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ember.front.text import json_numbers, regular_language
from ember.front.text.pace import Pace
from ember.front.text.portable_regex import portable, searched

MAX_SECONDS = 5.0  # CPU time of this thread, for all queries to the engine's grammar library about one schema
MAX_LISTED_VALUES = 50_000

T = TypeVar("T")
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
PLAIN = frozenset(  # enforceable keywords that constrain the value itself
    (
        *("type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "pattern", "format", "items", "prefixItems", "additionalItems", "minItems"),
        *("maxItems", "properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
        *("minProperties", "maxProperties", "unevaluatedProperties"),
    )
)
_IN_PLACE = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "then", "else", "not", "dependentSchemas")
_NO_DEMANDS: dict[str, tuple[Any, ...]] = {  # values with which unenforceable keywords demand nothing
    "uniqueItems": (False,),
    "not": (False,),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "unevaluatedItems": (True, {}),
}
_FORMATS = {
    *("date", "date-time", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
    *("uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer"),
    "regex",
}
_OF_COMPILER = ("duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")  # implemented by its compiler

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_MONTH_AND_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_MONTH_AND_DAY}|{_LEAP_YEAR}-02-29)"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"
FORMAT_PATTERNS = {
    "date": f"^{_DATE}$",  # RFC 3339
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "json-pointer": f"^{_POINTER}$",  # RFC 6901
    "relative-json-pointer": f"^(?:0|[1-9][0-9]*)(?:#|{_POINTER})$",
}


class Keywords:
    """Reads the keywords of one document's schemas. `dropped`: keywords left out of schemas that need not hold."""

    def __init__(self, *, lenient: bool, closed: bool) -> None:
        self.lenient = lenient
        self.closed = closed  # whether additional properties are forbidden by default
        self.dropped: set[str] = set()
        self.pace = Pace()
        self._began = time.thread_time()

    def refuse(self, keyword: str, reason: str = "cannot be enforced") -> None:
        """Raise ValueError, or note the keyword if the schema need not hold."""
        if not self.lenient:
            raise ValueError(f"`{keyword}` {reason}")
        self.dropped.add(keyword)

    def checked(self, keyword: str, read: Callable[[], T], default: T) -> T:
        """The result of `read`, or the default if it raises ValueError and the schema need not hold."""
        try:
            return read()
        except ValueError as error:
            if not self.lenient:
                message = str(error)
                raise ValueError(message if f"`{keyword}`" in message else f"`{keyword}`: {message}") from None
            self.dropped.add(keyword)
            return default

    def check_time(self) -> None:
        """Raise ValueError if the schema has taken too long. This is called before each query to the engine's grammar
        library, whose own limits bound one query to seconds."""
        self.pace.keep()
        if time.thread_time() - self._began > MAX_SECONDS:
            raise ValueError(f"the schema takes more than {MAX_SECONDS:g} seconds to check: use fewer patterns")

    def check(self, schema: dict[str, Any]) -> None:
        """Refuse a schema's keywords that cannot be enforced."""
        for keyword, allowed in _NO_DEMANDS.items():
            value = schema.get(keyword)
            if keyword in schema and not any(type(value) is type(said) and value == said for said in allowed):
                self.refuse(keyword)
        if "if" in schema and ("then" in schema or "else" in schema):
            self.refuse("if")
        if "contains" in schema and not (schema.get("minContains") == 0 and "maxContains" not in schema):
            self.refuse("contains")
        for keyword in ("$dynamicRef", "$recursiveRef"):
            if keyword in schema:
                self.refuse(keyword)
        if self._unevaluated(schema) not in (True, {}) and any(key in schema for key in _IN_PLACE):
            self.refuse("unevaluatedProperties")

    # ------------------------------------------------------------------------------------------------- their values

    def types(self, schema: dict[str, Any]) -> tuple[str, ...]:
        """The types that a schema allows. An integer is also a number."""
        given = schema.get("type")
        names = [given] if isinstance(given, str) else given
        if names is None:
            return TYPES
        if not isinstance(names, list) or not names or not all(name in TYPES for name in names):
            self.refuse("type", f"must be one of {', '.join(TYPES)}, or a list of them, got {repr(given)[:64]}")
            return TYPES
        return tuple(names)

    def schemas(self, schema: dict[str, Any], keyword: str) -> dict[str, Any]:
        """The value of a keyword that is an object of schemas."""
        value = schema.get(keyword)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse(keyword, "must be an object")
            return {}
        return value

    def list_of(self, schema: dict[str, Any], keyword: str) -> list[Any] | None:
        """The value of a keyword that is a list; None if it is absent."""
        value = schema.get(keyword)
        if value is not None and not isinstance(value, list):
            self.refuse(keyword, "must be a list")
            return None
        return value

    def required(self, schema: dict[str, Any]) -> list[str]:
        names = self.list_of(schema, "required") or []
        if not all(isinstance(name, str) for name in names):
            self.refuse("required", "must be a list of strings")
        return [name for name in names if isinstance(name, str)]

    def size(self, schema: dict[str, Any], keyword: str) -> int | None:
        """The value of a keyword that is a count."""
        value = schema.get(keyword)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != math.floor(value):
            self.refuse(keyword, f"must be a whole number that is not negative, got {repr(value)[:64]}")
            return None
        return int(value)

    def listed(self, schema: dict[str, Any]) -> list[Any] | None:
        """The values of `const` or `enum`; None if all are allowed."""
        values = self.list_of(schema, "enum")
        if "const" in schema:
            return [schema["const"]]
        if values is not None and len(values) > MAX_LISTED_VALUES:
            raise ValueError(f"`enum` has {len(values)} values; {MAX_LISTED_VALUES} are allowed")
        return values

    def bounds(self, schema: dict[str, Any]) -> tuple[json_numbers.Bound | None, json_numbers.Bound | None]:
        nothing: tuple[json_numbers.Bound | None, json_numbers.Bound | None] = (None, None)
        return self.checked("minimum", lambda: json_numbers.bounds(schema), nothing)

    def multiple_of(self, schema: dict[str, Any]) -> Any:
        return self.checked("multipleOf", lambda: json_numbers.multiple_of(schema), None)

    def pattern(self, pattern: Any, keyword: str) -> str | None:
        """A pattern in the engine's dialect; None if it is invalid and the schema need not hold."""

        def read() -> str | None:
            if not isinstance(pattern, str):
                raise ValueError(f"`{keyword}` must be a string")
            made = portable(pattern)
            self.check_time()
            try:
                regular_language.check(made)
            except ValueError as error:
                raise ValueError(f"`{keyword}` {pattern[:64]!r} cannot be used: {error}") from None
            return made

        return self.checked(keyword, read, None)

    def string_rules(self, schema: dict[str, Any]) -> list[dict[str, str]]:
        """A schema's pattern and format, as keywords of the engine's compiler."""
        rules = []
        if "pattern" in schema:
            pattern = self.pattern(schema["pattern"], "pattern")
            rules += [] if pattern is None else [{"pattern": pattern}]
        form = schema.get("format")
        if form in FORMAT_PATTERNS:
            rules.append({"pattern": FORMAT_PATTERNS[form]})
        elif form in _OF_COMPILER:
            rules.append({"format": form})
        elif isinstance(form, str) and form in _FORMATS:  # others are annotations (JSON Schema)
            self.refuse("format", f"{form!r} cannot be enforced")
        return rules

    def text_patterns(self, rules: list[dict[str, str]]) -> list[str]:
        """Convert the result of `string_rules` to regular expressions for a whole text without JSON's escapes."""
        found = []
        for rule in rules:
            if "pattern" in rule:
                made = self.checked("pattern", partial(searched, rule["pattern"]), "(?s:.*)")
                found.append(made)
            else:
                self.refuse("format", f"{rule['format']!r} cannot be enforced in this model's form of calls")
        return found

    def additional(self, schema: dict[str, Any]) -> Any:
        """The schema of additional properties."""
        if "additionalProperties" in schema:
            return schema["additionalProperties"]
        if not any(key in schema for key in _IN_PLACE):
            found = self._unevaluated(schema)
            if found is not True:
                return found
        is_object = schema.get("type") == "object" or "properties" in schema
        return not (self.closed and is_object and "propertyNames" not in schema)

    def items(self, schema: dict[str, Any]) -> tuple[list[Any], Any]:
        """The schemas of the first items, and the schema of the others."""
        items = schema.get("items", True)
        if isinstance(items, list):  # the form of drafts before 2020
            return items, schema.get("additionalItems", True)
        return self.list_of(schema, "prefixItems") or [], items

    def _unevaluated(self, schema: dict[str, Any]) -> Any:
        return schema.get("unevaluatedProperties", True)
