"""Whether the branches of a `oneOf` exclude each other, so that it is equivalent to `anyOf`.

The engine's grammar compiler detects this in simple cases only, and not for recursive schemas. A tagged union of
recursive types, the schema of data classes with a discriminator, is one that it does not detect.
"""

from __future__ import annotations

from typing import Any

from ember.front.text.json_fits import canonical
from ember.front.text.json_reference import References

MAX_BRANCHES = 64
MAX_VALUES = 10_000  # of one list; longer ones are not compared
MAX_NAMES = 64  # required properties of one branch that are compared
_TYPES = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null", list: "array"}
_EVERYTHING = frozenset({*_TYPES.values(), "object"})


class Exclusion:
    """Compares the schemas of one document. `root` is the document, which must not change. Results are cached, since
    each schema is compared with many others."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._references = References(root)
        self._values_by_id: dict[int, frozenset[str] | None] = {}
        self._types_by_id: dict[int, frozenset[str]] = {}
        self._apart: dict[tuple[int, int], bool] = {}  # whether two sets of values are disjoint

    def excludes(self, branches: list[Any], discriminator: str | None) -> bool:
        """Whether no value fits two of the branches. `discriminator` counts as a required property of all of them."""
        if len(branches) > MAX_BRANCHES:
            return False
        extra = () if discriminator is None else (discriminator,)
        resolved = [self._resolve(branch) for branch in branches]
        names = [(*_required(branch), *extra) for branch in resolved]
        return all(
            self._are_disjoint(resolved[i], resolved[j], (*names[i], *names[j]))
            for i in range(len(resolved))
            for j in range(i)
        )

    def values_of(self, schema: Any, name: str) -> frozenset[str] | None:
        """The values, as JSON, that an object's property may have; None if the schema does not list them."""
        schema = self._resolve(schema)
        properties = schema.get("properties") if isinstance(schema, dict) else None
        return self._values(properties.get(name)) if isinstance(properties, dict) else None

    def _resolve(self, schema: Any) -> Any:
        return self._references.resolve(schema)

    def _are_disjoint(self, first: Any, second: Any, names: tuple[str, ...]) -> bool:
        common = self._types(first) & self._types(second)
        if not common or self._are_apart(self._values(first), self._values(second)):
            return True
        if common != {"object"} or (self._values(first) is not None and self._values(second) is not None):
            return False
        return any(self._are_apart(self.values_of(first, name), self.values_of(second, name)) for name in names)

    def _are_apart(self, first: frozenset[str] | None, second: frozenset[str] | None) -> bool:
        """Whether both sets are known and disjoint."""
        if first is None or second is None:
            return False
        key = (id(first), id(second))
        if key not in self._apart:
            self._apart[key] = first.isdisjoint(second)
        return self._apart[key]

    def _types(self, schema: Any) -> frozenset[str]:
        """A superset of the types of values that fit. An integer is a number."""
        schema = self._resolve(schema)
        if not isinstance(schema, dict):
            return _EVERYTHING if schema is not False else frozenset()
        if id(schema) not in self._types_by_id:
            given = schema.get("type")
            given = [given] if isinstance(given, str) else _texts(given) or _EVERYTHING
            names = frozenset("number" if name == "integer" else name for name in given)
            listed = _listed(schema)
            self._types_by_id[id(schema)] = names if listed is None else names & {_type_of(value) for value in listed}
        return self._types_by_id[id(schema)]

    def _values(self, schema: Any) -> frozenset[str] | None:
        schema = self._resolve(schema)
        if not isinstance(schema, dict):
            return None
        if id(schema) not in self._values_by_id:
            listed = _listed(schema)
            self._values_by_id[id(schema)] = (
                None if listed is None or len(listed) > MAX_VALUES else frozenset(map(canonical, listed))
            )
        return self._values_by_id[id(schema)]


def _listed(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _required(schema: Any) -> list[str]:
    required = schema.get("required") if isinstance(schema, dict) else None
    return _texts(required[:MAX_NAMES]) if isinstance(required, list) else []


def _texts(value: Any) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def _type_of(value: Any) -> str:
    return _TYPES.get(type(value), "object")
