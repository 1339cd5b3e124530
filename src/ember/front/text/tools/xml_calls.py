"""Calls with a tag for each argument and values in plain text, whose types come from the tool's schema."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ember.front.text import lark
from ember.front.text.json_node_kinds import kind_of
from ember.front.text.json_rules import Document
from ember.front.text.tools.dialect import Dialect
from ember.front.text.tools.grammar import Rules
from ember.front.text.tools.json_calls import read_calls
from ember.front.text.tools.marks import Finder, Markers
from ember.front.text.tools.scanner import CallScanner, Steps
from ember.front.text.tools.schema import Tool, is_text, text_as, typed
from ember.front.text.tools.sections import read_section
from ember.front.text.tools.xml_values import CDATA, Values

_MAX_NAME = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class XmlCalls:
    """The form of one family: begin, (call, (key, value)..., call end)..., end. One section is
    `<calls><call=weather><key=city>Rome</key></call></calls>`, where `begin` is `<calls>`, `call` is ("<call=", ">")
    and `key` is ("<key=", ">").

    `call` and `key` are the texts before and after a name. A call without a text before its name begins and ends with
    the section. Without a `begin` there is no section. Whitespace is allowed between all tags.
    """

    begin: str
    end: str
    call: tuple[str, str]
    call_end: str
    key: tuple[str, str]
    value_end: str
    value_begin: str = ""
    has_newlines: bool = False  # whether newlines around a value do not belong to it
    typed_by: str = ""  # an attribute after a key: `string` with "true" or "false", or `type` with a type's name
    attributes_end: str = ">"  # after the attributes
    type_tag: tuple[str, str] = ("", "")  # around an optional type between key and value
    call_attributes: str = ""  # after a name, up to `attributes_end`; {index} is the number of the call
    has_entities: bool = False  # whether names have &quot; and &amp;
    space: str = "\n"  # between the tags, in the grammar
    before_call: str = ""  # between two sections, if each call has its own
    in_one: bool = False  # whether one section has all calls
    lead: str = ""  # before each call of the section
    trail: str = ""  # after it
    header_mark: str = ""  # before the header
    header: str = ""  # before the start of each section, with the function's name; calls begin with a section alone
    other_end: str = ""  # end of a section that ends the output

    @property
    def marks(self) -> tuple[str, ...]:
        tags = (*self.call, self.call_end, *self.key, *self.type_tag, self.value_begin, self.value_end)
        attributes = (self.attributes_end,) if self.attributes_end != ">" else ()
        return (self.begin, self.end, self.other_end, self.lead, self.trail, *tags, *attributes)

    def dialect(self, markers: Markers) -> Dialect:
        reader = _Reader(self, markers)
        openers = [reader.begin] if self.header else [mark for mark in (reader.begin, reader.lead, reader.call) if mark]
        ends = [reader.end, markers.encode(self.other_end)]
        ends += [] if self.call[0] else [reader.call_end]
        return Dialect(openers, ends, reader.read)

    def rules(self, tools: list[Tool], rules: Rules, parallel: bool) -> tuple[str, str]:
        """See `grammar.Form`."""
        space = self.space
        if self.header:
            framed = rules.one_of(
                [
                    f"{rules.literal(self.header.format(name=tool.name) + self.begin)} {self._call_rule(tool, rules)}"
                    f" {rules.literal(self.end)}"
                    for tool in tools
                ]
            )
            return self.header_mark, rules.many(framed, rules.literal(self.header_mark), parallel)
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
        """The expression of a call. `is_open`: the text before the name was written before."""
        before, behind = self.call
        name = _with_entities(tool.name) if self.has_entities else tool.name
        head = rules.literal(f"{'' if is_open else self.lead + before}{name}{behind if before else ''}")
        if self.call_attributes:
            first, _, second = self.call_attributes.partition("{index}")
            number = rules.terminal("/[1-9][0-9]?/")
            head += f" {rules.literal(first)} {number} {rules.literal(second + self.attributes_end)}"
        pairs = rules.pairs(tool, self._pair_rule)
        return f"{head} {rules.literal(self.space)} {pairs} {rules.literal(self.call_end + self.trail)}"

    def _pair_rule(self, rules: Rules, tool: Tool, key: str | None, document: Document, number: int) -> str:
        """The expression of one argument. The key None stands for any name."""
        line = "\n" if self.has_newlines else ""
        name = rules.literal(_with_entities(key) if self.has_entities else key) if key is not None else rules.name()
        texts, others = rules.texts_and_others(tool, key, document, number)
        if not texts and not others:
            return ""
        text = rules.text(tool, document, texts, line + self.value_end, [self.value_end], self._misread(rules))
        ends = rules.literal(line + self.value_end)
        if not self.typed_by:
            made = [text] if text else []
            made += [f"{rules.one_of([document.expression(other) for other in others])} {ends}"] if others else []
            middle = f"{rules.literal(self.key[1] + self._gap() + self.value_begin + line)} {rules.one_of(made)}"
        else:
            made = [f"{self._attribute(rules, 'string')} {text}"] if text else []
            made += [
                f"{self._attribute(rules, kind_of(document.nodes[other]))} {document.expression(other)} {ends}"
                for other in others
            ]
            middle = f"{rules.literal(self.key[1])} {rules.one_of(made)}"
        return f"{rules.literal(self.key[0])} {name} {middle} {rules.literal(self.space)}"

    def _attribute(self, rules: Rules, kind: str) -> str:
        """The attribute with the type of a value, or whether it is a string."""
        value = str(kind == "string").lower() if self.typed_by == "string" else kind
        return rules.literal(f' {self.typed_by}="{value}"{self.attributes_end}')

    def _gap(self) -> str:
        return self.space if self.value_begin else ""

    def _misread(self, rules: Rules) -> list[str]:
        """Texts that strings cannot contain in the grammar: tags that would end a string without an end tag, and the
        start of CDATA."""
        tags = [self.key[0], self.call_end, self.end, self.call[0], self.begin]
        made = [lark.regex_quoted(tag) for tag in dict.fromkeys(tags) if tag and rules.is_text(tag)]
        expressions = [f"(?s:.*)({'|'.join(made)})(?s:.*)"] if made else []
        return [*expressions, rf"[ \t\r\n]*{lark.regex_quoted(CDATA)}(?s:.*)"]


class _Reader:
    """The format with the marks of one tokenizer."""

    def __init__(self, form: XmlCalls, markers: Markers) -> None:
        self._form = form
        self.begin, self.end = markers.encode(form.begin), markers.encode(form.end)
        self.call = markers.encode(form.call[0])
        self.lead, self._trail = markers.encode(form.lead), markers.encode(form.trail)
        self.call_end = markers.encode(form.call_end)
        self._key = markers.encode(form.key[0])
        self._type_begin = markers.encode(form.type_tag[0])
        self._value_begin = markers.encode(form.value_begin)
        self._value_end = markers.encode(form.value_end)
        self._attributes_ends = Finder([markers.encode(form.attributes_end)])
        behind_name, key_end = markers.encode(form.call[1]), markers.encode(form.key[1])
        # A call continues at one of these marks. It has ended at one of them that is not a key.
        self._tags = [mark for mark in (self._key, self.call_end, self.end) if mark]
        self._starts = [mark for mark in (self.call, self.lead, self.begin) if mark]
        self._any_tag = Finder([*self._tags, *self._starts])
        if behind_name:
            self._name_ends = Finder([behind_name])
        else:
            self._name_ends = Finder(["\n", *self._tags])
        self._has_mark_behind_name = bool(behind_name)
        self._key_ends = Finder([key_end])
        self._type_ends = Finder([markers.encode(form.type_tag[1])])
        follows = [self.end, self._trail, *self._starts]
        self._values = Values(
            self._value_end, (self._key, key_end), [self.call_end, self.end], self._starts, follows, form.has_newlines
        )

    def read(self, scanner: CallScanner, opener: str) -> Steps[bool]:
        first = opener if opener == self.call or not self.call else None
        if first is None:
            yield from scanner.blanks()
            if (yield from scanner.character()) in ("{", "["):  # the form of many other models
                return (yield from read_calls(scanner, (self.end,)))
        return (yield from read_section(scanner, first, self._take_opener, self._read_call_to_its_ends, self.end))

    def _take_opener(self, scanner: CallScanner) -> Steps[str | None]:
        if self.lead and (yield from scanner.take(self.lead)):
            yield from scanner.blanks()
        return (yield from scanner.take_any((self.call,))) if self.call else None

    def _read_call_to_its_ends(self, scanner: CallScanner, opener: str) -> Steps[bool]:
        """Read one call, with repeated end marks."""
        if not (yield from self._read_call(scanner)):
            return False
        scanner.begin()
        for mark in (self.call_end, self._trail):
            while mark and (yield from self._take_next(scanner, mark)):
                scanner.begin()
        return True

    def _take_next(self, scanner: CallScanner, mark: str) -> Steps[bool]:
        """Take the mark if it is next, after blanks. Blanks without the mark are not taken."""
        place = scanner.num_tried
        yield from scanner.blanks()
        if (yield from scanner.take(mark)):
            return True
        scanner.return_to(place)
        return False

    def _read_call(self, scanner: CallScanner) -> Steps[bool]:
        """Read one call after its opener."""
        yield from scanner.blanks()
        if self.call and not self._has_mark_behind_name and (yield from scanner.character()) == "{":
            return (yield from read_calls(scanner, (self.call_end,)))
        found = yield from scanner.until(self._name_ends, _MAX_NAME)
        if found is None:
            return False
        name, stop = found[0].strip(), found[1]
        if not self._has_mark_behind_name and stop != "\n":
            scanner.at -= len(stop)
        if self._form.call_attributes and (yield from scanner.until(self._attributes_ends, _MAX_NAME)) is None:
            return False
        yield from scanner.blanks()
        if self._form.has_entities:
            name = _without_entities(name)
        if not _is_name(name) or not (yield from self._comes(scanner, self._tags)):
            return False
        name = scanner.tools.own_name(name)
        scanner.call(name)
        tool = scanner.tools.get(name)
        num_arguments = 0
        while True:
            yield from scanner.blanks()
            if (yield from scanner.take(self._key)):
                mark = yield from self._read_argument(scanner, tool, num_arguments)
                if mark is None:
                    return True  # the output was cut
                num_arguments += 1
                if mark != self._value_end:  # the end tag is missing, and the mark is read again
                    scanner.at -= len(mark)
                continue
            if self.call_end and (yield from scanner.take(self.call_end)):
                break
            if (yield from self._comes(scanner, [mark for mark in (self.end, *self._starts) if mark])):
                break
            if not (yield from self._skip(scanner)):
                return True  # the output was cut
        scanner.arguments("}" if num_arguments else "{}")
        return True

    def _comes(self, scanner: CallScanner, marks: list[str]) -> Steps[bool]:
        """Whether one of the marks is next, without taking it."""
        for mark in marks:
            if (yield from scanner.take(mark)):
                scanner.at -= len(mark)
                return True
        return False

    def _skip(self, scanner: CallScanner) -> Steps[bool]:
        """Move to the next tag, over text outside tags. Returns False at the end of the output."""
        if (yield from scanner.character()) == "":
            return False
        found = yield from scanner.until(self._any_tag)
        if found is None:
            scanner.at = len(scanner.text)
            return False
        scanner.at -= len(found[1])
        return True

    def _read_argument(self, scanner: CallScanner, tool: Tool, num_before: int) -> Steps[str | None]:
        """Read one argument after the beginning of its key. Returns the mark that ended it, None at the output's
        end."""
        found = yield from scanner.until(self._key_ends, _MAX_NAME)
        if found is None:
            self._cut_off(scanner)
            return None
        key = scanner.markers.plain(found[0]).strip()
        if self._form.has_entities:
            key = _without_entities(key)
        types = tool.types(key)
        is_string = is_text(types)
        is_declared = False  # whether the model has given a type
        if self._form.typed_by:
            attribute = yield from scanner.until(self._attributes_ends, _MAX_NAME)
            if attribute is None:
                self._cut_off(scanner)
                return None
            kind = '"true"' if self._form.typed_by == "string" else 'type="string"'
            is_string, is_declared = kind in attribute[0], True
        elif self._type_begin:
            yield from scanner.blanks()
            if (yield from scanner.take(self._type_begin)):
                named = yield from scanner.until(self._type_ends, _MAX_NAME)
                if named is None:
                    self._cut_off(scanner)
                    return None
                types = _named_types(types, named[0])
                is_string = is_text(types)
        if self._value_begin:
            yield from scanner.blanks()
            yield from scanner.take(self._value_begin)
        if self._form.has_newlines:
            yield from scanner.take("\n")
        head = ("{" if num_before == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": "
        if is_string:
            return (yield from self._values.forward(scanner, tool, head))
        ended = yield from self._values.held(scanner, tool)
        if ended is None:
            scanner.at = len(scanner.text)
            return None
        text, mark = ended
        scanner.arguments(head + (_declared(text) if is_declared else typed(text, types)))
        return mark

    def _cut_off(self, scanner: CallScanner) -> None:
        """Handle a key without an end: at the end of the output it is dropped, elsewhere it is content."""
        if scanner.is_ended:
            scanner.at = len(scanner.text)


def _with_entities(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;")


def _without_entities(text: str) -> str:
    return text.replace("&quot;", '"').replace("&amp;", "&")


def _named_types(types: tuple[str, ...] | None, name: str) -> tuple[str, ...] | None:
    """The types of an argument for which the model has given a type, such as `array[string]`: it is used if the schema
    has no type or allows several."""
    word = name.partition("[")[0].strip().lower()
    if types is None:
        return () if word == "any" else (word,)
    return (word,) if word in types else types


def _is_name(text: str) -> bool:
    return bool(text) and not any(character in '<>"{}' or character.isspace() for character in text)


def _declared(text: str) -> str:
    """A value that is not a string according to the model."""
    bare = text.strip()
    for name in ("boolean", "number", "object", "array"):
        made = text_as(name, text, bare)
        if made is not None:
            return made
    return "null" if bare in ("null", "None") else json.dumps(text, ensure_ascii=False)
