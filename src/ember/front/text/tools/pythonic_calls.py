"""Calls in Python's syntax, `[f(a=1, b="x"), g()]`, whose arguments are literals."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ember.front.text.json_node_kinds import Leaf
from ember.front.text.json_rules import Document
from ember.front.text.tools.dialect import Dialect
from ember.front.text.tools.grammar import Rules
from ember.front.text.tools.marks import Markers
from ember.front.text.tools.python_text import Scan, literal
from ember.front.text.tools.scanner import CallScanner, Steps
from ember.front.text.tools.schema import Tool

_MAX_NAME = 256
_NAME = re.compile(r"\w[\w.\-]*")
_ARGUMENT = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonicCalls:
    """The form of one family: `<calls>[weather(city="Rome"), now()]</calls>`, where `<calls>` is one of `begins` and
    `</calls>` one of `ends`. The parser accepts calls with and without brackets, separated by commas or line breaks."""

    begins: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    is_bare: bool = False  # whether a list of calls may have no mark
    has_brackets: bool = True
    between: str = ", "
    has_python_words: bool = True  # True and False instead of true and false

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.begins, *self.ends)

    def dialect(self, markers: Markers) -> Dialect:
        begins, ends = markers.encode_all(self.begins), markers.encode_all(self.ends)

        def read(scanner: CallScanner, opener: str) -> Steps[bool]:
            return (yield from _read_calls(scanner, ends, is_bare=opener not in begins))

        return Dialect((*begins, *(("[",) if self.is_bare else ())), ends, read)

    def rules(self, tools: list[Tool], rules: Rules, parallel: bool) -> tuple[str, str]:
        """See `grammar.Form`."""
        calls = rules.one_of(
            [
                f"{rules.quoted(tool.name + '(')} {rules.pairs(tool, self._pair_rule, ', ')} {rules.quoted(')')}"
                for tool in tools
            ]
        )
        many = rules.many(calls, rules.quoted(self.between), parallel)
        begin, end = next(iter(self.begins), ""), next(iter(self.ends), "")
        if self.is_bare:
            begin = end = ""
        if not self.has_brackets:
            return begin, f"{many} {rules.literal(end)}"
        return begin, f"{rules.quoted('[')} {many} {rules.literal(']' + end)}"

    def _pair_rule(self, rules: Rules, tool: Tool, key: str | None, document: Document, number: int) -> str:
        name = rules.quoted(key) if key is not None else rules.name()
        words = [document.nodes[leaf] for leaf in document.leaves(number)]
        is_flag = self.has_python_words and words == [Leaf("/true|false/", True)]
        value = '("True" | "False")' if is_flag else document.expression(number)
        return f'{name} "=" {value}'


def _read_calls(scanner: CallScanner, ends: tuple[str, ...], is_bare: bool) -> Steps[bool]:
    num_calls = 0
    yield from scanner.blanks()
    is_list = True if is_bare else (yield from scanner.take("["))
    while True:
        yield from scanner.blanks()
        if not (yield from _read_call(scanner, is_bare)):
            if num_calls:
                scanner.go_back()
            return num_calls > 0
        num_calls += 1
        scanner.begin()
        yield from scanner.blanks()
        has_comma = yield from scanner.take(",")
        if is_list and not has_comma:
            if not (yield from scanner.take("]")):
                scanner.go_back()
                return True
            scanner.begin()
            is_list = False
            if is_bare:
                return True
            yield from scanner.blanks()
        if (yield from scanner.take_any(ends)) is not None:
            return True


def _read_call(scanner: CallScanner, is_bare: bool) -> Steps[bool]:
    """Read one call, from its name on. Returns False, without output, if there is none."""
    name = yield from _name(scanner)
    if name is None or (is_bare and name not in scanner.tools):
        return False
    tool = scanner.tools.get(name)
    num_arguments = 0
    keys: set[str] = set()
    while True:
        part = yield from _part(scanner)
        if part is None:  # the output was cut
            scanner.at = len(scanner.text)
            return num_arguments > 0
        text, stop = part
        if text.strip():
            found = _ARGUMENT.fullmatch(text)
            key = found[1] if found else _name_at(tool, num_arguments)
            if key is None and num_arguments == 0:
                return False
            if key is None or key in keys:  # the tool has no such argument
                if not stop or stop == ")":
                    break
                continue
            keys.add(key)
            value = literal(scanner.markers.plain(found[2] if found else text), tool.types(key))
            if num_arguments == 0:
                scanner.call(name)
            head = ("{" if num_arguments == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": "
            scanner.arguments(head + value)
            num_arguments += 1
        if stop == ")":
            break
        if not stop:  # a special token, which calls do not contain, ends the call
            break
    if num_arguments == 0:
        scanner.call(name)
    scanner.arguments("}" if num_arguments else "{}")
    return True


def _name_at(tool: Tool, position: int) -> str | None:
    """The name of an argument that was written without one."""
    return tool.names[position] if position < len(tool.names) else None


def _name(scanner: CallScanner) -> Steps[str | None]:
    """Take a name and the parenthesis after it."""
    while True:
        found = _NAME.match(scanner.text, scanner.at)
        end = found.end() if found else scanner.at
        if end < len(scanner.text) or scanner.is_ended or end - scanner.at > _MAX_NAME:
            break
        yield
    if found is None or end - scanner.at > _MAX_NAME or not scanner.text.startswith("(", end):
        return None
    scanner.at = end + 1
    return found[0]


def _part(scanner: CallScanner) -> Steps[tuple[str, str] | None]:
    """Take the text up to the next comma or parenthesis outside strings and brackets, and that; None if none
    follows."""
    scan = Scan()
    while True:
        length = scan.length(scanner.text, scanner.at, scanner.is_ended)
        if length is not None:
            end = scanner.at + length
            text, stop = scanner.text[scanner.at : end], scanner.text[end]
            is_mark = "\ud800" <= stop <= "\udfff"
            scanner.at = end if is_mark else end + 1
            return text, "" if is_mark else stop
        if scanner.is_ended:
            return None
        yield
