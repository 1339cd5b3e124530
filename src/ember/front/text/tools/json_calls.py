"""Calls that are JSON objects, `{"name": ..., "arguments": {...}}`, alone or in lists, with or without marks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ember.front.text.tools.dialect import Dialect
from ember.front.text.tools.grammar import Rules
from ember.front.text.tools.json_text import forward_value, held_string, held_value
from ember.front.text.tools.marks import Markers
from ember.front.text.tools.scanner import CallScanner, Steps
from ember.front.text.tools.schema import Tool, encodable

_NAME_KEYS = frozenset({"name", "tool_name", "function_name"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters", "args"})
_OTHER_KEYS = frozenset({"type", "id", "function", "tool_call_id"})
_ID = re.compile(r'"([^"\\]{1,64})"|([0-9]{1,9})')
_MAX_NAME = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCalls:
    """The form of one family: `<call>{"name": "weather", "arguments": {"city": "Rome"}}</call>`, where `<call>` is one
    of `begins` and `</call>` one of `ends`.

    The parser accepts single objects and lists, and any name of the arguments, independently of the fields. The grammar
    enforces the fields, and the first of several spellings.
    """

    begins: tuple[str, ...] = ()  # marks before one or more calls
    ends: tuple[str, ...] = ()
    bare: str = ""  # characters ("{", "[") with which calls may begin without a mark
    arguments: str = "arguments"
    name: str = "name"
    number: str = ""  # a key before the name, whose value is the call's id, a number as text
    is_keyed: bool = False  # whether an object has the function's name as its key: {"f": {...}}
    is_list: bool = False  # whether one pair of marks encloses all calls, as a JSON list
    space: str = "\n"  # between the marks and the calls
    between: str = "\n"  # between two calls, with their marks unless they are a list

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.begins, *self.ends)

    def dialect(self, markers: Markers) -> Dialect:
        begins, ends = markers.encode_all(self.begins), markers.encode_all(self.ends)

        def read(scanner: CallScanner, opener: str) -> Steps[bool]:
            if opener in begins:
                return (yield from read_calls(scanner, ends, self.is_keyed, self.number))
            scanner.at -= len(opener)
            return (yield from _read_bare(scanner))

        return Dialect((*begins, *self.bare), ends, read)

    def rules(self, tools: list[Tool], rules: Rules, parallel: bool) -> tuple[str, str]:
        """See `grammar.Form`."""
        calls = rules.one_of(
            [f"{self._head(tool, rules)} {rules.arguments(tool)} {rules.quoted('}')}" for tool in tools]
        )
        begin, end = ("", "") if self.bare else (rules.own_of(self.begins), next(iter(self.ends), ""))
        if self.is_list:
            inner = rules.many(calls, rules.quoted(", "), parallel)
            return begin, f"{rules.quoted('[')} {inner} {rules.literal(']' + end)}"
        if not begin:
            return "", rules.many(calls, rules.quoted(self.between), parallel)
        one = f"{rules.quoted(self.space)} {calls} {rules.literal(self.space + end if end else '')}"
        again = f"{rules.literal(self.between + begin)} {one}"
        return begin, f"{one} ({again})*" if parallel else one

    def _head(self, tool: Tool, rules: Rules) -> str:
        name = json.dumps(tool.name, ensure_ascii=False)
        if self.is_keyed:
            return rules.quoted(f"{{{name}: ")
        head = f'"{self.name}": {name}, "{self.arguments}": '
        if not self.number:
            return rules.quoted("{" + head)
        number = rules.terminal("/[0-9]{1,3}/")
        return f"""{rules.quoted(f'{{"{self.number}": "')} {number} {rules.quoted('", ' + head)}"""


def read_calls(scanner: CallScanner, ends: tuple[str, ...], is_keyed: bool = False, id_key: str = "") -> Steps[bool]:
    """Read calls after a mark, one or a list, and the end mark. The calls' ids are under `id_key`."""
    num_calls = 0
    while True:
        yield from scanner.blanks()
        character = yield from scanner.character()
        if character == "{":
            if num_calls:
                scanner.begin()
            is_read = yield from (
                _read_keyed(scanner) if is_keyed else _read_object(scanner, is_bare=False, id_key=id_key)
            )
            if not is_read:
                if num_calls:
                    scanner.go_back()
                    return True
                return False
            num_calls += 1
        elif character and ((character == "[" and not num_calls) or (character in ",;]}" and num_calls)):
            scanner.at += 1
        else:
            break
    if num_calls:
        yield from scanner.take_any(ends)
    return num_calls > 0


def _read_keyed(scanner: CallScanner) -> Steps[bool]:
    """Read calls that are the pairs of one object. Returns False, without output, if there is none."""
    yield from scanner.take("{")
    num_calls = 0
    while True:
        yield from scanner.blanks()
        if num_calls and (yield from scanner.take("}")):
            return True
        if num_calls:
            scanner.begin()
        name = yield from held_string(scanner, _MAX_NAME)
        if not name:
            return num_calls > 0
        yield from scanner.blanks()
        if not (yield from scanner.take(":")):
            return num_calls > 0
        yield from scanner.blanks()
        if (yield from scanner.character()) != "{":
            return num_calls > 0
        scanner.call(name)
        if not (yield from forward_value(scanner, is_in_object=True)):
            if num_calls:
                scanner.go_back()
            return num_calls > 0
        num_calls += 1
        yield from scanner.blanks()
        yield from scanner.take(",")


def _read_bare(scanner: CallScanner) -> Steps[bool]:
    """Read calls without a mark: only of offered tools, since an answer may be JSON too."""
    num_calls = 0
    is_list = yield from scanner.take("[")
    while True:
        if is_list or num_calls:
            yield from scanner.blanks()
        if not (yield from _read_object(scanner, is_bare=True)):
            if not num_calls:
                return False
            scanner.go_back()
            return True
        num_calls += 1
        scanner.begin()
        yield from scanner.blanks()
        if is_list and (yield from scanner.take("]")):
            return True
        if not (yield from scanner.take("," if is_list else ";")):
            scanner.go_back()
            return True


def _read_object(scanner: CallScanner, is_bare: bool, is_inner: bool = False, id_key: str = "") -> Steps[bool]:
    """Read one call. Returns False, without output, if there is none. `is_inner`: it is the `function` of another
    one."""
    if not (yield from scanner.take("{")):
        return False
    name: str | None = None
    arguments: str | None = None
    call_id: str | None = None
    is_called = has_arguments = False
    while True:
        yield from scanner.blanks()
        character = yield from scanner.character()
        if character == "}":
            scanner.at += 1
            break
        if character == ",":
            scanner.at += 1
            continue
        key = yield from held_string(scanner, _MAX_NAME)
        if key is None or (is_bare and key not in _NAME_KEYS | _ARGUMENT_KEYS | _OTHER_KEYS):
            return is_called
        yield from scanner.blanks()
        if not (yield from scanner.take(":")):
            return is_called
        yield from scanner.blanks()
        character = yield from scanner.character()
        if key in _NAME_KEYS and name is None:
            name = yield from held_string(scanner, _MAX_NAME)
            if not name or (is_bare and name not in scanner.tools):
                return is_called
        elif key in _ARGUMENT_KEYS and not has_arguments:
            if is_bare and name is None:
                return False
            has_arguments = True
            if character == "{" and name is not None:
                scanner.call(name, call_id)
                is_called = True
                if not (yield from forward_value(scanner, is_in_object=True)):
                    return False
            else:
                arguments = _as_object((yield from held_value(scanner)))
                if arguments is None:
                    return is_called
        elif key == "function" and character == "{" and name is None and not is_inner:  # the form of the API
            if not (yield from _read_object(scanner, is_bare, is_inner=True)):
                return False
            is_called = has_arguments = True
        elif is_bare and character in ("{", "["):
            return is_called
        else:
            value = yield from held_value(scanner)
            if value is None:
                return is_called
            if key == id_key and not is_called:
                found = _ID.fullmatch(value)
                call_id = found and (found[1] or found[2])
    if is_called:
        return True
    if name is None or (is_bare and not has_arguments):
        return False
    scanner.call(name, call_id)
    scanner.arguments("{}" if arguments is None else arguments)
    return True


def _as_object(text: str | None) -> str | None:
    """The arguments of a call that are not an object: the text of one, or nothing."""
    if text is None or text.startswith("{"):
        return text
    try:
        value = json.loads(text)
        if value is None or value == "":
            return "{}"
        return encodable(value.strip()) if isinstance(value, str) and isinstance(json.loads(value), dict) else None
    except (ValueError, RecursionError):  # not JSON, nested too deeply, or a number of too many digits
        return None
