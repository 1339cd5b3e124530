"""Values in tags: their ends, with or without an end tag, and CDATA."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ember.front.text.tools.json_text import JsonCopy
from ember.front.text.tools.marks import Finder, json_escaped
from ember.front.text.tools.scanner import CallScanner, Steps
from ember.front.text.tools.schema import Tool, Tools

CDATA, _CDATA_END = "<![CDATA[", "]]>"
_CDATA_ENDS = Finder([_CDATA_END])
_BLANKS = re.compile(r"[ \t\r\n]{0,64}")
_NAME = re.compile("[^\\s<>\"'{}\ud800-\udfff]{1,256}")
_MAX_NAME = 256


class Values:
    """The ends of a format's values. A value without an end tag ends at the tag of the next argument. It also ends at
    the end of the call, if text that may follow a call comes after it, and at the beginning of a call of an offered
    tool: these conditions are needed because a value may contain such tags itself."""

    def __init__(
        self,
        end: str,
        key: tuple[str, str],
        call_ends: Sequence[str],
        starts: Sequence[str],
        follows: Sequence[str],
        has_newlines: bool,
    ) -> None:
        self._end = end
        self._key, self._key_end = key
        self._call_ends = [mark for mark in call_ends if mark]
        self._follows = [mark for mark in follows if mark]
        self._has_newlines = has_newlines
        self._starts = [mark for mark in starts if mark]
        self._marks = Finder([end, self._key, *self._call_ends, *self._starts])

    def forward(self, scanner: CallScanner, tool: Tool, head: str) -> Steps[str | None]:
        """Pass on a string as it arrives, after `head`. Returns the mark that ended it, None at the end of the
        output."""
        scanner.arguments(head + '"')
        if (yield from self._takes_cdata(scanner)):
            while True:
                place, mark = _CDATA_ENDS.find(scanner.text, scanner.at, scanner.is_ended)
                scanner.arguments(json_escaped(scanner.text[scanner.at : place]))
                scanner.at = place
                if mark is not None:
                    scanner.at += len(mark)
                    if not (yield from scanner.take(CDATA)):
                        break
                    continue
                if scanner.is_ended:
                    return None
                yield
            rest = yield from self._plain(scanner, tool)
            if rest is None:
                scanner.at = len(scanner.text)
                return None
            text = rest[0].removesuffix("\n") if self._has_newlines else rest[0]
            scanner.arguments((json_escaped(text) if text.strip() else "") + '"')
            return rest[1]
        while True:
            place, mark = self._find(scanner, scanner.at, tool)
            chunk = scanner.text[scanner.at : place]
            held = 1 if self._has_newlines and chunk.endswith("\n") else 0
            shown = chunk[: len(chunk) - held]
            scanner.arguments(json_escaped(shown))
            scanner.at += len(shown)
            if mark is not None:
                scanner.at += held + len(mark)
                scanner.arguments('"')
                return mark
            if scanner.is_ended:
                scanner.at = len(scanner.text)
                return None
            yield

    def held(self, scanner: CallScanner, tool: Tool) -> Steps[tuple[str, str] | None]:
        """Take a value that is not a plain string, and its end."""
        if (yield from self._takes_cdata(scanner)):
            parts: list[str] = []
            while True:
                found = yield from scanner.until(_CDATA_ENDS)
                if found is None:
                    return None
                parts.append(found[0])
                if not (yield from scanner.take(CDATA)):
                    break
            rest = yield from self._plain(scanner, tool)
            return None if rest is None else ("".join([*parts, rest[0].strip()]), rest[1])
        ended = yield from self._json(scanner, tool)
        if ended is None:
            return None
        text = ended[0].removesuffix("\n") if self._has_newlines else ended[0]
        return scanner.markers.plain(text), ended[1]

    def _plain(self, scanner: CallScanner, tool: Tool) -> Steps[tuple[str, str] | None]:
        """Take the text up to the end, and the end."""
        seen = 0
        while True:
            place, mark = self._find(scanner, scanner.at + seen, tool)
            if mark is not None:
                text, scanner.at = scanner.text[scanner.at : place], place + len(mark)
                return text, mark
            if scanner.is_ended:
                return None
            seen = place - scanner.at
            yield

    def _json(self, scanner: CallScanner, tool: Tool) -> Steps[tuple[str, str] | None]:
        """The same for text that may be JSON. An end inside a JSON string is part of the string, unless the string is
        not terminated."""
        seen = copied = 0
        copy = JsonCopy()
        first: tuple[int, str] | None = None
        while True:
            place, mark = self._find(scanner, scanner.at + seen, tool)
            length = place - scanner.at
            if mark is None and not scanner.is_ended:
                seen = length
                yield
                continue
            if mark is not None:
                copied += copy.feed(scanner.text[scanner.at + copied : place], 0, False)[1]
                if copy.is_in_string and copy.is_nested:
                    first = first or (length, mark)
                    seen = length + 1
                    continue
            if mark is None:
                if first is None:
                    return None
                length, mark = first
            text = scanner.text[scanner.at : scanner.at + length]
            scanner.at += length + len(mark)
            return text, mark

    def _find(self, scanner: CallScanner, start: int, tool: Tool) -> tuple[int, str | None]:
        """Find the end of the value and its mark. Without a mark the position is where one may begin."""
        text, is_end = scanner.text, scanner.is_ended
        while True:
            place, mark = self._marks.find(text, start, is_end)
            if mark is None or mark == self._end or (_has_token(mark) and mark not in self._starts):
                return place, mark
            behind = place + len(mark)
            if mark == self._key:
                is_mark = self._is_key(text, behind, tool, is_end)
            elif mark in self._call_ends:
                is_mark = _comes(self._follows, text, behind, is_end)
            else:
                is_mark = self._is_start(mark, scanner, behind)
            if is_mark is None:
                return place, None
            if is_mark:
                return place, mark
            start = place + 1

    def _is_key(self, text: str, start: int, tool: Tool, is_end: bool) -> bool | None:
        """Whether the name of a declared argument follows (of any, if none is declared). None: unknown so far."""
        end = text.find(self._key_end, start, start + _MAX_NAME)
        if end < 0:
            return False if is_end or len(text) - start >= _MAX_NAME else None
        name = text[start:end]
        return name in tool.properties if tool.properties else bool(name) and not any(c in "<>\n" for c in name)

    def _is_start(self, mark: str, scanner: CallScanner, behind: int) -> bool | None:
        """Whether a call follows, directly or after its mark. None: unknown so far."""
        call = self._starts[0]
        if mark != call:
            return _comes([call], scanner.text, behind, scanner.is_ended, at_end=False)
        return _is_named(scanner.text, behind, scanner.tools, scanner.is_ended)

    def _takes_cdata(self, scanner: CallScanner) -> Steps[bool]:
        """Take the start of CDATA, with blanks before it, if it is next."""
        while True:
            found = _BLANKS.match(scanner.text, scanner.at)
            assert found is not None
            rest = scanner.text[found.end() : found.end() + len(CDATA)]
            if rest == CDATA:
                scanner.at = found.end() + len(CDATA)
                return True
            if scanner.is_ended or not CDATA.startswith(rest):
                return False
            yield


def _comes(marks: Sequence[str], text: str, start: int, is_end: bool, at_end: bool = True) -> bool | None:
    """Whether one of the marks is next, after blanks; `at_end` at the end of the output. None: unknown so far."""
    found = _BLANKS.match(text, start)
    assert found is not None
    place = found.end()
    if place == len(text):
        return at_end if is_end else None
    if any(text.startswith(mark, place) for mark in marks):
        return True
    rest = text[place : place + _MAX_NAME]
    return None if not is_end and any(mark.startswith(rest) for mark in marks) else False


def _is_named(text: str, start: int, tools: Tools, is_end: bool) -> bool | None:
    """Whether the name of an offered tool follows. None: unknown so far."""
    found = _NAME.match(text, start)
    if found is None:
        return False if is_end or start < len(text) else None
    if found.end() == len(text) and not is_end:
        return None
    return found[0] in tools


def _has_token(mark: str) -> bool:
    """Whether the mark contains a special token, which no value contains."""
    return any("\ud800" <= character <= "\udfff" for character in mark)
