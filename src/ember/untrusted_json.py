"""JSON from outside: request bodies, jobs, results, the files of a model. Everything that reads it reads it here.

Whatever is wrong with a document is one exception with a one-line reason: broken syntax, too deep a nesting, an integer
of too many digits, text that no encoding explains. `MAX_DEPTH` is chosen so that what was read can be written again by
every encoder we use, also inside the few levels that a queue puts around it: orjson writes 254 levels.

Bytes are UTF-8, UTF-16 or UTF-32, with or without a byte-order mark, as RFC 4627 and `json.loads` have it. Of keys that
are given twice the last counts. This module imports nothing heavy: the engine reads a model's files with it.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ember.regular_file import UnfitFileError, read_regular

MAX_DEPTH = 200  # of a document from outside
QUEUE_DEPTH = MAX_DEPTH + 10  # the same where it may lie inside what a queue puts around it
_UNREADABLE_ID_CHARS = 1000  # of an id that is looked for in an element which cannot be read

# Whatever matters for where an element ends: whole strings, runs of brackets, commas. Every alternative matches
# without going back; a quote that is left alone begins a string that does not end.
_MARKS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]+|[\]}]+|["\\,:]', re.DOTALL)
_SPACE = re.compile(r"[ \t\n\r]*")


class UntrustedJsonError(ValueError):
    """A document that is not read; the message is one line without the document's name."""


@dataclass(frozen=True)
class Unreadable:
    """An element of a list that is not read: why, and the `id` that it has, where that can be found."""

    reason: str
    id: str | None


def loads(data: bytes | bytearray | str, max_depth: int = MAX_DEPTH) -> Any:
    """As `json.loads` reads it: NaN, infinities and halves of surrogate pairs are let in. Raises UntrustedJsonError."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UntrustedJsonError(_reason(error, max_depth)) from None
    check_depth(value, max_depth, data)
    return value


def loads_strict(data: bytes | str, max_depth: int = MAX_DEPTH) -> Any:
    """Only what can be written again as UTF-8: no NaN, no halves of surrogate pairs. About five times as fast.

    An integer of more than 64 bits becomes a float. Raises UntrustedJsonError.
    """
    import orjson  # the engine does without

    try:
        if isinstance(data, bytes) and (data[:1] not in (b"{", b"[") or 0 in data[:4]):
            encoding = json.detect_encoding(data)
            if encoding != "utf-8":
                data = data.decode(encoding)
        value = orjson.loads(data)
    except ValueError as error:
        raise UntrustedJsonError(_reason(error, max_depth)) from None
    check_depth(value, max_depth, data)
    return value


def loads_each(data: bytes, max_depth: int = MAX_DEPTH) -> list[Any]:
    """The elements of a list, or the one document that is none. One that cannot be read is an `Unreadable` in its place
    and costs no other. Raises UntrustedJsonError where nothing can be made out.

    A list that is in order takes no longer than `loads`; one that is not may take seconds for tens of megabytes.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _each(_text(data), max_depth)
    elements = value if isinstance(value, list) else [value]
    if _is_shallow(data, max_depth):
        return elements
    return [_checked(element, max_depth) for element in elements]


def read_file(path: Path, max_bytes: int, max_depth: int = MAX_DEPTH) -> Any:
    """The document in a regular file. What only looks like one (a FIFO, a device) is not waited for.

    Raises UntrustedJsonError, and OSError where the file cannot be opened or read.
    """
    try:
        data = read_regular(path, max_bytes)
    except UnfitFileError as error:
        raise UntrustedJsonError(error.strerror) from None
    return loads(data, max_depth)


def check_depth(value: Any, max_depth: int = MAX_DEPTH, data: bytes | bytearray | str | None = None) -> None:
    """Raises UntrustedJsonError where containers are nested deeper. `data` is what `value` was read from, where that is
    at hand: a document with no more brackets than levels needs no look at its values."""
    if data is not None and _is_shallow(data, max_depth):
        return
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(max_depth):
        level = [
            inner
            for container in level
            for inner in (container.values() if isinstance(container, dict) else container)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise UntrustedJsonError(_too_deep(max_depth))


def _is_shallow(data: bytes | bytearray | str, max_depth: int) -> bool:
    if isinstance(data, str):
        return data.count("[") + data.count("{") <= max_depth
    return data.count(b"[") + data.count(b"{") <= max_depth


def _too_deep(max_depth: int) -> str:
    return f"it is nested more than {max_depth} levels deep"


def _reason(error: BaseException, max_depth: int) -> str:
    """One line for what a parser raised."""
    if isinstance(error, RecursionError) or "depth limit" in str(error):
        return _too_deep(max_depth)
    if isinstance(error, json.JSONDecodeError):  # orjson's is one too
        return " ".join(str(error).split())
    if isinstance(error, UnicodeDecodeError):
        return f"it is not {error.encoding.upper()} text: {error.reason} at byte {error.start}"
    if "integer string conversion" in str(error):
        return f"it holds an integer of more than {sys.get_int_max_str_digits()} digits"
    return " ".join(str(error).split())


# --------------------------------------------------------------------------------------------------- one by one


def _text(data: bytes) -> str:
    """Bytes that are no UTF-8 are halves of surrogate pairs here, in the one element that has them."""
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass")
    except UnicodeDecodeError as error:
        raise UntrustedJsonError(_reason(error, MAX_DEPTH)) from None


def _checked(element: Any, max_depth: int) -> Any:
    try:
        check_depth(element, max_depth)
    except UntrustedJsonError as error:
        found = element.get("id") if isinstance(element, dict) else None
        return Unreadable(str(error), found if isinstance(found, str) else None)
    return element


def _each(text: str, max_depth: int) -> list[Any]:
    """The elements of a list one by one: those that can be read by the parser, the others by their brackets."""
    decoder = json.JSONDecoder()
    at = _skip_space(text, 0)
    is_list = text.startswith("[", at)
    at = _skip_space(text, at + is_list)
    elements: list[Any] = []
    while True:
        try:
            element, end = decoder.raw_decode(text, at)
            elements.append(_checked(element, max_depth))
        except (ValueError, RecursionError) as error:
            bad, end = _skip_element(text, at, _reason(error, max_depth))
            if not elements and bad.id is None and end == len(text):
                raise UntrustedJsonError(bad.reason) from None
            elements.append(bad)
        at = _skip_space(text, end)
        if not (is_list and text.startswith(",", at)):
            return elements
        at = _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _skip_element(text: str, start: int, reason: str) -> tuple[Unreadable, int]:
    """The element that begins at `start`, with its `id` as far as it is an object with one, and where it ends.

    One that does not end takes the rest of the text: nothing says where the next would begin.
    """
    depth = 0
    is_name = is_id = False  # whether the name of an entry of the element itself may come, and whether it was `id`
    found: str | None = None
    end = len(text)
    for mark in _MARKS.finditer(text, start):
        what = mark.group()
        if what[0] in "[{":
            is_name = depth == 0 and what == "{"
            is_id = False
            depth += len(what)
        elif what[0] in "]}":
            if depth <= len(what):  # the run may hold the end of the list as well
                end = mark.start() + depth
                break
            depth -= len(what)
        elif what == ",":
            if depth == 0:
                end = mark.start()
                break
            is_name, is_id = depth == 1, False
        elif what in ('"', "\\"):  # a string that does not end, or no JSON at all
            break
        elif what != ":" and depth == 1:
            if is_name:
                is_name, is_id = False, what == '"id"'
            elif is_id:
                found = _string(what)
    return Unreadable(reason, found), end


def _string(text: str) -> str | None:
    """What a JSON string says, where it may be an id."""
    try:
        value = json.loads(text) if len(text) <= _UNREADABLE_ID_CHARS else None
    except ValueError:
        return None
    return value if isinstance(value, str) else None
