"""Resolution of references within one JSON document: `#/$defs/x`, `#anchor`, `$id`, and chains of them.

Some generators write the names of generic types unescaped (`#/definitions/Page<User>`), others escape them as the
specification demands (`#/definitions/Page%3CUser%3E`). Both are resolved.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urljoin

MAX_REFERENCES = 16  # in one chain
_INDEX = re.compile("0|[1-9][0-9]{0,8}")  # RFC 6901, and no longer than a list can be
_DATA = ("enum", "const", "default", "example", "examples")  # keywords whose values are not schemas
_MISSING = object()


class References:
    """Resolves the references of one document, which must not change while this object is used."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._root_uri = ""
        self._by_uri: dict[str, Any] | None = None  # of `$id` and `$anchor`
        self._resource_of: dict[int, tuple[Any, str]] = {}  # of a schema in another resource than the root: it, its URI

    def resolve(self, schema: Any) -> Any:
        """The schema at the end of a chain of `$ref`s; the schema itself if it has none or it cannot be resolved."""
        for _ in range(MAX_REFERENCES):
            reference = schema.get("$ref") if isinstance(schema, dict) else None
            if not isinstance(reference, str):
                return schema
            target = self.lookup(reference, schema)
            if target is None:
                return schema
            schema = target
        return schema

    def lookup(self, reference: str, schema: Any) -> Any:
        """The target of a reference in `schema`; None if it does not exist."""
        if reference in ("#", "#/", ""):
            return self._resource(schema)[0]
        if reference.startswith("#/"):
            found = _pointed(self._resource(schema)[0], reference[1:])
            return _or_none(_pointed(self._root, reference[1:]) if found is _MISSING else found)
        named = self._named()
        base = self._resource(schema)[1]
        for uri in (urljoin(base, reference), reference, base.partition("#")[0] + reference):
            if uri in named:
                return named[uri]
            document, _, fragment = uri.partition("#")
            if fragment.startswith("/") and document in named:
                return _or_none(_pointed(named[document], fragment))
        return None

    def _resource(self, schema: Any) -> tuple[Any, str]:
        """The innermost schema with an `$id` around this one, and its URI."""
        self._named()
        return self._resource_of.get(id(schema), (self._root, self._root_uri))

    def _named(self) -> dict[str, Any]:
        if self._by_uri is None:
            self._by_uri = {}
            self._root_uri = _identifier(self._root)
            pending: list[tuple[Any, Any, str]] = [(self._root, self._root, self._root_uri)]
            while pending:
                here, resource, base = pending.pop()
                if isinstance(here, list):
                    pending += [(entry, resource, base) for entry in here if isinstance(entry, dict | list)]
                    continue
                own = _identifier(here)
                if own and not own.startswith("#"):
                    resource, base = here, urljoin(base, own)
                    self._by_uri.setdefault(base.removesuffix("#"), here)
                    self._by_uri.setdefault(own, here)
                elif own:
                    self._by_uri.setdefault(base + own, here)
                if isinstance(here.get("$anchor"), str):
                    self._by_uri.setdefault(f"{base}#{here['$anchor']}", here)
                if resource is not self._root:
                    self._resource_of[id(here)] = (resource, base)
                pending += [
                    (value, resource, base)
                    for key, value in here.items()
                    if key not in _DATA and isinstance(value, dict | list)
                ]
        return self._by_uri


def _identifier(schema: Any) -> str:
    found = schema.get("$id") if isinstance(schema, dict) else None
    return found if isinstance(found, str) else ""


def _or_none(found: Any) -> Any:
    return None if found is _MISSING else found


def _pointed(root: Any, pointer: str) -> Any:
    """The target of a JSON pointer, with percent escapes decoded as in RFC 6901, decoded per name, or not decoded."""
    readings = [pointer.split("/")[1:]]
    if "%" in pointer:
        readings = [unquote(pointer).split("/")[1:], [unquote(part) for part in readings[0]], *readings]
    for parts in readings:
        here = root
        for part in parts:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(here, dict):
                here = here.get(key, _MISSING)
            elif isinstance(here, list) and _INDEX.fullmatch(key) and int(key) < len(here):
                here = here[int(key)]
            else:
                here = _MISSING
            if here is _MISSING:
                break
        if here is not _MISSING:
            return here
    return _MISSING
