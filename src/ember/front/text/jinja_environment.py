"""The Jinja environment of chat templates: sandboxed, with the extensions that published templates use.

This module imports jinja2, so it is imported only when the first template is used.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, sandbox, utils


def chat_template_environment() -> jinja2.Environment:
    """A fresh environment.

    The sandbox forbids private attributes, changing lists and dicts in place, and ranges beyond 100,000; it does not
    bound time or memory, so templates that clients send must not be rendered unless the operator trusts them.
    """
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    del environment.globals["lipsum"]  # random text of any length
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class RaisedByTemplate(jinja2.TemplateError):
    """The template called raise_exception(message)."""


class _Generation(ext.Extension):
    """`{% generation %}...{% endgeneration %}`: marks the assistant's text for training. Here it is only a scope."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja declares a set and only reads it

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(utils.Namespace):
    """`namespace(...)` without private attributes. Jinja assigns only to instances of its own Namespace."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no name for self: any keyword may be an attribute
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_public(name)
        utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace attribute must not begin with an underscore: {name!r}")


class _Dict:
    """`dict(...)` as a function: the type itself would give a template its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as in training data: without ASCII escapes and HTML escapes (Jinja's own filter escapes <, >, &, ')."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise RaisedByTemplate(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
