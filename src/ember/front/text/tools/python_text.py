"""Literals of Python as models write them: with quotes in strings that are not escaped, real line breaks, and numbers
that begin with zero."""

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

# What follows the end of a string: at the end of an argument, and inside brackets. What is behind a closing bracket has
# to fit as well, for a string may hold the end of a call itself. {0,n}: so far is looked, and no further.
_SPACE = r"[ \t\r\n]{0,64}"
_NEXT_ARGUMENT = (
    rf"{_SPACE},{_SPACE}(?:[A-Za-z_]\w{{0,255}}{_SPACE}=|\)|[\"'\[{{(0-9.+-]|(?:True|False|None|true|false|null)\b)"
)
_NEXT_CALL = rf"(?:{_SPACE}(?:,|\]|[\ud800-\udfff]|<|\Z)|{_SPACE}[\r\n]{_SPACE}\w[\w.\-]{{0,255}}\()"
_BEHIND_ARGUMENT = re.compile(rf"{_NEXT_ARGUMENT}|{_SPACE}\){_NEXT_CALL}|{_SPACE}[\ud800-\udfff]|{_SPACE}\Z")
_BEHIND_ITEM = re.compile(
    rf"{_SPACE}(?:[,:]|[\]}})](?:{_SPACE}[\]}})]){{0,64}}{_SPACE}(?:[,:<\ud800-\udfff]|\]|\Z|[\r\n])|\Z)"
)
# What is too short to tell: all of it may still belong to the end of a string.
_UNDECIDED = re.compile(
    rf"{_SPACE}(?:[,:]?{_SPACE}(?:\w{{0,256}}{_SPACE})?|(?:[\]}})]{_SPACE}){{1,65}}[\w.\-<]{{0,256}})"
)
_LOOKS = 512  # characters that decide


class Scan:
    """Looks for the end of a part of a call, an argument, and goes on where it stopped when more has come."""

    def __init__(self) -> None:
        self._seen = 0  # characters from the beginning of the part
        self._depth = 0
        self._quote = ""  # of the string that the place is in

    def length(self, text: str, start: int, is_end: bool) -> int | None:
        """The length of the part, which begins at `start` in this text; None where the part has not ended yet."""
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
                break  # what it is, more text will tell
        self._seen = at - start
        return None

    def _open(self, text: str, at: int, is_end: bool) -> int:
        """A string begins. Two quotes may become three."""
        if not is_end and len(text) - at < 3 and text[at:] in ('"', "'", '""', "''"):
            return at
        self._quote = next(quote for quote in _QUOTES if text.startswith(quote, at))
        return at + len(self._quote)

    def _string(self, text: str, at: int, is_end: bool) -> int:
        found = _STRING_ENDS[self._quote].search(text, at)
        if found is None:  # a quote of three may have begun
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
    """Whether a quote that ends here is the end of its string, and no quote inside it. None: more text will tell."""
    if is_long:
        return True
    near = text[behind : behind + _LOOKS]
    if not is_end and len(near) < _LOOKS and _UNDECIDED.fullmatch(near) is not None:
        return None
    return (_BEHIND_ITEM if is_nested else _BEHIND_ARGUMENT).match(near) is not None


def literal(text: str, types: tuple[str, ...] | None) -> str:
    """A literal as JSON; what is none is the text itself."""
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
    """Reads what is no literal of Python for its spelling alone."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> Any:
        """The value; the text itself where it is none."""
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
    """The inside of a string, with escapes as Python reads them."""

    def meaning(found: re.Match[str]) -> str:
        if found[0].endswith("\n"):
            return ""
        try:
            return str(ast.literal_eval(f'"{found[0]}"'))
        except (ValueError, SyntaxError):
            return found[0]

    return _ESCAPE.sub(meaning, text)
