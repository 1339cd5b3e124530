"""Incremental reading of a model's JSON, which is passed on in the model's spelling with small errors corrected."""

from __future__ import annotations

import json
import re
from enum import Enum

from ember.front.text.tools.scanner import CallScanner, Steps
from ember.front.text.tools.schema import encodable

MAX_DEPTH = 256
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_BEGUN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_BLANKS = re.compile(r"[ \t\r\n]+")
_WORD = re.compile(r"[-+.0-9A-Za-z_]+")
_BEHIND_BROKEN = " \t\r\n`;,]}"  # characters allowed between invalid arguments and the end of their call
_BRACKET = re.compile(r'\\.|["{}\[\]\\]', re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORDS = {
    "true": "true",
    "True": "true",
    "false": "false",
    "False": "false",
    "null": "null",
    "None": "null",
}


class _Next(Enum):
    """The expected next element."""

    VALUE = 0
    VALUE_OR_END = 1
    KEY = 2
    KEY_OR_END = 3
    COLON = 4
    COMMA_OR_END = 5


class JsonCopy:
    """An incremental copy of one JSON value. The copy is a prefix of valid JSON: raw line breaks in strings are
    escaped, invalid backslashes are doubled, Python's literals are replaced by JSON's, and a trailing comma is removed.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False  # whether something was read that JSON does not allow there
        self._stack: list[str] = []  # closing brackets of the open objects and lists
        self._next = _Next.VALUE
        self._in_string = False
        self._comma: list[str] = []  # a comma held back, with the blanks after it, until something follows

    def take_comma(self) -> str:
        """The comma that was held back, if the copy is given up."""
        comma, self._comma = self._comma, []
        return "".join(comma)

    @property
    def depth(self) -> int:
        """The number of open objects and lists."""
        return len(self._stack)

    @property
    def is_nested(self) -> bool:
        """Whether an object or a list is open."""
        return bool(self._stack)

    @property
    def is_in_string(self) -> bool:
        return self._in_string and not self.is_broken

    def feed(self, text: str, at: int, is_end: bool) -> tuple[str, int]:
        """The copy of the text from a position on, as far as it can be read, and the position after it."""
        out: list[str] = []
        while at < len(text) and not (self.is_done or self.is_broken):
            before = at
            at = self._string(text, at, is_end, out) if self._in_string else self._token(text, at, is_end, out)
            if at == before and not (self.is_done or self.is_broken):
                break  # the token is incomplete
        return "".join(out), at

    def _string(self, text: str, at: int, is_end: bool, out: list[str]) -> int:
        if found := _PLAIN.match(text, at):
            out.append(found[0])
            return found.end()
        if text[at] == '"':
            out.append('"')
            self._leave_string()
            return at + 1
        if text[at] != "\\":
            out.append(json.dumps(text[at])[1:-1])
            return at + 1
        if found := _ESCAPE.match(text, at):
            out.append(found[0])
            return found.end()
        if not is_end and _BEGUN_ESCAPE.fullmatch(text, at):
            return at
        out.append("\\\\")
        return at + 1

    def _leave_string(self) -> None:
        self._in_string = False
        if self._next in (_Next.KEY, _Next.KEY_OR_END):
            self._next = _Next.COLON
        else:
            self._after_value()

    def _token(self, text: str, at: int, is_end: bool, out: list[str]) -> int:
        if found := _BLANKS.match(text, at):
            if self._comma:
                self._comma.append(found[0])
            else:
                out.append(found[0])
            return found.end()
        character = text[at]
        follows = self._next
        if follows is _Next.COLON and character == ":":
            self._next = _Next.VALUE
        elif follows is _Next.COMMA_OR_END and character == ",":
            self._comma = [","]
            self._next = _Next.KEY if self._stack[-1] == "}" else _Next.VALUE
            return at + 1
        elif self._may_end() and character == self._stack[-1]:
            self._comma = []
            self._stack.pop()
            self._after_value()
        elif character == '"' and follows not in (_Next.COLON, _Next.COMMA_OR_END):
            self._in_string = True
        elif follows in (_Next.VALUE, _Next.VALUE_OR_END):
            if character not in "{[":
                return self._word(text, at, is_end, out)
            self._stack.append("}" if character == "{" else "]")
            self._next = _Next.KEY_OR_END if character == "{" else _Next.VALUE_OR_END
            self.is_broken = len(self._stack) > MAX_DEPTH
        else:
            self.is_broken = True
        if self.is_broken:
            return at
        self._write(character, out)
        return at + 1

    def _may_end(self) -> bool:
        """Whether the innermost bracket may close, also after a trailing comma."""
        if not self._stack:
            return False
        return bool(self._comma) or self._next in (_Next.VALUE_OR_END, _Next.KEY_OR_END, _Next.COMMA_OR_END)

    def _word(self, text: str, at: int, is_end: bool, out: list[str]) -> int:
        found = _WORD.match(text, at)
        if found is None:
            self.is_broken = True
            return at
        if found.end() == len(text) and not is_end:
            return at
        word = found[0] if _NUMBER.fullmatch(found[0]) else _WORDS.get(found[0])
        if word is None:
            self.is_broken = True
            return at
        self._write(word, out)
        self._after_value()
        return found.end()

    def _write(self, text: str, out: list[str]) -> None:
        out += self._comma
        out.append(text)
        self._comma = []

    def _after_value(self) -> None:
        self._next = _Next.COMMA_OR_END
        self.is_done = not self._stack


def held_value(scanner: CallScanner, limit: int | None = None) -> Steps[str | None]:
    """Take one JSON value as text; None if there is none, if it does not end, or if it is longer than `limit`."""
    copy = JsonCopy()
    made: list[str] = []
    num_taken = 0
    while True:
        text, at = scanner.text, scanner.at
        is_cut = limit is not None and len(text) - at > limit + 1 - num_taken
        if limit is not None and is_cut:
            text = text[: at + limit + 1 - num_taken]
        more, scanner.at = copy.feed(text, at, scanner.is_ended and not is_cut)
        made.append(more)
        num_taken += scanner.at - at
        if limit is not None and (num_taken > limit or (is_cut and not copy.is_done)):
            return None
        if copy.is_done:
            return scanner.markers.json_plain("".join(made))
        if copy.is_broken or scanner.is_ended:
            return None
        yield


def held_string(scanner: CallScanner, limit: int | None = None) -> Steps[str | None]:
    """Take one JSON string and return its value."""
    if (yield from scanner.character()) != '"':
        return None
    text = yield from held_value(scanner, limit)
    return None if text is None else encodable(str(json.loads(text)))


def forward_value(scanner: CallScanner, is_in_object: bool = False) -> Steps[bool]:
    """Pass on one JSON value as arguments, as it arrives. If it is not JSON, the call is taken back and the result is
    False; if a part of the call was released, the text is passed on unchanged. `is_in_object`: a brace ends the
    call."""
    copy = JsonCopy()
    while True:
        made, scanner.at = copy.feed(scanner.text, scanner.at, scanner.is_ended)
        scanner.arguments(made)
        if copy.is_broken:
            if scanner.withdraw():
                return False
            scanner.arguments(copy.take_comma())
            yield from _forward_broken(scanner, copy.depth, is_in_object)
            return True
        if copy.is_done or scanner.is_ended:
            return True
        yield


def _forward_broken(scanner: CallScanner, depth: int, is_in_object: bool) -> Steps[None]:
    """Pass on text that is not JSON: up to its closing bracket or the next mark, without the brackets of the call
    itself."""
    parts: list[str] = []  # text that may belong to the call
    is_in_string = is_escaped = False
    while True:
        place, mark = scanner.boundaries.find(scanner.text, scanner.at, scanner.is_ended)
        start, is_escaped = scanner.at + is_escaped, False
        for found in _BRACKET.finditer(scanner.text, start, place):
            character = found[0]
            if character[0] == "\\":
                is_escaped = len(character) == 1  # the escaped character may not have arrived
            elif character == '"':
                is_in_string = not is_in_string
            elif not is_in_string:
                depth += 1 if character in "{[" else -1
                if depth == 0:
                    scanner.arguments("".join([*parts, scanner.text[scanner.at : found.end()]]))
                    scanner.at = found.end()
                    return
        text, scanner.at = scanner.text[scanner.at : place], place
        if shown := text.rstrip(_BEHIND_BROKEN):
            scanner.arguments("".join([*parts, shown]))
            parts = []
        parts.append(text[len(shown) :])
        if mark is not None or scanner.is_ended:
            break
        yield
    held = "".join(parts).rstrip(" \t\r\n`;,")
    if is_in_object and held.endswith(("]", "}")):
        held = held.rstrip("]").rstrip().removesuffix("}").rstrip()
    scanner.arguments(held)
