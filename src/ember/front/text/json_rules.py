"""The nodes of a JSON schema as rules of a Lark grammar.

Whitespace is part of the punctuation beside it. Properties have the order of the schema. A node that no finite value
fits is left out where it is optional, and nodes that require it are left out too. So no output can begin a value that
it cannot complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ember.front.text.json_node_kinds import (
    Alternatives,
    Array,
    Leaf,
    Node,
    Object,
    OtherNames,
    String,
    Values,
    string_schema,
)
from ember.front.text.json_nodes import Nodes
from ember.front.text.lark import quoted

_CHARACTER = r'(?:[^"\\\x00-\x1f\x7f]|\\["\\bfnrt]|\\u00(?:[01][0-9A-Fa-f]|7[Ff]))'  # of a string
MAX_COUNTED = 20_000  # rules for the properties of one object whose number is bounded

Item = tuple[str, bool]  # an expression, and whether it is required


class Writer:
    """The rules of one grammar. `prefix` begins their names."""

    def __init__(self, add: Callable[[str], None], prefix: str, whitespace: str) -> None:
        self._add = add
        self._prefix = prefix
        self._shared: dict[str, str] = {}
        self._num_rules = 0
        self._buffer: list[str] = []
        space = f"(?:{whitespace})?" if whitespace else ""
        self._marks = {mark: f"/{space}{mark}{space}/" for mark in ",:"}
        self._marks |= {mark: f"/\\{mark}{space}/" for mark in "{["} | {mark: f"/{space}\\{mark}/" for mark in "}]"}

    def mark(self, mark: str) -> str:
        """A punctuation mark of JSON with optional whitespace beside it."""
        return self.terminal(self._marks[mark])

    def terminal(self, body: str) -> str:
        """The terminal for an expression. Equal expressions share one: two that match the same text would conflict."""
        if body not in self._shared:
            self._shared[body] = name = f"{self._prefix.upper()}_{len(self._shared)}"
            self._add(f"{name}: {body}")
        return self._shared[body]

    def nested(self, body: str) -> str:
        """A rule for a grammar within the grammar."""
        if body not in self._shared:
            self._shared[body] = name = self.name()
            self._add(f"{name}: {body}")
        return self._shared[body]

    def name(self) -> str:
        """Makes a new name for a rule."""
        self._num_rules += 1
        return f"{self._prefix}_{self._num_rules}"

    def define(self, name: str, body: str) -> None:
        """Collect a rule; `flush` writes all of them. Rules that are discarded may refer to rules that do not exist."""
        self._buffer.append(f"{name}: {body}")

    def flush(self) -> None:
        for line in self._buffer:
            self._add(line)
        self._buffer.clear()

    def discard(self) -> None:
        self._buffer.clear()


class Document:
    """Writes the nodes of one schema. Subclasses for other notations than JSON override some methods."""

    def __init__(self, writer: Writer, nodes: Nodes) -> None:
        self._writer = writer
        self._anything = nodes.anything
        self.root = nodes.root
        self.nodes = nodes.nodes
        self.possible = possible(nodes.nodes)
        self._written: dict[int, str] = {}
        self._todo: list[int] = []

    def expression(self, number: int) -> str:
        """An expression for one of the nodes. Raises ValueError if no value fits it."""
        if not self.possible[number]:
            raise ValueError("no value matches the schema, or it refers to itself without end")
        before = dict(self._written)
        try:
            made = self.reference(number)
            while self._todo:
                todo = self._todo.pop()
                self._writer.define(self._written[todo], self._body(self.nodes[todo]))
        except ValueError:
            self._written = before
            self._todo = []
            self._writer.discard()
            raise
        self._writer.flush()
        return made

    def is_anything(self, number: int) -> bool:
        """Whether every value fits the node."""
        return number == self._anything

    def leaves(self, number: int) -> list[int]:
        """The nodes that an alternative leads to and that are not alternatives themselves."""
        node = self.nodes[number]
        if not isinstance(node, Alternatives):
            return [number] if self.possible[number] else []
        return [leaf for inner in node.nodes for leaf in self.leaves(inner)]

    def add(self, node: Node) -> int:
        """Add a node that is an alternative of other possible nodes."""
        self.nodes.append(node)
        self.possible.append(True)
        return len(self.nodes) - 1

    def reference(self, number: int) -> str:
        """The rule of a node. It is written if it does not exist yet."""
        node = self.nodes[number]
        if isinstance(node, Leaf):
            return self._leaf(node)
        if isinstance(node, String):
            return self._string(node)
        if isinstance(node, Alternatives) and not self.is_anything(number):
            nodes = self._kept(node)
            if len(nodes) == 1:
                return self.reference(nodes[0])
        if number not in self._written:
            self._written[number] = self._writer.name()
            self._todo.append(number)
        return self._written[number]

    def rule(self, body: str) -> str:
        name = self._writer.name()
        self._writer.define(name, body)
        return name

    def _kept(self, node: Alternatives) -> list[int]:
        return [inner for inner in node.nodes if self.possible[inner]]

    def _body(self, node: Node) -> str:
        match node:
            case Alternatives():
                return " | ".join(dict.fromkeys(self.reference(number) for number in self._kept(node)))
            case Values():
                return self._values(node.values)
            case Array():
                return self._array(node)
            case Object():
                return self._object(node)
            case String():
                return self._string(node)
            case Leaf():
                return self._leaf(node)

    def _enclosed(self, opening: str, inside: str, closing: str) -> str:
        return f"{self.mark(opening)} {inside} {self.mark(closing)}"

    @property
    def comma(self) -> str:
        return self.mark(",")

    # -------------------------------------------------------------------------------- what notations may say otherwise

    def mark(self, mark: str) -> str:
        return self._writer.mark(mark)

    def key(self, name: str) -> str:
        """The name of a property and the punctuation before its value."""
        return f"{quoted(spelled(name))} {self.mark(':')}"

    def other_key(self, names: OtherNames) -> str:
        """The name of a property that is not listed, and the punctuation before its value."""
        return f"{self._writer.terminal(names.terminal)} {self.mark(':')}"

    def _leaf(self, node: Leaf) -> str:
        return self._writer.terminal(node.body) if node.is_terminal else self._writer.nested(node.body)

    def _string(self, node: String) -> str:
        if not node.rules:
            size = "*" if node.least == 0 and node.most is None else _size(node.least, node.most)
            return self._writer.terminal(f'/"{_CHARACTER}{size}"/')
        schema = string_schema(node.least, node.most, node.rules)
        return self._writer.nested(f"%json {json.dumps(schema, ensure_ascii=False)}")

    def _values(self, values: list[Any]) -> str:
        """An expression for listed values. Scalars are one lexeme, since the parser allows 2,000 alternatives at a
        time."""
        scalars = [value for value in values if not isinstance(value, dict | list)]
        parts = [self.literal(value) for value in values if isinstance(value, dict | list)]
        if scalars:
            parts.append(self._writer.terminal(" | ".join(quoted(spelled(value)) for value in scalars)))
        return " | ".join(parts)

    def literal(self, value: Any) -> str:
        """An expression for one value."""
        if isinstance(value, dict):
            pairs = [f"{self.key(name)} {self.literal(inner)}" for name, inner in value.items()]
            return self._enclosed("{", f" {self.comma} ".join(pairs), "}")
        if isinstance(value, list):
            return self._enclosed("[", f" {self.comma} ".join(self.literal(inner) for inner in value), "]")
        return quoted(spelled(value))

    # ------------------------------------------------------------------------------------------------------- arrays

    def _array(self, node: Array) -> str:
        prefix = node.prefix
        most = node.most
        for i, number in enumerate(prefix):
            if not self.possible[number]:
                prefix, most = prefix[:i], i
                break
        if not self.possible[node.rest]:
            most = len(prefix) if most is None else min(most, len(prefix))
        inside = ""
        num_rest = None if most is None else most - len(prefix)
        if num_rest != 0 and len(prefix) == len(node.prefix):
            inside = self.rest(self.reference(node.rest), max(node.least - len(prefix), 0), num_rest, bool(prefix))
        for i in reversed(range(len(prefix) if most is None else min(len(prefix), most))):
            item = f"{self.comma if i else ''} {self.reference(prefix[i])} {inside}"
            inside = item if i < node.least else f"({item})?"
        return self._enclosed("[", inside, "]")

    def rest(self, item: str, least: int, most: int | None, is_behind: bool) -> str:
        """An expression for `least` to `most` items. `is_behind`: a comma is before the first one."""
        more = f"{self.comma} {item}"
        if is_behind:
            return _times(more, least, most)
        made = f"{item} {_times(more, max(least - 1, 0), None if most is None else most - 1)}"
        return made if least else f"({made})?"

    # ------------------------------------------------------------------------------------------------------ objects

    def _object(self, node: Object) -> str:
        items = [
            (f"{self.key(name)} {self.reference(number)}", is_required)
            for name, number, is_required in node.items
            if self.possible[number]
        ]
        free = [
            f"{self.other_key(names)} {self.reference(number)}" for names, number in node.free if self.possible[number]
        ]
        pair = "" if not free else self.rule(" | ".join(free))
        num_required = sum(is_required for _, is_required in items)
        is_bounded = node.least > num_required or (node.most is not None and (bool(pair) or node.most < len(items)))
        inside = _Counted(self, items, pair, node).body() if is_bounded else self.uncounted(items, pair)
        return self._enclosed("{", inside, "}")

    def uncounted(self, items: list[Item], pair: str) -> str:
        first = next((i for i, (_, is_required) in enumerate(items) if is_required), len(items))
        behind = f"({self.comma} {pair})*" if pair else ""
        for item, is_required in reversed(items[first + 1 :]):
            behind = f"{self.comma} {item} {behind}" if is_required else f"({self.comma} {item})? {behind}"
        if first < len(items):
            alone = f"{items[first][0]} {behind}"
            behind = f"{self.comma} {alone}"
        else:
            alone = f"({pair} {behind})?" if pair else ""
        for item, _ in reversed(items[:first]):
            rest = self.rule(behind or '""')
            alone = self.rule(f"{item} {rest} | {alone or chr(34) * 2}")
            behind = f"({self.comma} {item})? {rest}"
        return alone


class _Counted:
    """The content of an object whose properties are counted: a rule for each item and number of items before it."""

    def __init__(self, document: Document, items: list[Item], pair: str, node: Object) -> None:
        self._document = document
        self._items = items
        self._pair = pair
        self._least, self._most = node.least, node.most
        self._cap = max(node.least, 1 if node.most is None else node.most)  # higher counts are equivalent
        self._rules: dict[tuple[int, int], str | None] = {}

    def body(self) -> str:
        """The expression. Raises ValueError if the bounds cannot be enforced."""
        if len(self._items) * self._cap > MAX_COUNTED:
            raise ValueError("`minProperties` and `maxProperties` are too large for this number of properties")
        for i in reversed(range(len(self._items) + 1)):
            for count in range(min(i, self._cap) + 1):
                self._rules[i, count] = self._from(i, count)
        made = self._rules[0, 0]
        if made is None:
            raise ValueError("no value has as many properties as `minProperties` and `maxProperties` demand")
        return made

    def _from(self, i: int, count: int) -> str | None:
        """An expression for the items from i on, after `count` others; None if nothing is possible."""
        if i == len(self._items):
            return self._end(count)
        item, is_required = self._items[i]
        choices = []
        if self._most is None or count < self._most:
            rest = self._rules[i + 1, min(count + 1, self._cap)]
            if rest is not None:
                choices.append(f"{self._document.comma if count else ''} {item} {rest}")
        if not is_required:
            without = self._rules[i + 1, count]
            if without is not None:
                choices.append(without)
        return self._document.rule(" | ".join(choices)) if choices else None

    def _end(self, count: int) -> str | None:
        missing = max(self._least - count, 0)
        left = None if self._most is None else self._most - count
        if missing > 1 or (missing and not self._pair) or (left is not None and left < missing):
            return None  # a repeated free name is one property
        if not self._pair or left == 0:
            return '""'
        return self._document.rule(self._document.rest(self._pair, missing, left, count > 0))


def _times(expression: str, least: int, most: int | None) -> str:
    if most == 0:
        return ""
    if most is None and least < 2:
        return f"({expression}){'+' if least else '*'}"
    return f"({expression}){_size(least, most)}"


def _size(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def spelled(value: Any) -> str:
    """A value as JSON."""
    return json.dumps(value, ensure_ascii=False)


def possible(nodes: list[Node]) -> list[bool]:
    """Which nodes a finite value fits."""
    found = [isinstance(node, Leaf | String) or (isinstance(node, Values) and bool(node.values)) for node in nodes]
    users: dict[int, list[int]] = {}
    for number, node in enumerate(nodes):
        for inner in _parts(node):
            users.setdefault(inner, []).append(number)
    pending = list(range(len(nodes)))
    while pending:
        number = pending.pop()
        if not found[number] and _is_possible(nodes[number], found):
            found[number] = True
            pending += users.get(number, [])
        elif found[number] and isinstance(nodes[number], Leaf | String | Values):
            pending += [user for user in users.pop(number, []) if not found[user]]
    return found


def _parts(node: Node) -> list[int]:
    match node:
        case Alternatives(inner):
            return inner
        case Array():
            return [*node.prefix, node.rest]
        case Object():
            return [*(number for _, number, _ in node.items), *(number for _, number in node.free)]
    return []


def _is_possible(node: Node, found: list[bool]) -> bool:
    match node:
        case Alternatives(inner):
            return any(found[number] for number in inner)
        case Array():
            needed = node.prefix[: node.least] + ([node.rest] if node.least > len(node.prefix) else [])
            return all(found[number] for number in needed)
        case Object():
            if not all(found[number] for _, number, is_required in node.items if is_required):
                return False
            num_listed = sum(found[number] for _, number, _ in node.items)
            num_required = sum(is_required for _, _, is_required in node.items)
            num_free = int(any(found[number] for _, number in node.free))
            most = len(node.items) + 1 if node.most is None else node.most
            return num_required <= most and node.least <= min(num_listed + num_free, most)
    return False
