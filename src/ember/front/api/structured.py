"""From the fields that demand a form of output, in all their versions, to one grammar for the engine.

The fields are `response_format`, `structured_outputs` (in native jobs also `guided_decoding`), and the older fields of
one kind each, such as `guided_json`. A request may have one demand. Several demands, and one that cannot be met, are a
400 that names the field. No demand is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ember.front.api.schemas import GenerationRequest, ResponseFormat
from ember.front.errors import ApiError, bad_request
from ember.front.text import regular_language
from ember.front.text.json_schema import ANY_OBJECT, DEFAULT_WHITESPACE, schema_grammar
from ember.front.text.lark import choice, regexes
from ember.front.text.portable_regex import portable
from ember.front.text.structural_tag import structural_tag_grammar
from ember.front.text.tokenizer import Tokenizer
from ember.untrusted_json import UntrustedJsonError, loads
from ember.wire import Grammar

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_WITH_SCHEMAS = ("json", "structural_tag")
_FLAGS = ("disable_any_whitespace", "disable_additional_properties")
# Fields that choose a library or allow a fallback. Ember has one library, which refuses what it cannot do.
_OF_BACKENDS = frozenset({"backend", "_backend", "_backend_was_auto", "backend_was_auto", "disable_fallback"})
_FORMATS = ("text", "json_object", "json_schema", "structural_tag")
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
MAX_BLANKS = 24  # where a pattern for whitespace has no limit
# The parts of a regular expression that matches nothing but what JSON knows as whitespace.
_BLANKS = re.compile(r"(?:\\[snrt]|\\x(?:20|09|0[aAdD])|[ \t\n\r]|[\[\]()|*+?]|\?:|\{[0-9]*,?[0-9]*\})*")


@dataclass(frozen=True, slots=True)
class _Demand:
    """One demand: its kind and value, the field it comes from, and how JSON is to be written."""

    kind: str
    value: Any
    field: str
    whitespace: str = DEFAULT_WHITESPACE
    closed: bool = False  # the schema allows no additional properties unless it says otherwise

    def error(self, reason: str) -> ApiError:
        return bad_request(f"`{self.field}` {reason}", self.field)


def structured_grammar(request: GenerationRequest, tokenizer: Tokenizer) -> Grammar | None:
    """The grammar that the engine has to enforce, or None when the request demands no form. Raises ApiError 400."""
    found = [*_of_response_format(request.response_format), *_of_objects(request), *_of_old_fields(request)]
    if not found:
        if request.guided_whitespace_pattern is not None:
            raise bad_request("`guided_whitespace_pattern` needs `guided_json` beside it.", "guided_whitespace_pattern")
        return None
    if len(found) > 1:
        names = ", ".join(f"`{demand.field}`" for demand in found)
        raise bad_request(f"A request can demand one form of output; this one has {names}.", found[1].field)
    return _grammar(found[0], tokenizer)


# ------------------------------------------------------------------------------------------------- where demands stand


def _of_response_format(given: ResponseFormat | None) -> list[_Demand]:
    if given is None:
        return []
    field = "response_format"
    extra = given.model_extra or {}
    if given.type not in _FORMATS:
        raise bad_request(f"response_format type must be one of {', '.join(_FORMATS)}, got {given.type[:64]!r}.", field)
    if given.json_schema is not None and given.type != "json_schema":
        message = f"`response_format.json_schema` demands the type 'json_schema', and the type is {given.type!r}."
        raise bad_request(message, field)
    if given.type == "structural_tag":
        return [_Demand("structural_tag", extra, field)]
    if extra.get("schema") is not None and given.type != "json_object":
        place = "needs the type 'json_object'" if given.type == "text" else "belongs into `response_format.json_schema`"
        raise bad_request(f"`response_format.schema` {place}.", field)
    if given.type == "text":
        return []
    if given.type == "json_object":
        schema = extra.get("schema")
        return [_Demand("json_object", True, field) if schema is None else _Demand("json", schema, field)]
    if given.json_schema is None:
        message = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
        raise bad_request(message, field)
    for name, kind, words in (("name", str, "a string"), ("strict", bool, "true or false")):
        if not isinstance(given.json_schema.get(name), kind | None):
            raise bad_request(f"`response_format.json_schema.{name}` must be {words}.", field)
    if given.json_schema.get("schema") is None:
        raise bad_request("`response_format.json_schema` must have the schema itself as `schema`.", field)
    return [_Demand("json", given.json_schema["schema"], field)]


def _of_objects(request: GenerationRequest) -> list[_Demand]:
    """`structured_outputs`, and `guided_decoding` of native jobs, which is the same under its first name."""
    found = []
    for name in ("structured_outputs", "guided_decoding"):
        given = getattr(request, name)
        if given is not None:
            found.append(_of_object(given, name))
    return found


def _of_object(given: Mapping[str, Any], name: str) -> _Demand:
    options = {key: value for key, value in given.items() if value is not None and key not in _OF_BACKENDS}
    unknown = next((key for key in options if key not in (*KINDS, *_FLAGS, "whitespace_pattern")), None)
    if unknown is not None:
        allowed = ", ".join((*KINDS, *_FLAGS, "whitespace_pattern"))
        raise bad_request(f"`{name}` has the unknown field {unknown[:64]!r}; there are {allowed}.", name)
    kinds = [kind for kind in KINDS if kind in options]
    if len(kinds) != 1:
        had = f"it has {', '.join(kinds)}" if kinds else "it has none"
        raise bad_request(f"`{name}` must have exactly one of {', '.join(KINDS)}; {had}.", name)
    for flag in _FLAGS:
        if not isinstance(options.get(flag, False), bool):
            raise bad_request(f"`{name}.{flag}` must be true or false.", f"{name}.{flag}")
    kind = kinds[0]
    demand = _Demand(kind, options[kind], f"{name}.{kind}", closed=options.get("disable_additional_properties", False))
    if demand.closed and kind not in _WITH_SCHEMAS:
        flag = f"{name}.disable_additional_properties"
        raise bad_request(f"`{flag}` can be used with {' and '.join(_WITH_SCHEMAS)}, not with {kind}.", flag)
    if options.get("disable_any_whitespace"):
        if "whitespace_pattern" in options:
            message = f"`{name}` cannot have both disable_any_whitespace and whitespace_pattern."
            raise bad_request(message, f"{name}.whitespace_pattern")
        return _with_whitespace(demand, "", f"{name}.disable_any_whitespace")
    if "whitespace_pattern" in options:
        return _with_whitespace(demand, options["whitespace_pattern"], f"{name}.whitespace_pattern")
    return demand


def _of_old_fields(request: GenerationRequest) -> list[_Demand]:
    fields = {
        "guided_json": "json",
        "guided_regex": "regex",
        "guided_choice": "choice",
        "guided_grammar": "grammar",
        "guided_json_object": "json_object",
        "structural_tag": "structural_tag",
    }
    found = []
    for name, kind in fields.items():
        value = getattr(request, name)
        if value is None or (name == "guided_json_object" and value is False):  # it was a flag, off by default
            continue
        demand = _Demand(kind, value, name)
        if request.guided_whitespace_pattern is not None:
            demand = _with_whitespace(demand, request.guided_whitespace_pattern, "guided_whitespace_pattern")
        found.append(demand)
    return found


def _with_whitespace(demand: _Demand, pattern: Any, field: str) -> _Demand:
    """The demand with its own pattern for whitespace. "" allows none. Raises ApiError 400."""
    if demand.kind not in ("json", "json_object", "structural_tag"):
        raise bad_request(f"`{field}` is for JSON and cannot be used with `{demand.field}`.", field)
    if not isinstance(pattern, str) or _BLANKS.fullmatch(pattern) is None:
        message = (
            f"`{field}` must be a regular expression of whitespace alone: blanks, \\s, \\n, \\r, \\t and repetitions."
        )
        raise bad_request(message, field)
    try:
        regular_language.check(portable(pattern))
    except ValueError as error:
        raise bad_request(f"`{field}` cannot be used: {error}", field) from None
    return replace(demand, whitespace=_bounded(pattern))


def _bounded(pattern: str) -> str:
    """The pattern limited to the whitespace of JSON, with a limit for each repetition."""
    in_brackets = False
    parts = []
    for part in re.findall(r"\\.|\{[0-9]*,?[0-9]*\}|.", pattern, re.DOTALL):
        in_brackets = part == "[" or (in_brackets and part != "]")
        if part == r"\s":  # more than JSON allows
            part = r" \t\n\r" if in_brackets else r"[ \t\n\r]"
        elif part in ("*", "+") and not in_brackets:
            part = f"{{{int(part == '+')},{MAX_BLANKS}}}"
        elif part.startswith("{") and part.endswith(",}"):
            part = f"{part[:-1]}{max(int(part[1:-2] or 0), MAX_BLANKS)}}}"
        parts.append(part)
    return "".join(parts)


# ------------------------------------------------------------------------------------------------------ what they mean


def _grammar(demand: _Demand, tokenizer: Tokenizer) -> Grammar:
    make = _MAKERS[demand.kind]
    try:
        kind, text = make(demand, tokenizer)
    except ValueError as error:
        raise bad_request(f"`{demand.field}` cannot be used: {error}", demand.field) from None
    return Grammar(kind, text, demand.field)


def _json(demand: _Demand, tokenizer: Tokenizer) -> tuple[str, str]:
    return "json", schema_grammar(_parsed(demand), whitespace=demand.whitespace, closed=demand.closed)


def _json_object(demand: _Demand, tokenizer: Tokenizer) -> tuple[str, str]:
    if demand.value is not True:
        raise demand.error("must be true, or left out.")
    return "json", schema_grammar(ANY_OBJECT, whitespace=demand.whitespace)


def _regex(demand: _Demand, tokenizer: Tokenizer) -> tuple[str, str]:
    return "regex", portable(_text(demand))


def _choice(demand: _Demand, tokenizer: Tokenizer) -> tuple[str, str]:
    values = demand.value
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise demand.error("must be a list of at least one string.")
    return "lark", choice(values)


def _own_grammar(demand: _Demand, tokenizer: Tokenizer) -> tuple[str, str]:
    """The kind and the text of a grammar. GBNF and Lark differ in how a rule is written."""
    text = _text(demand)
    if _GBNF_RULE.search(text):
        return "gbnf", text
    for pattern in regexes(text):
        portable(pattern)  # for its errors: the expression itself is in the grammar's own dialect
    return "lark", text


def _structural_tag(demand: _Demand, tokenizer: Tokenizer) -> tuple[str, str]:
    tag = _parsed(demand)
    return "lark", structural_tag_grammar(tag, tokenizer, whitespace=demand.whitespace, closed=demand.closed)


_MAKERS: dict[str, Callable[[_Demand, Tokenizer], tuple[str, str]]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _own_grammar,
    "json_object": _json_object,
    "structural_tag": _structural_tag,
}


def _text(demand: _Demand) -> str:
    if not isinstance(demand.value, str) or not demand.value:
        raise demand.error("must be a non-empty string.")
    return demand.value


def _parsed(demand: _Demand) -> Any:
    """An object, or the JSON text of one. Raises ValueError."""
    if not isinstance(demand.value, str):
        return demand.value
    try:
        return loads(demand.value)
    except UntrustedJsonError as error:
        raise ValueError(f"it is not JSON ({error})") from None
