"""Reads JSON from outside: request bodies, jobs, results, the files of a model. All such JSON is read here.

An invalid document raises one exception with a reason of one line: a syntax error, too many levels of nesting, an
integer of too many digits, or text in no known encoding. `MAX_DEPTH` is small enough that every encoder in use can
write the document again, also inside the few levels that a queue adds: orjson writes 254 levels.

Bytes are UTF-8, UTF-16 or UTF-32, with or without a byte-order mark, as in RFC 4627 and `json.loads`. Of duplicate keys
the last one counts. This module imports only light modules, since the engine reads a model's files with it.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ember.regular_file import UnfitFileError, read_regular

MAX_DEPTH = 200  # levels of nesting in a document from outside
MAX_VALUES = 4_000_000  # values in a document of a client: numbers, strings, lists and objects
QUEUE_DEPTH = MAX_DEPTH + 10  # levels of nesting where a queue may have wrapped the document
_UNREADABLE_ID_CHARS = 1000  # characters of an id that is searched for in an unreadable element

_MAX_UNREADABLE = 1000  # elements of one list, since finding each one counts from the start

# The text between two brackets: whole strings and anything else, including containers with at most two levels below
# them, so that few brackets are matched one by one. Every repetition is possessive, so the match never backtracks.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PLAIN = rf'[^"\[\]{{}}]++|{_STRING}'
_FLAT = rf"\[(?:{_PLAIN})*+\]|\{{(?:{_PLAIN})*+\}}"
_TWO = rf"\[(?:{_PLAIN}|{_FLAT})*+\]|\{{(?:{_PLAIN}|{_FLAT})*+\}}"
_THREE = rf"\[(?:{_PLAIN}|{_TWO})*+\]|\{{(?:{_PLAIN}|{_TWO})*+\}}"
_INSIDE = f"(?:{_PLAIN}|{_THREE})*+"
_BRACKETS = re.compile(r"[\[{]+|[\]}]+")
_SCALAR = re.compile(rf'(?:[^",\[\]{{}}]++|{_STRING})*+', re.DOTALL)
_ID = rf'"id"[ \t\n\r]*:[ \t\n\r]*({_STRING})|{_STRING}|{_THREE}'
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\n\r]*")


class UntrustedJsonError(ValueError):
    """The document cannot be read. The message is one line without the document's name."""


@dataclass(frozen=True)
class Unreadable:
    """An element of a list that cannot be read: the reason, and the element's `id` if it can be found."""

    reason: str
    id: str | None


def loads(data: bytes | bytearray | str, max_depth: int = MAX_DEPTH, max_values: int | None = None) -> Any:
    """Read a document as `json.loads` does, with NaN, infinities and lone surrogates. Raises UntrustedJsonError."""
    _check_values(data, max_values)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UntrustedJsonError(_reason(error, max_depth)) from None
    check_depth(value, max_depth, data)
    return value


def loads_strict(data: bytes | str, max_depth: int = MAX_DEPTH, max_values: int | None = None) -> Any:
    """Read a document that has neither NaN nor unpaired surrogates. About five times as fast as `loads`.

    An integer of more than 64 bits becomes a float. Raises UntrustedJsonError.
    """
    import orjson  # imported here, since the engine does not need it

    _check_values(data, max_values)
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
    """The elements of a list, or a list with the document if it is not a list.

    An element that cannot be read becomes an `Unreadable`; the others are returned. Raises UntrustedJsonError if no
    elements can be found. A valid list takes as long as `loads`; another may take a second for ten megabytes.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _each(_text(data), max_depth)
    elements = value if isinstance(value, list) else [value]
    if _is_shallow(data, max_depth):
        return elements
    return [_checked(element, max_depth) for element in elements]


def broken_text(value: Any) -> list[str] | None:
    """The place, as keys, of the first text with a lone surrogate, which UTF-8 cannot represent; None if there is none.
    A key of an object counts as part of the object."""
    waiting: list[tuple[Any, Any, Any]] = [(value, None, None)]  # value, its key, the entry it is in
    while waiting:
        entry = waiting.pop()
        value = entry[0]
        items: Any = ()
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list | tuple):
            items = enumerate(value)
        if _is_broken(value) or (isinstance(value, dict) and any(_is_broken(key) for key in value)):
            parts: list[str] = []
            while entry is not None and entry[2] is not None:
                parts.append(str(entry[1])[:64])
                entry = entry[2]
            return [*reversed(parts[-8:])]
        waiting.extend((inner, key, entry) for key, inner in items)
    return None


def _is_broken(value: Any) -> bool:
    return isinstance(value, str) and not value.isascii() and bool(_SURROGATE.search(value))


def read_file(path: Path, max_bytes: int, max_depth: int = MAX_DEPTH) -> Any:
    """Read the document in a regular file. FIFOs and devices are refused without blocking.

    Raises UntrustedJsonError, and OSError if the file cannot be opened or read.
    """
    try:
        data = read_regular(path, max_bytes)
    except UnfitFileError as error:
        raise UntrustedJsonError(error.strerror) from None
    return loads(data, max_depth)


def read_object(path: Path, max_bytes: int) -> dict[str, Any] | None:
    """Read the object in a regular file. Returns None if the file does not exist.

    Raises UntrustedJsonError, also if the file cannot be read.
    """
    try:
        value = read_file(path, max_bytes)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UntrustedJsonError(error.strerror) from None
    if not isinstance(value, dict):
        raise UntrustedJsonError("it is not a JSON object")
    return value


def check_depth(value: Any, max_depth: int = MAX_DEPTH, data: bytes | bytearray | str | None = None) -> None:
    """Raise UntrustedJsonError if containers are nested deeper than `max_depth`. `data` is the document of `value`, if
    the caller has it: a document with at most `max_depth` brackets needs no walk through its values."""
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


def _check_values(data: bytes | bytearray | str, max_values: int | None) -> None:
    """Raise UntrustedJsonError if the document may have too many values, since a value needs up to 30 times its text in
    memory. The count is that of the punctuation, including punctuation inside strings."""
    if max_values is None or len(data) <= max_values:
        return
    marks: Any = ",[{" if isinstance(data, str) else (b",", b"[", b"{")
    if sum(data.count(mark) for mark in marks) > max_values:
        raise UntrustedJsonError(f"it has more than {max_values} values")


def _is_shallow(data: bytes | bytearray | str, max_depth: int) -> bool:
    if isinstance(data, str):
        return data.count("[") + data.count("{") <= max_depth
    return data.count(b"[") + data.count(b"{") <= max_depth


def _too_deep(max_depth: int) -> str:
    return f"it is nested more than {max_depth} levels deep"


def _reason(error: BaseException, max_depth: int) -> str:
    """A reason of one line for a parser's exception."""
    if isinstance(error, RecursionError) or "depth limit" in str(error):
        return _too_deep(max_depth)
    if isinstance(error, json.JSONDecodeError):  # orjson's error is a subclass
        return " ".join(str(error).split())
    if isinstance(error, UnicodeDecodeError):
        return f"it is not {error.encoding.upper()} text: {error.reason} at byte {error.start}"
    if "integer string conversion" in str(error):
        return f"it holds an integer of more than {sys.get_int_max_str_digits()} digits"
    return " ".join(str(error).split())


# --------------------------------------------------------------------------------------------------- one by one


def _text(data: bytes) -> str:
    """Decode a document. A byte that is not UTF-8 becomes a lone surrogate, which makes only its element invalid."""
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
    """The elements of a list one by one: the parser reads the valid ones, and brackets delimit the others."""
    decoder = json.JSONDecoder()
    at = _skip_space(text, 0)
    is_list = text.startswith("[", at)
    at = _skip_space(text, at + is_list)
    elements: list[Any] = []
    num_unreadable = 0
    while True:
        try:
            element, end = decoder.raw_decode(text, at)
            elements.append(_checked(element, max_depth))
        except (ValueError, RecursionError) as error:
            bad, end = _skip_element(text, at, _reason(error, max_depth))
            if not elements and bad.id is None and not (is_list and end < len(text)):
                raise UntrustedJsonError(bad.reason) from None
            elements.append(bad)
            num_unreadable += 1
        at = _skip_space(text, end)
        if not (is_list and text.startswith(",", at)) or num_unreadable > _MAX_UNREADABLE:
            return elements
        at = _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    return _match_end(_SPACE, text, at)


def _skip_element(text: str, start: int, reason: str) -> tuple[Unreadable, int]:
    """Skip the element that begins at `start`. Returns it, with its `id` if it is an object with one, and its end.

    An element without an end extends to the end of the text, since nothing tells where the next one begins.
    """
    if text[start : start + 1] not in ("[", "{"):
        return Unreadable(reason, None), _match_end(_SCALAR, text, start)
    inside = re.compile(_INSIDE, re.DOTALL)  # compiled here: its compilation would delay a boot
    is_object = text[start] == "{"
    found: str | None = None
    depth = 0
    at = start
    while (run := _BRACKETS.match(text, at)) is not None:
        size = run.end() - at
        if text[at] in "[{":
            depth += size
        elif depth <= size:  # the run may contain the end of the list as well
            return Unreadable(reason, found), at + depth
        else:
            depth -= size
        at = _match_end(inside, text, run.end())
        if is_object and depth == 1 and (last := _id_in(text[run.end() : at])) is not None:
            found = last
    return Unreadable(reason, found), len(text)


def _match_end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None  # the pattern matches the empty string too
    return found.end()


def _id_in(entries: str) -> str | None:
    """Find the `id` in the entries of an object. An `id` inside a nested container does not count."""
    if '"id"' not in entries:
        return None
    found = [text for text in re.findall(_ID, entries, re.DOTALL) if text]  # the group is "" for other keys
    return _string(found[-1]) if found else None


def _string(text: str) -> str | None:
    """The value of a JSON string if it is short enough for an id, else None."""
    try:
        value = json.loads(text) if len(text) <= _UNREADABLE_ID_CHARS else None
    except ValueError:
        return None
    return value if isinstance(value, str) else None
