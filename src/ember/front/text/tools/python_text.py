"""Lenient reading of Python literals: with unescaped quotes in strings, raw line breaks, and numbers that begin with
zero."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from ember.front.text.tools.schema import NotPython, dumps, is_text, python_value, refuse_constant

_MAX_DEPTH = 64
_QUOTES = ('"""', "'''", '"', "'")
_STRING_ENDS = {quote: re.compile(rf"\\|{quote}") for quote in _QUOTES}
_TO_SPECIAL = re.compile(r"[^'\"()\[\]{},\ud800-\udfff]+")
_INTEGER = re.compile(r"[-+]?0+[0-9]+")
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]+")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_TO_END = re.compile(r"[^,\[\]{}:]*")
_BLANKS = re.compile(r"[ \t\r\n]*")

# The text after the end of a string: at the end of an argument, and inside brackets. The text after a closing bracket
# has to match too, since a string may contain the end of a call. {0,n} limits how far the search goes.
_SPACE = r"[ \t\r\n]{0,64}"
_NEXT_ARGUMENT = (
    rf"{_SPACE},{_SPACE}(?:[A-Za-z_]\w{{0,255}}{_SPACE}=|\)|[\"'\[{{(0-9.+-]|(?:True|False|None|true|false|null)\b)"
)
_NEXT_CALL = rf"(?:{_SPACE}(?:,|\]|[\ud800-\udfff]|<|\Z)|{_SPACE}[\r\n]{_SPACE}\w[\w.\-]{{0,255}}\()"
_BEHIND_ARGUMENT = re.compile(rf"{_NEXT_ARGUMENT}|{_SPACE}\){_NEXT_CALL}|{_SPACE}[\ud800-\udfff]|{_SPACE}\Z")
_BEHIND_ITEM = re.compile(
    rf"{_SPACE}(?:[,:]|[\]}})](?:{_SPACE}[\]}})]){{0,64}}{_SPACE}(?:[,:<\ud800-\udfff]|\]|\Z|[\r\n])|\Z)"
)
# Text that is too short to decide: all of it may still follow the end of a string.
_UNDECIDED = re.compile(
    rf"{_SPACE}(?:[,:]?{_SPACE}(?:\w{{0,256}}{_SPACE})?|(?:[\]}})]{_SPACE}){{1,65}}[\w.\-<]{{0,256}})"
)
_LOOKS = 512  # characters after a quote that decide whether it ends its string


class Scan:
    """An incremental search for the end of an argument. It continues where it stopped when more text has arrived."""

    def __init__(self) -> None:
        self._seen = 0  # characters read from the beginning of the argument
        self._depth = 0
        self._quote = ""  # of the string at the current position

    def length(self, text: str, start: int, is_end: bool) -> int | None:
        """The length of the argument that begins at `start` in this text; None if it has not ended yet."""
        at = start + self._seen
        while at < len(text):
            before = at
            if self._quote:
                at = self._string(text, at, is_end)
            elif found := _TO_SPECIAL.match(text, at):
                at = found.end()
            elif text[at] in "\"'":
                at = self._open(text, at, is_end)
            elif "\ud800" <= text[at] <= "\udfff" or (self._depth == 0 and text[at] in ",)"):
                return at - start
            else:
                self._depth += (text[at] in "([{") - (text[at] in ")]}")
                at += 1
            if at == before:
                break  # more text is needed
        self._seen = at - start
        return None

    def _open(self, text: str, at: int, is_end: bool) -> int:
        """Begin a string. Two quotes may become three."""
        if not is_end and len(text) - at < 3 and text[at:] in ('"', "'", '""', "''"):
            return at
        self._quote = next(quote for quote in _QUOTES if text.startswith(quote, at))
        return at + len(self._quote)

    def _string(self, text: str, at: int, is_end: bool) -> int:
        found = _STRING_ENDS[self._quote].search(text, at)
        if found is None:  # a triple quote may have begun
            return max(at, len(text) - len(self._quote) + 1)
        if found[0] != self._quote:
            return found.end() + 1 if found.end() < len(text) else found.start()
        closes = _closes(text, found.end(), self._depth > 0, is_end, len(self._quote) == 3)
        if closes is None:
            return found.start()
        if closes:
            self._quote = ""
        return found.end()


def _closes(text: str, behind: int, is_nested: bool, is_end: bool, is_long: bool) -> bool | None:
    """Whether the quote that ends here ends its string, rather than being part of it. None: more text is needed."""
    if is_long:
        return True
    near = text[behind : behind + _LOOKS]
    if not is_end and len(near) < _LOOKS and _UNDECIDED.fullmatch(near) is not None:
        return None
    return (_BEHIND_ITEM if is_nested else _BEHIND_ARGUMENT).match(near) is not None


def literal(text: str, types: tuple[str, ...] | None) -> str:
    """A literal as JSON; text that is not a literal becomes a string."""
    bare = text.strip()
    try:
        json.loads(bare, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        pass
    else:
        return bare
    value = python_value(bare)
    if value is NotPython:
        value = _Lenient(bare).read()
    try:
        made = dumps(value)
    except (ValueError, TypeError, RecursionError):
        return json.dumps(bare, ensure_ascii=False)
    return json.dumps(bare, ensure_ascii=False) if types and is_text(types) and not isinstance(value, str) else made


class _Lenient:
    """Reads text that is not a valid Python literal only because of its spelling."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> Any:
        """The value, or the text itself if it is not a literal."""
        try:
            value = self._value(0, is_nested=False)
        except NotPython:
            return self._text
        return value if self._at == len(self._text) else self._text

    def _value(self, depth: int, is_nested: bool) -> Any:
        self._blanks()
        first = self._text[self._at : self._at + 1]
        if first and first in "\"'":
            return self._string(is_nested)
        if first and first in "[({":
            if depth == _MAX_DEPTH:
                raise NotPython
            return self._items(first, depth)
        found = _TO_END.match(self._text, self._at) if is_nested else None
        word = found[0] if found is not None else self._text[self._at :]
        self._at += len(word)
        return _word(word.strip())

    def _items(self, opening: str, depth: int) -> Any:
        closing = {"[": "]", "(": ")", "{": "}"}[opening]
        self._at += 1
        items: list[Any] = []
        pairs: dict[Any, Any] = {}
        is_set = False
        while True:
            self._blanks()
            if self._take(closing):
                if is_set:
                    return list({dumps(item): item for item in items}.values())
                return pairs if opening == "{" else items
            value = self._value(depth + 1, is_nested=True)
            self._blanks()
            if opening == "{" and self._take(":"):
                if not isinstance(value, str | int | float | None):
                    raise NotPython
                pairs[value] = self._value(depth + 1, is_nested=True)
                self._blanks()
            else:
                is_set = opening == "{"
                items.append(value)
            if not self._take(",") and not self._text.startswith(closing, self._at):
                raise NotPython

    def _string(self, is_nested: bool) -> str:
        quote = next(quote for quote in _QUOTES if self._text.startswith(quote, self._at))
        start = place = self._at + len(quote)
        while True:
            found = _STRING_ENDS[quote].search(self._text, place)
            if found is None:
                raise NotPython
            place = found.end()
            if found[0] != quote:
                place += 1
            elif _closes(self._text, place, is_nested, True, len(quote) == 3):
                self._at = place
                return _unescaped(self._text[start : found.start()])

    def _blanks(self) -> None:
        found = _BLANKS.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _take(self, mark: str) -> bool:
        is_there = self._text.startswith(mark, self._at)
        self._at += is_there
        return is_there


def _word(text: str) -> Any:
    """A value without quotes."""
    if text in _WORDS:
        return _WORDS[text]
    if not text:
        raise NotPython
    if _INTEGER.fullmatch(text) and len(text) < 4000:
        return int(text)
    if _FLOAT.fullmatch(text) and len(text) < 400:
        return float(text)
    value = python_value(text)
    return text if value is NotPython else value


_ESCAPE = re.compile(r"\\(?:\r?\n|[\\'\"abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3})")


def _unescaped(text: str) -> str:
    """The content of a string, with escapes as in Python."""

    def meaning(found: re.Match[str]) -> str:
        if found[0].endswith("\n"):
            return ""
        try:
            return str(ast.literal_eval(f'"{found[0]}"'))
        except (ValueError, SyntaxError):
            return found[0]

    return _ESCAPE.sub(meaning, text)
