"""Grammars that enforce the calls of a model's own format, with arguments by their schemas.

A format describes its calls as an opening mark and an expression for the text after it. This module adds the text
before the mark: nothing if a call is required, free text otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ember.front.text import lark
from ember.front.text.json_fits import type_of
from ember.front.text.json_keywords import Keywords
from ember.front.text.json_node_kinds import Object, String, Values
from ember.front.text.json_nodes import Nodes
from ember.front.text.json_rules import Document, Writer
from ember.front.text.json_schema import ANY_OBJECT, JsonRules, check_depth
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools.schema import Tool, is_text

_LOG = logging.getLogger(__name__)
_ANY = "/(?s:.*)/"
_MAX_RULES, _MAX_SIZE = 20_000, 240 * 1024  # rules, and bytes, of one grammar; the engine's limit is 256 kB
_MAX_LENGTH = 4096  # characters of strings in plain text
_MAX_TOLD = 1024  # tools whose unenforced keywords were logged


# Writes one argument: its name, None for any name, and the node of its values; returns "" if it cannot.
Pair = Callable[["Rules", Tool, str | None, Document, int], str]


class Form(Protocol):
    """A format's part of its grammar."""

    def rules(self, tools: list[Tool], rules: Rules, parallel: bool) -> tuple[str, str]:
        """The mark that opens the calls ("" if there is none), and an expression for the text after it: at least one
        call, and more if calls may be parallel."""
        ...


def calls_grammar(form: Form, tools: list[Tool], tokenizer: Tokenizer, *, at_least_one: bool, parallel: bool) -> str:
    """The Lark grammar. Raises ValueError for invalid schemas, and if there is no tool."""
    if not tools:
        raise ValueError("there is no tool to call")
    try:
        return _grammar(form, tools, Rules(tokenizer, enforce_all=at_least_one), at_least_one, parallel)
    except _TooLargeError:
        if not at_least_one or all(tool.is_strict for tool in tools):
            raise
        _LOG.warning("the schemas of %d tools are too large together: those not strict are not enforced", len(tools))
        return _grammar(form, tools, Rules(tokenizer, enforce_all=False), at_least_one, parallel)


def _grammar(form: Form, tools: list[Tool], rules: Rules, at_least_one: bool, parallel: bool) -> str:
    opening, calls = form.rules(tools, rules, parallel)
    if at_least_one:
        start = f"{rules.literal(opening)} {calls}"
    else:
        start = rules.text_before(opening, calls, [tool.name for tool in tools])
    rules.tell()
    return "\n".join([f"start: {start}", *rules.lines]) + "\n"


class _TooLargeError(ValueError):
    """The grammar has too many rules."""


_told: set[tuple[str, str]] = set()  # tools, and their logged keywords


class Rules:
    """Collects the rules of one grammar. Most methods return an expression for use in a rule."""

    def __init__(self, tokenizer: Tokenizer, enforce_all: bool) -> None:
        self._tokenizer = tokenizer
        self._enforce_all = enforce_all
        self._texts: dict[str, str] = {}
        self._keywords: dict[str, Keywords] = {}
        self._documents: dict[str, Document] = {}
        self.lines: list[str] = []
        self._size = 0
        self._json = JsonRules(self.add)

    def add(self, line: str) -> None:
        """Add a rule. Raises ValueError if there are too many, since shared parts of schemas are written repeatedly."""
        self._size += len(line.encode()) + 1
        if len(self.lines) == _MAX_RULES or self._size > _MAX_SIZE:
            raise _TooLargeError("the grammar of the tools' schemas is too large")
        self.lines.append(line)

    @property
    def json_writer(self) -> Writer:
        return self._json.writer

    def literal(self, text: str) -> str:
        return lark.literal(text, self._tokenizer)

    def is_text(self, text: str) -> bool:
        """Whether a mark contains no special token."""
        return not any(isinstance(part, int) for part in lark.parts(text, self._tokenizer))

    def has_token(self, text: str) -> bool:
        return isinstance(lark.parts(text, self._tokenizer)[0], int)

    def own_of(self, marks: Sequence[str]) -> str:
        """The first of a mark's spellings that contains special tokens, else the first spelling."""
        own = (mark for mark in marks if any(isinstance(part, int) for part in lark.parts(mark, self._tokenizer)))
        return next(own, marks[0])

    def quoted(self, text: str) -> str:
        return lark.quoted(text)

    def one_of(self, alternatives: Sequence[str]) -> str:
        return self.rule(" | ".join(alternatives))

    def many(self, one: str, separator: str, parallel: bool) -> str:
        return f"{one} ({separator} {one})*" if parallel else one

    def rule(self, body: str) -> str:
        name = f"r_{len(self.lines)}"
        self.add(f"{name}: {body}")
        return name

    def terminal(self, body: str) -> str:
        """The terminal for an expression. Equal expressions share one: two that match the same text would conflict."""
        if body not in self._texts:
            self._texts[body] = name = f"T_{len(self.lines)}"
            self.add(f"{name}: {body}")
        return self._texts[body]

    def is_enforced(self, tool: Tool) -> bool:
        return self._enforce_all or tool.is_strict

    def keywords(self, tool: Tool) -> Keywords:
        """Read the tool's schema: strictly if it is `strict`, otherwise without keywords that cannot be enforced."""
        if tool.name not in self._keywords:
            self._keywords[tool.name] = Keywords(lenient=not tool.is_strict, closed=False)
        return self._keywords[tool.name]

    def or_anything(self, tool: Tool, held: Callable[[], str], anything: Callable[[], str]) -> str:
        """The result of `held`; or the other one, if the tool's schema need not hold and cannot be enforced. Raises
        ValueError."""
        if not self.is_enforced(tool):
            return anything()
        try:
            return held()
        except _TooLargeError:
            raise
        except ValueError as error:
            if tool.is_strict:
                place = f"in the schema of {tool.name[:64]!r}: "
                raise ValueError(f"{'' if place in str(error) else place}{error}") from None
            self.keywords(tool).dropped.add(f"the whole schema ({error})")
            return anything()

    def tell(self) -> None:
        """Log one line for each tool whose schema is not completely enforced."""
        for name, keywords in self._keywords.items():
            what = ", ".join(sorted(keywords.dropped))
            if what and (name, what) not in _told and len(_told) < _MAX_TOLD:
                _told.add((name, what))
                _LOG.warning("tool %r is not strict: calls are not held to %s of its schema", name[:64], what[:400])

    def arguments(self, tool: Tool) -> str:
        """All arguments of a call, as one JSON object."""
        return self.or_anything(
            tool,
            lambda: (document := self.document(tool)).expression(document.root),
            lambda: self._json.value(ANY_OBJECT),
        )

    def document(self, tool: Tool) -> Document:
        """The schema of the tool's arguments as nodes. Raises ValueError."""
        if tool.name not in self._documents:
            self._documents[tool.name] = Document(self._json.writer, self.nodes(tool))
        return self._documents[tool.name]

    def nodes(self, tool: Tool) -> Nodes:
        """Raises ValueError."""
        schema = self._schema(tool)
        check_depth(schema)
        return Nodes(schema, self.keywords(tool), tool.parameters)

    def _schema(self, tool: Tool) -> dict[str, Any]:
        """The schema of the arguments object. By default it forbids undeclared arguments."""
        parameters = tool.parameters
        if not isinstance(parameters, dict):
            raise ValueError("it is no schema")
        if "object" not in self.keywords(tool).types(parameters):
            raise ValueError("it must be of the type object")
        schema = {**parameters, "type": "object"}
        if schema.get("properties") is not None and not any(
            key in schema for key in ("allOf", "anyOf", "oneOf", "$ref")
        ):
            schema.setdefault("additionalProperties", False)
        return schema

    def header(self, written: str, name: str, index: str, behind: str) -> str:
        """A header with the name and the number of the call: a text, or a regular expression."""
        before, has_index, rest = written.replace("{name}", name).partition("{index}")
        if not has_index:
            return self.literal(before + behind)
        number = self.terminal(index) if index.startswith("/") else self.quoted(index)
        return f"{self.literal(before)} {number} {self.literal(rest + behind)}"

    def text_before(self, opening: str, calls: str, names: Sequence[str]) -> str:
        """Any text, with optional calls after it; if calls have no opening mark, calls or text that is not a call."""
        if not opening:
            # The first character distinguishes text from calls; a later call would not be held to its schema.
            heads = "|".join(lark.regex_quoted(name) for name in names)
            quiet = self.terminal(rf"""/[^\s\[{{](?s:.*)/ & ~/(?s:.*)[\["]({heads})["(](?s:.*)/""")
            return f"{calls} | {quiet}?"
        cut = lark.parts(opening, self._tokenizer)
        if isinstance(cut[0], int):
            text = self.terminal(_ANY)
            return f"{text} | {text} {self.literal(opening)} {calls}"
        quiet = self.terminal(f"{_ANY} & ~/(?s:.*)({lark.regex_quoted(cut[0])})(?s:.*)/")
        behind = "".join(f" {part if isinstance(part, str) else lark.token(part)}" for part in cut[1:])
        return f"{quiet} | {self.until(cut[0])}{behind} {calls}"

    def until(self, end: str) -> str:
        """Any text up to and including the first `end`."""
        cut = lark.parts(end, self._tokenizer)
        if isinstance(cut[0], int):
            return f"{self.terminal(_ANY)} {self.literal(end)}"
        key = f"until {cut[0]}"
        if key not in self._texts:
            self._texts[key] = name = f"text_{len(self.lines)}"
            self.add(f"{name}[lazy]: {_ANY} {lark.quoted(cut[0])}")
        return lark.sequence(
            [self._texts[key], *(lark.token(part) if isinstance(part, int) else lark.quoted(part) for part in cut[1:])]
        )

    # ------------------------------------------------------------------------- arguments one by one, as plain text

    def pairs(self, tool: Tool, pair: Pair, separator: str = "") -> str:
        """All arguments of a call: the declared ones in order, with the optional ones left out or not. `pair` writes
        one argument."""

        def anything() -> str:
            document = Document(self._json.writer, Nodes(True, self.keywords(tool)))
            return self._free_pairs(pair(self, tool, None, document, document.root), separator)

        def held() -> str:
            document = self.document(tool)
            nodes = [document.nodes[number] for number in document.leaves(document.root)]
            objects = [node for node in nodes if isinstance(node, Object)]
            made = [self._pairs_of(tool, document, node, pair, separator) for node in objects]
            if len(made) < len(nodes) or not made:
                raise ValueError("no call fits it, or it lists whole calls")
            return self.one_of(made)

        return self.or_anything(tool, held, anything)

    def _free_pairs(self, pair: str, separator: str) -> str:
        one = self.rule(pair)
        return f"({one} ({self.literal(separator)} {one})*)?" if separator else f"{one}*"

    def _pairs_of(self, tool: Tool, document: Document, node: Object, pair: Pair, separator: str) -> str:
        items: list[tuple[str, bool]] = []
        for name, number, is_required in node.items:
            made = pair(self, tool, name, document, number) if document.possible[number] else ""
            if made:
                items.append((self.rule(made), is_required))
            elif is_required:
                raise ValueError(f"the argument {name[:64]!r} cannot be written in this model's form of calls")
        num_required = sum(is_required for _, is_required in items)
        keywords = self.keywords(tool)
        if node.least > num_required:
            keywords.refuse("minProperties", "cannot be enforced in this model's form of calls")
        if node.most is not None and node.most < max(len(items), 1):
            keywords.refuse("maxProperties", "cannot be enforced in this model's form of calls")
        if not items and node.free and node.most is None:
            names, number = node.free[0]
            if len(node.free) > 1 or names.conditions or names.taken:
                keywords.refuse("patternProperties", "cannot be enforced in this model's form of calls")
            elif document.possible[number] and (made := pair(self, tool, None, document, number)):
                return self._free_pairs(made, separator)
        if not separator:
            return lark.sequence([rule if is_required else f"{rule}?" for rule, is_required in items])
        return self.separated(items, self.literal(separator))

    def separated(self, items: list[tuple[str, bool]], separator: str) -> str:
        """The items in order, with separators; items that are not required may be left out."""
        behind = '""'  # the following items, after an item
        alone = '""'  # the following items, if no item was before
        for item, is_required in reversed(items):
            rest = behind
            behind = self.rule(f"{separator} {item} {rest}" + ("" if is_required else f" | {rest}"))
            alone = self.rule(f"{item} {rest}" + ("" if is_required else f" | {alone}"))
        return alone

    def name(self) -> str:
        """The name of an argument that is not in the schema."""
        return self.terminal("/[A-Za-z_][A-Za-z0-9_]{0,63}/")

    def texts_and_others(
        self, tool: Tool, key: str | None, document: Document, number: int
    ) -> tuple[list[int], list[int]]:
        """The nodes of an argument's strings, which are written as plain text, and of its other values, written as
        JSON. The parser distinguishes them by the types that the argument may have."""
        types = tool.types(key) if key is not None else ()
        texts: list[int] = []
        others: list[int] = []
        for leaf in document.leaves(number):
            node = document.nodes[leaf]
            if isinstance(node, String):
                texts.append(leaf)
            elif isinstance(node, Values):
                for values in _by_kind(node.values):
                    (texts if isinstance(values[0], str) else others).append(document.add(Values(values)))
            else:
                others.append(leaf)
        if document.is_anything(number) or is_text(types):
            return texts, []
        if types and "string" not in types:
            return [], others
        return ([], others) if not types and others else (texts, others)

    def text(
        self,
        tool: Tool,
        document: Document,
        texts: list[int],
        end: str,
        early: Sequence[str] = (),
        misread: Sequence[str] = (),
    ) -> str:
        """Strings in plain text with their end; "" if there are none. `early`: texts that a parser would also take for
        the end. `misread`: regular expressions of strings that it would read as another type."""
        made: list[str] = []
        for number in texts:
            node = document.nodes[number]
            if isinstance(node, Values):
                made += [self.literal(value + end) for value in node.values]
            elif isinstance(node, String):
                made.append(self.plain_string(tool, node, end, early, misread))
        return self.one_of(made) if made else ""

    def plain_string(
        self, tool: Tool, node: String, end: str, early: Sequence[str], misread: Sequence[str] = ()
    ) -> str:
        """A string in plain text with its end. Raises ValueError."""
        keywords = self.keywords(tool)
        bounds = "*"
        if max(node.least, node.most or 0) > _MAX_LENGTH:
            keywords.refuse("maxLength", f"is at most {_MAX_LENGTH} in this model's form of calls")
        elif node.least or node.most is not None:
            bounds = f"{{{node.least},{'' if node.most is None else node.most}}}"
        cut = lark.parts(end, self._tokenizer)
        lead = cut[0] if cut and isinstance(cut[0], str) else ""
        behind = cut[1:] if lead else cut
        tail = lark.regex_quoted(lead)
        body = f"/(?s:.{bounds}){tail}/"
        for found in keywords.text_patterns(node.rules):
            body += f" & /(?:{lark.in_slashes(found)}){tail}/"
        for text in early:
            body += self._without(text, lead)
        for expression in misread:
            body += f" & ~/{expression}/"
        if behind:
            return lark.sequence([self.terminal(body), *(self._exactly(part) for part in behind)])
        key = f"lazy {body}"
        if key not in self._texts:
            name = self.terminal(body)
            self._texts[key] = f"text_{len(self.lines)}"
            self.add(f"{self._texts[key]}[lazy]: {name}")
        return self._texts[key]

    def _exactly(self, part: str | int) -> str:
        return lark.quoted(part) if isinstance(part, str) else lark.token(part)

    def _without(self, text: str, lead: str) -> str:
        """The condition that a string with its end has the text only at its end."""
        if any(isinstance(part, int) for part in lark.parts(text, self._tokenizer)):
            return ""  # a token is never part of the text
        quoted = lark.regex_quoted(text)
        if not lead.endswith(text):
            return f" & ~/(?s:.*){quoted}(?s:.*)/"
        made = f" & ~/(?s:.*){quoted}(?s:.+)/"
        if len(lead) > len(text):
            made += f" & ~/((?s:.*)[^{lark.regex_quoted(lead[-len(text) - 1])}])?{quoted}/"
        return made


def _by_kind(values: list[Any]) -> list[list[Any]]:
    """The values grouped by their types."""
    kinds: dict[str, list[Any]] = {}
    for value in values:
        kinds.setdefault(type_of(value).replace("integer", "number"), []).append(value)
    return list(kinds.values())
