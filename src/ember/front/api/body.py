"""From a parsed JSON body to a request model: validation errors in one form, and the names of ignored fields.

Bodies are untrusted. Text that UTF-8 cannot encode is refused here: neither the engine nor an answer could carry it.
"""

from __future__ import annotations

import asyncio
import logging
import reprlib
from collections.abc import Sequence
from itertools import islice
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from ember.front.errors import ApiError
from ember.untrusted_json import broken_text

log = logging.getLogger(__name__)

MAX_ENTRIES = 10  # of one error message
MAX_ENTRY_CHARS = 1000
MAX_INPUT_CHARS = 200
MAX_IGNORED = 32  # names in the header
LARGE_BODY = 2**16  # characters of JSON, estimated; a larger body is validated in a thread
IGNORED_FIELDS_HEADER = "X-Ember-Ignored-Fields"

# Fields that cannot change the answer. They are ignored without a warning.
WITHOUT_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "session_id",
        "parallel_tool_calls",
    }
)

_TOOL_FIELDS = {"type", "function"}
_JSON_SCHEMA_FIELDS = {"name", "description", "schema", "strict"}

RequestModel = TypeVar("RequestModel", bound=BaseModel)


class _Short(reprlib.Repr):
    """A `Repr` whose work is bounded however large the value is. The base class would sort a whole dict."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0 and x:
            return "{...}"
        shown = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in islice(x, self.maxdict)]
        return "{" + ", ".join([*shown, "..."] if len(x) > self.maxdict else shown) + "}"


_short = _Short()
_short.maxlevel, _short.maxdict, _short.maxlist = 4, 8, 12
_short.maxstring = _short.maxother = MAX_INPUT_CHARS
_JSON_WORDS = {None: "null", True: "true", False: "false"}
_reported: set[str] = set()


def shown(value: Any) -> str:
    """A value of a body as an error message shows it: shortened, and null, true and false as JSON spells them."""
    return _JSON_WORDS[value] if isinstance(value, bool | None) else _short.repr(value)[:MAX_INPUT_CHARS]


async def parse_body(model: type[RequestModel], body: Any) -> RequestModel:
    """Validate a body. Raises ApiError 400 of type `Bad Request`, which lists each error with its place."""
    return await asyncio.to_thread(_parse, model, body) if _is_large(body) else _parse(model, body)


def _is_large(body: Any) -> bool:
    """Estimate the size of a body, without reading more of it than necessary."""
    left = LARGE_BODY
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            left -= len(value)
        elif isinstance(value, dict | list):
            left -= 16 * len(value)
            if left > 0:
                waiting.extend(value.values() if isinstance(value, dict) else value)
        if left <= 0:
            return True
    return False


def _parse(model: type[RequestModel], body: Any) -> RequestModel:
    check_encodable(body)
    if body is None:
        raise _invalid([{"type": "missing", "loc": (), "msg": "Field required", "input": None}], body)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise _invalid(found, body) from None


def check_encodable(body: Any) -> None:
    """Raises ApiError 400 that names the place of a lone surrogate (JSON can spell one, text cannot hold one)."""
    try:
        orjson.dumps(body)
        return
    except TypeError:  # or it holds a value that orjson does not write, such as an integer of 100 digits
        keys = broken_text(body)
    if keys is not None:
        place = ".".join(["body", *keys])
        message = f"{place} holds a lone surrogate. It is not a character and cannot be encoded as UTF-8."
        raise ApiError(400, message, type="Bad Request", param=place)


def ignored_fields(request: BaseModel, refused_elsewhere: frozenset[str] = frozenset()) -> list[str]:
    """The names of the given fields that have no effect. Each is logged when it is first seen."""
    names = [name for name in extra_fields(request) if name not in WITHOUT_EFFECT and name not in refused_elsewhere]
    for field, value in request:
        if isinstance(value, BaseModel):
            read: frozenset[str] = getattr(value, "read_extra", frozenset())
            names += [f"{field}.{name}" for name in extra_fields(value) if name not in read]
            given = getattr(value, "json_schema", None)  # of a response format
            if isinstance(given, dict):
                unread = {name for name, inner in given.items() if inner is not None} - _JSON_SCHEMA_FIELDS
                names += [f"{field}.json_schema.{name}" for name in sorted(unread, key=str)]
        elif field == "tools" and isinstance(value, list):
            found = {name for tool in value if isinstance(tool, dict) for name in tool.keys() - _TOOL_FIELDS}
            names += [f"tools.{name}" for name in sorted(found, key=str)]
    return reported(names, "the request field %s is unknown and has no effect (logged once per name)")


def extra_fields(model: BaseModel) -> list[str]:
    """The names of given fields that the model does not have."""
    return [name for name, value in (model.model_extra or {}).items() if value is not None]


def reported(names: Sequence[str], message: str) -> list[str]:
    """At most `MAX_IGNORED` of the names, printable in a header. Each is logged when it is first seen."""
    printable = [_printable(name) for name in names[:MAX_IGNORED]]
    for name in printable:
        if name not in _reported and len(_reported) < 1000:
            _reported.add(name)
            log.warning(message, name)
    return printable


def _printable(name: str) -> str:
    """The name with everything replaced that a header or a log line must not hold."""
    return "".join(char if char.isascii() and char.isprintable() and char != "," else "?" for char in name[:64])


def _invalid(found: Sequence[Any], body: Any) -> ApiError:
    entries = []
    first_place = None
    for error in found[:MAX_ENTRIES]:
        place = _place(error["loc"], body, missing=error["type"] == "missing")
        first_place = first_place or place
        given = _short.repr(error["input"])[:MAX_INPUT_CHARS]  # vLLM's form, which is Python's
        entry = f"{{'type': {error['type']!r}, 'loc': {place!r}, 'msg': {error['msg']!r}, 'input': {given}}}"
        entries.append("  " + entry[:MAX_ENTRY_CHARS])
    count = len(found)
    message = f"{count} validation error{'' if count == 1 else 's'}:\n" + "\n".join(entries)
    return ApiError(400, message, type="Bad Request", param=first_place)


def _place(location: Sequence[int | str], body: Any, missing: bool) -> str:
    """`body.messages.0.role`: pydantic's location without the names of union members, which are no part of the body."""
    parts = ["body"]
    here = body
    for position, part in enumerate(location):
        in_list = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if in_list or (isinstance(here, dict) and part in here):
            here = here[part]
        elif not (missing and position == len(location) - 1):
            continue
        parts.append(str(part)[:64])
    return ".".join(parts)
