"""Calls in a notation like JSON, `call:f{key:value,...}`, with bare keys and special marks around strings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ember.front.text.tools.brace_grammar import object_rule
from ember.front.text.tools.dialect import Dialect
from ember.front.text.tools.grammar import Rules
from ember.front.text.tools.marks import Finder, Markers, json_escaped
from ember.front.text.tools.scanner import CallScanner, Steps
from ember.front.text.tools.schema import Tool, text_as, typed

_MAX_NAME = 256
_MAX_DEPTH = 64
_NAME = re.compile(r"[\w.\-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class BraceCalls:
    """The form of one family: `<call>call:weather{city:'Rome'}</call>`, where `<call>` is `begin`, `</call>` is `end`
    and `'` is `quote`."""

    begin: str
    end: str
    quote: str  # before and after a string
    head: str = "call:"

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.begin, self.end, self.quote)

    def dialect(self, markers: Markers) -> Dialect:
        reader = _Reader(self, markers)
        return Dialect([reader.begin, self.head], [reader.end], reader.read)

    def rules(self, tools: list[Tool], rules: Rules, parallel: bool) -> tuple[str, str]:
        """See `grammar.Form`."""
        calls = rules.one_of(
            [f"{rules.quoted(self.head + tool.name)} {object_rule(rules, tool, self.quote)}" for tool in tools]
        )
        one = f"{calls} {rules.literal(self.end)}"
        return self.begin, f"{one} ({rules.literal(self.begin)} {one})*" if parallel else one


class _Reader:
    """The format with the marks of one tokenizer."""

    def __init__(self, form: BraceCalls, markers: Markers) -> None:
        self._head = form.head
        self.begin, self.end = markers.encode(form.begin), markers.encode(form.end)
        self._quote = markers.encode(form.quote)
        self._quotes = Finder([self._quote])
        self._key_ends = Finder([":", "}", self.end])
        self._word_ends = Finder([",", "}", "]", self.end])
        self._words_before_parenthesis = Finder([",", ")", "}", "]", self.end])

    def read(self, scanner: CallScanner, opener: str) -> Steps[bool]:
        """Read calls. If the name is that of an offered tool, the head (or all of it but the colon) and the mark before
        it may be missing, and parentheses may be in place of the braces, or around them."""
        is_sure = opener != self._head
        if is_sure:
            yield from scanner.blanks()
            is_sure = yield from scanner.take(self._head)
            if not is_sure:
                yield from scanner.take(self._head[-1])
        found = yield from self._name(scanner)
        if found is None or not (is_sure or found[0] in scanner.tools):
            return False
        has_parenthesis = found[1] == "("
        if has_parenthesis:
            yield from scanner.blanks()
            if (yield from scanner.take("{")):
                has_parenthesis = False
                found = (found[0], "({")
        scanner.call(found[0])
        tool = scanner.tools.get(found[0])
        if (yield from self._object(scanner, tool, 0, ")" if has_parenthesis else "}")):
            scanner.begin()
            yield from scanner.blanks()
            if found[1] == "({" and (yield from scanner.take(")")):
                yield from scanner.blanks()
        if not (yield from scanner.take(self.end)) and scanner.is_trying:
            scanner.go_back()
        return True

    def _name(self, scanner: CallScanner) -> Steps[tuple[str, str] | None]:
        """Take a name and the opening bracket of the arguments."""
        while True:
            found = _NAME.match(scanner.text, scanner.at)
            end = found.end() if found else scanner.at
            if end < len(scanner.text) or scanner.is_ended or end - scanner.at > _MAX_NAME:
                break
            yield
        if found is None or end - scanner.at > _MAX_NAME or scanner.text[end : end + 1] not in ("{", "("):
            return None
        scanner.at = end + 1
        return found[0], scanner.text[end]

    def _object(self, scanner: CallScanner, tool: Tool | None, depth: int, closing: str = "}") -> Steps[bool]:
        """Read an object after its brace. Returns False if it was cut; it is closed unless the output has ended."""
        scanner.arguments("{")
        separator = ""
        is_whole = False
        while depth < _MAX_DEPTH:
            yield from scanner.blanks()
            character = yield from scanner.character()
            if character in (closing, ",") and character:
                scanner.at += 1
                if character == ",":
                    continue
                is_whole = True
                break
            key = yield from self._key(scanner)
            if key is None:
                break
            scanner.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            separator = ", "
            types = tool.types(key) if tool is not None else None
            if not (yield from self._value(scanner, types, depth, closing)):
                break
        if is_whole or not self._is_over(scanner):
            scanner.arguments("}")
        return is_whole

    def _list(self, scanner: CallScanner, depth: int) -> Steps[bool]:
        """Read a list after its bracket. Returns False if it was cut."""
        scanner.arguments("[")
        separator = ""
        is_whole = False
        while depth < _MAX_DEPTH:
            yield from scanner.blanks()
            character = yield from scanner.character()
            if character in ("]", ",") and character:
                scanner.at += 1
                if character == ",":
                    continue
                is_whole = True
                break
            if character in ("", "}"):
                break
            if (yield from scanner.take(self.end)):
                scanner.at -= len(self.end)
                break
            scanner.arguments(separator)
            separator = ", "
            if not (yield from self._value(scanner, None, depth, "]")):
                break
        if is_whole or not self._is_over(scanner):
            scanner.arguments("]")
        return is_whole

    def _is_over(self, scanner: CallScanner) -> bool:
        return scanner.is_ended and scanner.at >= len(scanner.text)

    def _key(self, scanner: CallScanner) -> Steps[str | None]:
        if (yield from scanner.take(self._quote)):
            found = yield from scanner.until(self._quotes, _MAX_NAME)
            yield from scanner.blanks()
            is_key = found is not None and (yield from scanner.take(":"))
            return scanner.markers.plain(found[0]) if is_key and found is not None else None
        found = yield from scanner.until(self._key_ends, _MAX_NAME)
        if found is None:
            if scanner.is_ended:
                scanner.at = len(scanner.text)
            return None
        if found[1] != ":":
            scanner.at -= len(found[1])
            return None
        return scanner.markers.plain(found[0]).strip().strip("\"'")

    def _value(self, scanner: CallScanner, types: tuple[str, ...] | None, depth: int, closing: str) -> Steps[bool]:
        yield from scanner.blanks()
        if (yield from scanner.take(self._quote)):
            return (yield from self._string(scanner))
        character = yield from scanner.character()
        if character == "{":
            scanner.at += 1
            return (yield from self._object(scanner, None, depth + 1))
        if character == "[":
            scanner.at += 1
            return (yield from self._list(scanner, depth + 1))
        found = yield from scanner.until(self._words_before_parenthesis if closing == ")" else self._word_ends)
        if found is None:
            scanner.at = len(scanner.text)
            return False
        scanner.at -= len(found[1])
        scanner.arguments(_word(scanner.markers.plain(found[0]).strip(), types))
        return found[1] != self.end

    def _string(self, scanner: CallScanner) -> Steps[bool]:
        """Read a string after its quote, as it arrives."""
        scanner.arguments('"')
        while True:
            place, mark = self._quotes.find(scanner.text, scanner.at, scanner.is_ended)
            scanner.arguments(json_escaped(scanner.text[scanner.at : place]))
            scanner.at = place
            if mark is not None:
                scanner.at += len(mark)
                scanner.arguments('"')
                return True
            if scanner.is_ended:
                scanner.at = len(scanner.text)
                return False
            yield


def _word(text: str, types: tuple[str, ...] | None) -> str:
    """A value without quotes. It is a string only if it fits no other allowed type."""
    others = tuple(name for name in types or () if name != "string")
    if types:
        return next((made for name in others if (made := text_as(name, text, text)) is not None), typed(text, types))
    for name in ("boolean", "number"):
        if (made := text_as(name, text, text)) is not None:
            return made
    if text in ("null", "None", ""):
        return "null"
    return json.dumps(text.strip("\"'"), ensure_ascii=False)
