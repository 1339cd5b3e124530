"""Calls whose arguments are elements named after the arguments, which may be nested: MiniMax M3.

    ]<]minimax[>[<invoke name="f">]<]minimax[>[<city>Rome]<]minimax[>[</city>]<]minimax[>[</invoke>

Lists and objects are both elements of elements. The tool's schema distinguishes them. A repeated name is a list as
well, so arguments are released only at the end of their call.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from ember.front.text import lark
from ember.front.text.json_rules import Document
from ember.front.text.tools.dialect import Dialect
from ember.front.text.tools.grammar import Rules
from ember.front.text.tools.marks import Finder, Markers
from ember.front.text.tools.scanner import CallScanner, Steps
from ember.front.text.tools.schema import Tool, typed
from ember.front.text.tools.sections import read_section
from ember.front.text.tools.unwrap import WRAPPERS
from ember.front.text.tools.xml_values import CDATA

_MAX_NAME = 256
_MAX_DEPTH = 64
_TAG = re.compile(r"<(/?)([^<>/\s][^<>]{0,255})>")
_CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", re.DOTALL)
_PLAIN_NAME = re.compile(r"[\w.\-$:]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementCalls:
    """The form of one family, as in this module's docstring, with `prefix` before every tag."""

    prefix: str

    @property
    def begin(self) -> str:
        return f"{self.prefix}<tool_call>"

    @property
    def end(self) -> str:
        return f"{self.prefix}</tool_call>"

    @property
    def call(self) -> str:
        return f"{self.prefix}<invoke name="

    @property
    def call_end(self) -> str:
        return f"{self.prefix}</invoke>"

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.begin, self.end, self.call, self.call_end, self.prefix)

    def dialect(self, markers: Markers) -> Dialect:
        reader = _Reader(self, markers)
        return Dialect([reader.begin, reader.call], [reader.end], reader.read)

    def rules(self, tools: list[Tool], rules: Rules, parallel: bool) -> tuple[str, str]:
        """See `grammar.Form`."""
        calls = rules.one_of([self._call_rule(tool, rules) for tool in tools])
        return self.begin, f'"\\n" {rules.many(calls, "", parallel)} {rules.literal(self.end)}'

    def _call_rule(self, tool: Tool, rules: Rules) -> str:
        head = rules.literal(f'{self.call}"{tool.name}">')
        if not rules.is_enforced(tool):  # a grammar cannot match the end of an element of any name
            return f'{head} {rules.until(self.call_end)} "\\n"'
        return f"{head} {rules.pairs(tool, self._pair_rule)} {rules.literal(self.call_end + chr(10))}"

    def _pair_rule(self, rules: Rules, tool: Tool, key: str | None, document: Document, number: int) -> str:
        """The expression of one argument. Lists and objects are written as JSON, which the parser accepts too. The key
        None stands for any names, all of them in one wrapper."""
        name = key if key is not None else WRAPPERS[0]
        if _PLAIN_NAME.fullmatch(name) is None:
            return ""
        texts, others = rules.texts_and_others(tool, key, document, number)
        if key is None:
            texts, others = [], others or [number]
        if not texts and not others:
            return ""
        end = f"{self.prefix}</{name}>"
        misread = [rf"[ \t\r\n]*{lark.regex_quoted(CDATA)}(?s:.*)"]
        if rules.is_text(self.prefix):  # only once, at the end
            prefix = lark.regex_quoted(self.prefix)
            misread.append(f"(?s:.*){prefix}(?s:.*){prefix}(?s:.*)")
        text = rules.text(tool, document, texts, end, misread=misread)
        made = [text] if text else []
        made += [f"{document.expression(other)} {rules.literal(end)}" for other in others]
        return f"{rules.literal(f'{self.prefix}<{name}>')} {rules.one_of(made)}"


@dataclass(slots=True)
class _Element:
    """An element with its content so far."""

    name: str
    schema: Any  # None: it is not declared
    texts: list[str] = field(default_factory=list)
    children: list[_Element] = field(default_factory=list)


class _Reader:
    """The format with the marks of one tokenizer."""

    def __init__(self, form: ElementCalls, markers: Markers) -> None:
        self.begin, self.end = markers.encode(form.begin), markers.encode(form.end)
        self.call, call_end = markers.encode(form.call), markers.encode(form.call_end)
        self._prefix = markers.encode(form.prefix)
        self._name_ends = Finder([">"])
        self._call_ends = Finder([call_end, self.end, self.call])
        self._call_end = call_end

    def read(self, scanner: CallScanner, opener: str) -> Steps[bool]:
        first = opener if opener == self.call else None
        return read_section(scanner, first, self._take_opener, self._read_call, self.end)

    def _take_opener(self, scanner: CallScanner) -> Steps[str | None]:
        return scanner.take_any((self.call,))

    def _read_call(self, scanner: CallScanner, opener: str) -> Steps[bool]:
        """Read one call after its opener."""
        found = yield from scanner.until(self._name_ends, _MAX_NAME)
        if found is None:
            return False
        name = found[0].strip().strip("\"'")
        yield from scanner.blanks()
        if not name or any(c in '<>"{}' or c.isspace() for c in name) or not (yield from scanner.take(self._prefix)):
            return False
        scanner.at -= len(self._prefix)
        scanner.call(name)
        tool = scanner.tools.get(name)
        body = yield from scanner.until(self._call_ends)
        if body is None:  # the output was cut: use the incomplete body
            text, scanner.at = scanner.text[scanner.at :], len(scanner.text)
        else:
            text, mark = body
            scanner.at -= 0 if mark == self._call_end else len(mark)
        elements = self._elements(text, tool, is_cut=body is None)
        made = _object(elements, tool, scanner.markers)
        scanner.arguments(made if body is not None else made[:-1])
        return True

    def _elements(self, text: str, tool: Tool, is_cut: bool) -> list[_Element]:
        """Read the arguments. An argument without an end tag ends at the next argument, or at the end of the call."""
        schema = {"type": "object", "properties": tool.properties}
        wrapped = {name: schema for name in WRAPPERS if name not in tool.properties} if tool.properties else {}
        root = _Element("", {"type": "object", "properties": {**wrapped, **tool.properties}})
        stack = [root]
        for part in text.split(self._prefix)[1:]:
            tag = _TAG.match(part)
            if tag is None:
                stack[-1].texts.append(part)
                continue
            name = tag[2].strip()
            if not tag[1]:
                if len(stack) == 2 and name in tool.properties and not _is_container(tool, stack[1].schema):
                    del stack[1:]
                element = _Element(name, _inner(tool, stack[-1].schema, name))
                if len(stack) <= _MAX_DEPTH:
                    stack[-1].children.append(element)
                    stack.append(element)
                element.texts.append(part[tag.end() :])
                continue
            place = next((place for place in range(len(stack) - 1, 0, -1) if stack[place].name == name), None)
            if place is not None:
                del stack[place:]
            if len(stack) > 1:
                stack[-1].texts.append(part[tag.end() :])
        if is_cut and len(stack) > 1:  # incomplete nested elements are dropped
            root.children.pop()
        return root.children


def _inner(tool: Tool, schema: Any, name: str) -> Any:
    """The schema of an element inside another one; None if there is none."""
    for branch in _branches(tool, schema):
        properties = branch.get("properties")
        if isinstance(properties, dict) and name in properties:
            return properties[name]
        if isinstance(branch.get("items"), dict):
            return branch["items"]
        if isinstance(branch.get("additionalProperties"), dict):
            return branch["additionalProperties"]
    return None


def _branches(tool: Tool, schema: Any) -> list[dict[str, Any]]:
    schema = tool.resolve(schema)
    if not isinstance(schema, dict):
        return []
    found = [schema]
    for keyword in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(keyword)
        found += [tool.resolve(branch) for branch in branches] if isinstance(branches, list) else []
    return [branch for branch in found if isinstance(branch, dict)]


def _is_container(tool: Tool, schema: Any) -> bool:
    return schema is None or bool({"array", "object"} & set(tool.types_of(schema))) or not tool.types_of(schema)


def _value(element: _Element, tool: Tool, markers: Markers) -> str:
    """An element as JSON."""
    text = "".join(element.texts)
    types = None if element.schema is None else tool.types_of(element.schema)
    kind = next((name for name in types or () if name in ("array", "object")), None)
    if not element.children:
        cdata = _CDATA.fullmatch(text)
        text = markers.plain(cdata[1] if cdata else text)
        if kind is not None and "string" not in (types or ()) and not text.strip():
            return "[]" if kind == "array" else "{}"
        return typed(text, types)
    if kind == "array":
        return "[" + ", ".join([_value(child, tool, markers) for child in element.children]) + "]"
    return _object(element.children, tool, markers, text if text.strip() else None)


def _object(elements: list[_Element], tool: Tool, markers: Markers, text: str | None = None) -> str:
    """Elements as an object. Elements of the same name become a list. `text`: the text between them."""
    values: dict[str, list[str]] = {}
    for element in elements:
        values.setdefault(markers.plain(element.name), []).append(_value(element, tool, markers))
    if text is not None:
        values.setdefault("$text", []).append(json.dumps(markers.plain(text), ensure_ascii=False))
    pairs = [
        f"{json.dumps(name, ensure_ascii=False)}: {made[0] if len(made) == 1 else '[' + ', '.join(made) + ']'}"
        for name, made in values.items()
    ]
    return "{" + ", ".join(pairs) + "}"
