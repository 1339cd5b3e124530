"""Clients' JSON schemas as rules of the engine's grammars.

Every allowed prefix can be completed, and every complete value is valid. Annotations and keywords that demand nothing
have no effect. Formats that the specification does not define are annotations. A keyword that cannot be enforced is an
error that names it, or is left out if the schema need not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ember.front.text.json_keywords import Keywords
from ember.front.text.json_nodes import Nodes
from ember.front.text.json_rules import Document, Writer
from ember.front.text.pace import Pace

MAX_DEPTH = 64
MAX_SIZE = 256 * 1024  # characters of the rules of one schema
# One blank, or one line break with its indentation. With more, models tend to generate endless blank lines.
DEFAULT_WHITESPACE = r" ?|\r?\n[ \t]{0,24}"
ANY_OBJECT = {"type": "object"}


class JsonRules:
    """The rules of the JSON values in one grammar.

    `add` is called with each line. The names of the rules begin with `prefix`. `whitespace` is a regular expression for
    the text between the parts of a value, "" for none. `closed` forbids additional properties by default.
    """

    def __init__(
        self,
        add: Callable[[str], None],
        *,
        prefix: str = "json",
        whitespace: str = DEFAULT_WHITESPACE,
        closed: bool = False,
    ) -> None:
        self.writer = Writer(add, prefix, whitespace)
        self._closed = closed

    def value(self, schema: Any) -> str:
        """An expression for the values that fit a schema. Raises ValueError that names what cannot be enforced."""
        return self.read(schema, Keywords(lenient=False, closed=self._closed))

    def read(self, schema: Any, keywords: Keywords, *, within: Any = None) -> str:
        """An expression for a schema in the document `within`. `keywords` decides how strictly it is read."""
        if schema is False:
            raise ValueError("the schema `false` allows nothing")
        if not isinstance(schema, dict | bool):
            raise ValueError(f"a schema is an object, not {type(schema).__name__}")
        check_depth(schema)
        document = Document(self.writer, Nodes(schema, keywords, within))
        return document.expression(document.root)


def schema_grammar(
    schema: Any, *, whitespace: str = DEFAULT_WHITESPACE, closed: bool = False, prefix: str = "s"
) -> str:
    """The Lark grammar of one schema. Raises ValueError that names what cannot be enforced."""
    lines: list[str] = []
    size = 0
    pace = Pace()

    def add(line: str) -> None:
        nonlocal size
        pace.keep()
        size += len(line)
        if size > MAX_SIZE:
            raise ValueError(f"the schema is too large: written out as rules it has more than {MAX_SIZE} characters")
        lines.append(line)

    start = JsonRules(add, prefix=prefix, whitespace=whitespace, closed=closed).value(schema)
    return "\n".join([f"start: {start}", *lines]) + "\n"


def check_depth(schema: Any) -> None:
    """Raise ValueError if a schema is nested too deeply."""
    level: list[Any] = [schema] if isinstance(schema, dict | list) else []
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"the schema is nested more than {MAX_DEPTH} levels deep")
        inner: list[Any] = []
        for value in level:
            inner += value.values() if isinstance(value, dict) else value
        level = [value for value in inner if isinstance(value, dict | list)]
