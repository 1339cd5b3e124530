"""From a parsed JSON body to a request model: validation errors in one form, and a word about ignored fields."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ember.front.errors import ApiError

log = logging.getLogger(__name__)

MAX_ENTRIES = 10  # of one error message
MAX_ENTRY_CHARS = 1000
MAX_INPUT_CHARS = 200
IGNORED_FIELDS_HEADER = "X-Ember-Ignored-Fields"

# Fields that change nothing in the answer by their nature, so leaving them without effect deserves no word.
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
        "length_penalty",  # these two tune the beam search, which is refused by its own name
        "early_stopping",
    }
)

RequestModel = TypeVar("RequestModel", bound=BaseModel)

_short = reprlib.Repr()  # its work is bounded, however large the value
_short.maxlevel, _short.maxdict, _short.maxlist = 4, 8, 12
_short.maxstring = _short.maxother = MAX_INPUT_CHARS
_reported: set[str] = set()


def parse_body(model: type[RequestModel], body: Any) -> RequestModel:
    """Raises ApiError 400 of type `Bad Request` that lists what is wrong, with the place of each."""
    if body is None:
        raise _invalid([{"type": "missing", "loc": (), "msg": "Field required", "input": None}], body)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise _invalid(found, body) from None


def ignored_fields(request: BaseModel, refused_elsewhere: frozenset[str] = frozenset()) -> list[str]:
    """The names of given fields without effect; each is logged the first time it is met."""
    names = [name for name, value in (request.model_extra or {}).items() if value is not None]
    names = [_printable(name) for name in names if name not in WITHOUT_EFFECT and name not in refused_elsewhere][:32]
    for name in names:
        if name not in _reported and len(_reported) < 1000:
            _reported.add(name)
            log.warning("the request field %s is not known and has no effect (said once per name)", name)
    return names


def _printable(name: str) -> str:
    """A name that is safe in a header and in the log."""
    return "".join(char if char.isascii() and char.isprintable() and char != "," else "?" for char in name[:64])


def _invalid(found: Sequence[Any], body: Any) -> ApiError:
    entries = []
    first_place = None
    for error in found[:MAX_ENTRIES]:
        place = _place(error["loc"], body, missing=error["type"] == "missing")
        first_place = first_place or place
        given = _short.repr(error["input"])[:MAX_INPUT_CHARS]
        entry = f"{{'type': {error['type']!r}, 'loc': {place!r}, 'msg': {error['msg']!r}, 'input': {given}}}"
        entries.append("  " + entry[:MAX_ENTRY_CHARS])
    count = len(found)
    message = f"{count} validation error{'' if count == 1 else 's'}:\n" + "\n".join(entries)
    return ApiError(400, encodable(message), type="Bad Request", param=first_place and encodable(first_place))


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


def encodable(text: str) -> str:
    """The text with lone surrogates, which no JSON encoder takes, as question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
