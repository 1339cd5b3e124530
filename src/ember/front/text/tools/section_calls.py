"""Calls with the name in a header between special tokens, followed by arguments in JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ember.front.text.tools.dialect import Dialect
from ember.front.text.tools.grammar import Rules
from ember.front.text.tools.json_calls import JsonCalls, read_calls
from ember.front.text.tools.json_text import forward_value
from ember.front.text.tools.marks import Finder, Markers
from ember.front.text.tools.scanner import MAX_HEADER, CallScanner, Steps
from ember.front.text.tools.schema import Tool
from ember.front.text.tools.sections import read_section


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionCalls:
    """The form of one family: begin, (call begin, header, arguments begin, arguments, call end)..., end. One call is
    `<call>weather<args>{"city": "Rome"}</call>`, where `<call>` is one of `call_begins`.

    `header` is a regular expression with the group `name`, and optionally `id`, for the text between the beginning of a
    call and its arguments. Of several spellings the grammar enforces the first.
    """

    call_begins: tuple[str, ...]
    header: str
    arguments_begins: tuple[str, ...]
    call_ends: tuple[str, ...] = ()
    begin: str = ""
    end: str = ""
    has_brace: bool = False  # whether the arguments may have no mark before them
    has_json: bool = False  # whether calls may be JSON objects instead of having a header
    written: str = "{name}"  # the header in the grammar; {index} is the number of the call
    before_end: str = ""  # between the arguments and the end of the call
    between: str = ""  # between two calls

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.begin, *self.call_begins, *self.arguments_begins, *self.call_ends, self.end)

    def dialect(self, markers: Markers) -> Dialect:
        reader = _Reader(self, markers)
        openers = (reader.begin, *reader.call_begins)
        return Dialect([mark for mark in openers if mark], [*reader.call_ends, reader.end or ""], reader.read)

    def rules(self, tools: list[Tool], rules: Rules, parallel: bool) -> tuple[str, str]:
        """See `grammar.Form`."""
        call_begin, arguments_begin = self.call_begins[0], self.arguments_begins[0]
        if self.has_json and not rules.has_token(arguments_begin):  # an older model of the family
            return JsonCalls(begins=(call_begin,), is_list=True, space="").rules(tools, rules, parallel)
        call_end = next(iter(self.call_ends), "")

        def call(index: str) -> str:
            return rules.one_of(
                [
                    f"{rules.header(self.written, tool.name, index, arguments_begin)} {rules.arguments(tool)}"
                    f" {rules.literal(self.before_end + call_end)}"
                    for tool in tools
                ]
            )

        first = call("0")
        opening = self.begin or call_begin
        body = f"{rules.literal(call_begin)} {first}" if self.begin else first
        if parallel:
            more = call("/[1-9][0-9]?/") if "{index}" in self.written else first
            body += f" ({rules.literal(self.between + call_begin)} {more})*"
        return opening, f"{body} {rules.literal(self.end)}"


class _Reader:
    """The format with the marks of one tokenizer."""

    def __init__(self, form: SectionCalls, markers: Markers) -> None:
        self._form = form
        self._header = re.compile(form.header, re.DOTALL)
        self.begin = markers.encode(form.begin)
        self.end = markers.encode(form.end)
        self.call_begins = markers.encode_all(form.call_begins)
        self.call_ends = markers.encode_all(form.call_ends)
        self._arguments_begins = markers.encode_all(form.arguments_begins)
        stops = (*self._arguments_begins, *("{" if form.has_brace else ()))
        # The end of a call also ends its header: the call has no arguments, or is not a call.
        self._header_ends = Finder([*stops, *self.call_ends, self.end])

    def read(self, scanner: CallScanner, opener: str) -> Steps[bool]:
        first = opener if opener in self.call_begins else None
        return read_section(scanner, first, self._take_opener, self._read_call, self.end or None)

    def _take_opener(self, scanner: CallScanner) -> Steps[str | None]:
        return scanner.take_any(self.call_begins)

    def _read_call(self, scanner: CallScanner, opener: str) -> Steps[bool]:
        """Read one call after its beginning, which may be repeated."""
        yield from scanner.blanks()
        while (yield from scanner.take(opener)):
            yield from scanner.blanks()
        if self._form.has_json and (yield from scanner.character()) in ("{", "["):
            return (yield from read_calls(scanner, self.call_ends))
        found = yield from scanner.until(self._header_ends, MAX_HEADER)
        if found is None:
            return False
        text, mark = found
        header = self._header.search(scanner.markers.plain(text))
        if header is None:
            return False
        has_arguments = mark in self._arguments_begins or mark == "{"
        if mark == "{":
            scanner.at -= 1
        call_id = header.groupdict().get("id")
        if has_arguments:
            yield from scanner.blanks()
            has_arguments = (yield from scanner.character()) == "{"
            if not has_arguments and not (yield from self._is_over(scanner)):
                return False
        scanner.call(header["name"], call_id)
        if not has_arguments:
            scanner.arguments("{}")
            return True
        if not (yield from forward_value(scanner)):
            return False
        yield from self._leave_call(scanner)
        return True

    def _is_over(self, scanner: CallScanner) -> Steps[bool]:
        """Finish a call whose header has no arguments."""
        return (yield from scanner.take_any(self.call_ends)) is not None

    def _leave_call(self, scanner: CallScanner) -> Steps[None]:
        """Take the end of a call, and text that models put before it: extra brackets, the end of a code block."""
        if not self.call_ends:
            return
        scanner.begin()
        while True:
            yield from scanner.blanks()
            if (yield from scanner.take_any(self.call_ends)) is not None:
                scanner.keep()
                return
            character = yield from scanner.character()
            if not character or character not in "`}]":
                scanner.go_back()
                return
            scanner.at += 1
