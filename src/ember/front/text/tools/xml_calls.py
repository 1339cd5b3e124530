"""Calls in tags, one for each argument, with the values as plain text: what type they are, the tool's schema says."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ember.front.text.tools.grammar import Rules
from ember.front.text.tools.json_calls import read_calls
from ember.front.text.tools.json_text import JsonCopy
from ember.front.text.tools.reading import Dialect, Finder, Markers, Reading, Steps, json_escaped
from ember.front.text.tools.schema import Tool, is_text, text_as, typed

_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class XmlCalls:
    """How one family writes them: begin, (call, (key, value)..., call end)..., end.

    `call` and `key` are what stands before and behind a name. Without a text before its name, a call begins with the
    section and has its end; without a `begin` there is no section. Blanks may stand between all tags.
    """

    begin: str
    end: str
    call: tuple[str, str]
    call_end: str
    key: tuple[str, str]
    value_end: str
    value_begin: str = ""
    has_newlines: bool = False  # around a value, that are not of it
    is_typed: bool = False  # behind a key stands `string="true"` or "false"
    space: str = "\n"  # between the tags, where the model is held to the form
    before_call: str = ""  # between two sections, where each call has its own
    in_one: bool = False  # one section for all calls
    lead: str = ""  # before each call of the section
    trail: str = ""  # behind it

    @property
    def marks(self) -> tuple[str, ...]:
        tags = (*self.call, self.call_end, *self.key, self.value_begin, self.value_end)
        return (self.begin, self.end, self.lead, self.trail, *tags)

    def dialect(self, markers: Markers) -> Dialect:
        reader = _Reader(self, markers)
        openers = [mark for mark in (reader.begin, reader.lead, reader.call) if mark]
        return Dialect(openers, [reader.end], reader.read)

    def rules(self, tools: list[Tool], rules: Rules, parallel: bool) -> tuple[str, str]:
        """See `grammar.Form`."""
        space = self.space
        if not self.begin:
            one = rules.one_of([self._call_rule(tool, rules, is_open=True) for tool in tools])
            again = f"{rules.literal(self.before_call + self.call[0])} {one}"
            return self.call[0], f"{one} ({again})*" if parallel else one
        calls = rules.one_of([self._call_rule(tool, rules) for tool in tools])
        if self.in_one:
            many = rules.many(calls, rules.literal(space) if space else "", parallel)
            return self.begin, f"{rules.literal(space)} {many} {rules.literal(space + self.end)}"
        lead = space if self.call[0] else ""
        one = f"{rules.literal(lead)} {calls} {rules.literal((space if self.call[0] else '') + self.end)}"
        again = f"{rules.literal(self.before_call + self.begin)} {one}"
        return self.begin, f"{one} ({again})*" if parallel else one

    def _call_rule(self, tool: Tool, rules: Rules, is_open: bool = False) -> str:
        """`is_open`: what stands before the name was written already."""
        before, behind = self.call
        head = f"{'' if is_open else self.lead + before}{tool.name}{behind if before else ''}{self.space}"
        pairs = rules.pairs(tool, self._pair_rule)
        return f"{rules.literal(head)} {pairs} {rules.literal(self.call_end + self.trail)}"

    def _pair_rule(self, rules: Rules, tool: Tool, key: str | None, schema: object) -> str:
        """One argument. A key of None is any that the model thinks of."""
        line = "\n" if self.has_newlines else ""
        name = rules.literal(key) if key is not None else rules.name()
        early = [self.value_end, *(f"{self.call_end}{space}{self.end}" for space in ("", "\n") if self.call_end)]
        text = rules.text_value(tool, schema, line + self.value_end, early)
        value = rules.plain_value(tool, schema)
        ends = rules.literal(line + self.value_end)
        if not self.is_typed:
            made = [text] if text else []
            made += [f"{value} {ends}"] if value else []
            middle = f"{rules.literal(self.key[1] + self._gap() + self.value_begin + line)} {rules.one_of(made)}"
        else:
            made = [f"{rules.quoted(' string=' + chr(34) + 'true' + chr(34) + '>')} {text}"] if text else []
            made += [f"{rules.quoted(' string=' + chr(34) + 'false' + chr(34) + '>')} {value} {ends}"] if value else []
            middle = f"{rules.quoted(chr(34))} {rules.one_of(made)}"
        return f"{rules.literal(self.key[0])} {name} {middle} {rules.literal(self.space)}"

    def _gap(self) -> str:
        return self.space if self.value_begin else ""


class _Reader:
    """The format with the marks of one tokenizer."""

    def __init__(self, form: XmlCalls, markers: Markers) -> None:
        self._form = form
        self.begin, self.end = markers.encode(form.begin), markers.encode(form.end)
        self.call = markers.encode(form.call[0])
        self.lead, self._trail = markers.encode(form.lead), markers.encode(form.trail)
        self._call_end = markers.encode(form.call_end)
        self._key = markers.encode(form.key[0])
        self._value_begin = markers.encode(form.value_begin)
        value_end = markers.encode(form.value_end)
        # Before the end of the section the end of a value may be missing.
        ends = [value_end]
        if self.end:
            ends += [f"{self._call_end}{space}{self.end}" for space in ("", "\n") if self._call_end]
            ends += [self.end] if self.end != form.end else []
        self._value_end = value_end
        self._value_ends = Finder(ends)
        behind_name = markers.encode(form.call[1])
        if form.call[0]:
            self._name_ends = Finder([behind_name])
        else:
            self._name_ends = Finder(["\n", self._key, self.end])
        self._key_ends = Finder([markers.encode(form.key[1])])
        self._any_tag = Finder([self._key, self._call_end, self.end])

    def read(self, reading: Reading, opener: str) -> Steps[bool]:
        num_calls = 0
        is_in_call = opener == self.call or not self.call
        while True:
            if not is_in_call:
                yield from reading.blanks()
                if not num_calls and (yield from reading.character()) in ("{", "["):  # the form of many other models
                    return (yield from read_calls(reading, (self.end,)))
                if self.lead and (yield from reading.take(self.lead)):
                    yield from reading.blanks()
                is_in_call = bool(self.call) and (yield from reading.take(self.call))
            if not is_in_call:
                break
            if not (yield from self._read_call(reading)):
                if num_calls:
                    reading.go_back()
                return num_calls > 0
            num_calls += 1
            is_in_call = False
            reading.begin()
            if self._trail:
                yield from reading.blanks()
                if (yield from reading.take(self._trail)):
                    reading.begin()
        if num_calls == 0:
            return False
        if not (yield from reading.take(self.end)):
            reading.go_back()
        return True

    def _read_call(self, reading: Reading) -> Steps[bool]:
        """One call, from behind what begins it."""
        yield from reading.blanks()
        found = yield from reading.until(self._name_ends, _MAX_NAME)
        if found is None:
            return False
        name, stop = found[0].strip(), found[1]
        if not self.call and stop != "\n":
            reading.at -= len(stop)
        yield from reading.blanks()
        if not _is_name(name) or not (yield from self._goes_on(reading)):
            return False
        reading.call(name)
        tool = reading.tools.get(name)
        num_arguments = 0
        while True:
            yield from reading.blanks()
            if (yield from reading.take(self._key)):
                mark = yield from self._read_argument(reading, tool, num_arguments)
                if mark is None:
                    return True  # cut off
                num_arguments += 1
                if mark != self._value_end:  # it was the last, and what ended it is read again
                    reading.at -= len(mark)
                continue
            if self._call_end and (yield from reading.take(self._call_end)):
                break
            if self.end and (yield from reading.take(self.end)):
                reading.at -= len(self.end)
                break
            if not (yield from self._skip(reading)):
                return True  # cut off
        reading.arguments("}" if num_arguments else "{}")
        return True

    def _goes_on(self, reading: Reading) -> Steps[bool]:
        """Whether an argument or an end comes next; nothing is taken."""
        for mark in (self._key, self._call_end, self.end):
            if mark and (yield from reading.take(mark)):
                reading.at -= len(mark)
                return True
        return False

    def _skip(self, reading: Reading) -> Steps[bool]:
        """Goes on to the next tag, over text that belongs to none. False at the end of the output."""
        if (yield from reading.character()) == "":
            return False
        found = yield from reading.until(self._any_tag)
        if found is None:
            reading.at = len(reading.text)
            return False
        reading.at -= len(found[1])
        return True

    def _read_argument(self, reading: Reading, tool: Tool, num_before: int) -> Steps[str | None]:
        """One argument, from behind the begin of its key; the mark that ended it, None if the output did."""
        found = yield from reading.until(self._key_ends, _MAX_NAME)
        if found is None:
            self._cut_off(reading)
            return None
        key = reading.markers.plain(found[0]).strip()
        types = tool.types(key)
        is_string = is_text(types)
        if self._form.is_typed:
            attribute = yield from reading.until(Finder([">"]), _MAX_NAME)
            if attribute is None:
                self._cut_off(reading)
                return None
            is_string = "true" in attribute[0]
            types = types if is_string or types else ()
        if self._value_begin:
            yield from reading.blanks()
            yield from reading.take(self._value_begin)
        if self._form.has_newlines:
            yield from reading.take("\n")
        head = ("{" if num_before == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": "
        if is_string:
            return (yield from self._forward_string(reading, head))
        ended = yield from self._held_value(reading)
        if ended is None:
            reading.at = len(reading.text)
            return None
        text, mark = ended
        if self._form.has_newlines:
            text = text.removesuffix("\n")
        text = reading.markers.plain(text)
        reading.arguments(head + (_declared(text) if self._form.is_typed else typed(text, types)))
        return mark

    def _cut_off(self, reading: Reading) -> None:
        """Where a key does not end in time: at the end of the output it is lost, elsewhere it is content."""
        if reading.is_ended:
            reading.at = len(reading.text)

    def _held_value(self, reading: Reading) -> Steps[tuple[str, str] | None]:
        """Takes a value that is no plain string, and its end. An end inside a string of JSON is part of that string,
        unless the string has no end itself."""
        seen = copied = 0
        copy = JsonCopy()
        first: tuple[int, str] | None = None
        while True:
            place, mark = self._value_ends.find(reading.text, reading.at + seen, reading.is_ended)
            length = place - reading.at
            if mark is None and not reading.is_ended:
                seen = length
                yield
                continue
            if mark is not None:
                copied += copy.feed(reading.text[reading.at + copied : place], 0, False)[1]
                if copy.is_in_string and copy.is_nested:
                    first = first or (length, mark)
                    seen = length + 1
                    continue
            if mark is None:
                if first is None:
                    return None
                length, mark = first
            text = reading.text[reading.at : reading.at + length]
            reading.at += length + len(mark)
            return text, mark

    def _forward_string(self, reading: Reading, head: str) -> Steps[str | None]:
        """A value that is a string, as it arrives."""
        reading.arguments(head + '"')
        while True:
            place, mark = self._value_ends.find(reading.text, reading.at, reading.is_ended)
            chunk = reading.text[reading.at : place]
            held = 1 if self._form.has_newlines and chunk.endswith("\n") else 0
            shown = chunk[: len(chunk) - held]
            reading.arguments(json_escaped(shown))
            reading.at += len(shown)
            if mark is not None:
                reading.at += held + len(mark)
                reading.arguments('"')
                return mark
            if reading.is_ended:
                reading.at = len(reading.text)
                return None
            yield


def _is_name(text: str) -> bool:
    return bool(text) and not any(character in '<>"{}' or character.isspace() for character in text)


def _declared(text: str) -> str:
    """A value that the model says is no string."""
    bare = text.strip()
    for name in ("boolean", "number", "object", "array"):
        made = text_as(name, text, bare)
        if made is not None:
            return made
    return "null" if bare in ("null", "None") else json.dumps(text, ensure_ascii=False)
