"""Whether the branches of a `oneOf` exclude each other, so that it means what `anyOf` means.

The engine's grammar compiler sees that in simple cases alone, and not where schemas refer to themselves: a tagged union
of recursive types, which is what data classes with a discriminator become, is among those that it does not see.
"""

from __future__ import annotations

import json
from typing import Any

MAX_BRANCHES = 64
MAX_REFERENCES = 16  # followed from one to the next
_TYPES = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null", list: "array"}


class Exclusion:
    """Looks at the schemas of one document; `root` is the whole of it."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def resolve(self, schema: Any) -> Any:
        """The schema that `$ref`s of this document lead to; itself where there is none, or where it cannot be told."""
        for _ in range(MAX_REFERENCES):
            reference = schema.get("$ref") if isinstance(schema, dict) else None
            if not isinstance(reference, str):
                return schema
            target = lookup(self._root, reference)
            if target is None:
                return schema
            schema = target
        return schema

    def excludes(self, branches: list[Any], discriminator: str | None) -> bool:
        """Whether no value fits two of the branches. `discriminator` counts as a required property of each."""
        if len(branches) > MAX_BRANCHES:
            return False
        resolved = [self.resolve(branch) for branch in branches]
        return all(
            self._are_disjoint(first, second, discriminator)
            for i, first in enumerate(resolved)
            for second in resolved[:i]
        )

    def values_of(self, schema: Any, name: str) -> set[str] | None:
        """The values, as JSON, that an object's property may have; None where they are not listed."""
        schema = self.resolve(schema)
        properties = schema.get("properties") if isinstance(schema, dict) else None
        return self._values(properties.get(name)) if isinstance(properties, dict) else None

    def _are_disjoint(self, first: Any, second: Any, discriminator: str | None) -> bool:
        common = self._types(first) & self._types(second)
        if not common:
            return True
        values, others = self._values(first), self._values(second)
        if values is not None and others is not None:
            return not values & others
        if common != {"object"}:
            return False
        names = {*_required(first), *_required(second)}
        for name in names if discriminator is None else {*names, discriminator}:
            values, others = self.values_of(first, name), self.values_of(second, name)
            if values is not None and others is not None and not values & others:
                return True
        return False

    def _types(self, schema: Any) -> set[str]:
        """Of the values that fit, at most these. An integer is a number."""
        everything = {*_TYPES.values(), "object"}
        schema = self.resolve(schema)
        if not isinstance(schema, dict):
            return everything if schema is not False else set()
        given = schema.get("type")
        given = [given] if isinstance(given, str) else _texts(given) or everything
        names = {"number" if name == "integer" else name for name in given}
        listed = _listed(schema)
        return names if listed is None else names & {_type_of(value) for value in listed}

    def _values(self, schema: Any) -> set[str] | None:
        schema = self.resolve(schema)
        listed = _listed(schema) if isinstance(schema, dict) else None
        return None if listed is None else {json.dumps(_canonical(value), sort_keys=True) for value in listed}


def lookup(root: Any, reference: str) -> Any:
    """What a `#/...` reference names; None where there is nothing, or where it leads out of the document."""
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        return None
    here = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict):
            here = here.get(key)
        elif isinstance(here, list) and key.isdecimal() and int(key) < len(here):
            here = here[int(key)]
        else:
            return None
    return here


def _listed(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _required(schema: Any) -> list[str]:
    return _texts(schema.get("required")) if isinstance(schema, dict) else []


def _texts(value: Any) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def _canonical(value: Any) -> Any:
    """1.0 and 1 are the same number."""
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _type_of(value: Any) -> str:
    return _TYPES.get(type(value), "object")
