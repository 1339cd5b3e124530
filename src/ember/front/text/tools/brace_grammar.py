"""The grammar of arguments in a notation like JSON with bare keys and other quotes, by their schema."""

from __future__ import annotations

from typing import Any

from ember.front.text.json_node_kinds import OtherNames, String
from ember.front.text.json_nodes import Nodes
from ember.front.text.json_rules import Document, spelled
from ember.front.text.json_schema import ANY_OBJECT
from ember.front.text.tools.grammar import Rules
from ember.front.text.tools.schema import Tool


def object_rule(rules: Rules, tool: Tool, quote: str) -> str:
    """All arguments of a call, with their braces. Raises ValueError for a schema that cannot be enforced."""

    def held() -> str:
        document = _Braces(rules, tool, rules.nodes(tool), quote)
        return document.expression(document.root)

    def anything() -> str:
        document = _Braces(rules, tool, Nodes(ANY_OBJECT, rules.keywords(tool)), quote)
        return document.expression(document.root)

    return rules.or_anything(tool, held, anything)


class _Braces(Document):
    """Writes values without whitespace between the parts. Strings have the model's own quotes and no escapes."""

    def __init__(self, rules: Rules, tool: Tool, nodes: Nodes, quote: str) -> None:
        super().__init__(rules.json_writer, nodes)
        self._rules = rules
        self._tool = tool
        self._quote = quote

    def mark(self, mark: str) -> str:
        return self._rules.quoted(mark)

    def key(self, name: str) -> str:
        if any(mark in name for mark in "\"'{}[]:,") or self._quote in name:
            raise ValueError(f"the name {name[:64]!r} cannot be written in this model's form of calls")
        return self._rules.quoted(f"{name}:")

    def other_key(self, names: OtherNames) -> str:
        if names.conditions:
            keywords = self._rules.keywords(self._tool)
            keywords.refuse("patternProperties", "and `propertyNames` cannot be enforced in this model's form of calls")
        taken = " | ".join(self._rules.quoted(name) for name in names.taken)
        bare = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"
        return f'{self._rules.terminal(f"{bare} & ~({taken})" if taken else bare)} ":"'

    def _string(self, node: String) -> str:
        text = self._rules.plain_string(self._tool, node, self._quote, [self._quote])
        return f"{self._rules.literal(self._quote)} {text}"

    def _values(self, values: list[Any]) -> str:
        return " | ".join(self.literal(value) for value in values)

    def literal(self, value: Any) -> str:
        if isinstance(value, str):
            return self._rules.literal(f"{self._quote}{value}{self._quote}")
        return super().literal(value) if isinstance(value, dict | list) else self._rules.quoted(spelled(value))
