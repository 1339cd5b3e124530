"""The grammar of arguments in a notation like JSON's with bare keys, by schema."""

from __future__ import annotations

import json
from typing import Any

from ember.front.text.json_schema import schema_text
from ember.front.text.tools.grammar import Rules, variants
from ember.front.text.tools.schema import Tool

_TYPES = ("string", "number", "boolean", "null", "array", "object")
_MAX_ITEMS = 1024
# What only other tools than a grammar of this notation could enforce.
_UNKNOWN = ("not", "if", "uniqueItems", "contains", "patternProperties", "propertyNames", "dependentRequired")


def object_rule(rules: Rules, tool: Tool, quote: str) -> str:
    """All arguments of a call, with their braces. Raises ValueError for a schema that cannot be enforced."""
    writer = _Writer(rules, tool, quote)
    if not rules.is_enforced(tool):
        return writer.anything("object")
    return rules.one_of([writer.object(variant) for variant in variants(tool)])


class _Writer:
    """The rules of one tool's arguments."""

    def __init__(self, rules: Rules, tool: Tool, quote: str) -> None:
        self._rules = rules
        self._tool = tool
        self._quote = quote
        self._named: dict[str, str] = {}  # by reference
        self._depth = 0

    def anything(self, kind: str = "value") -> str:
        """Any value, or any object."""
        if "value" not in self._named:
            rules = self._rules
            text = f"{rules.literal(self._quote)} {rules.until(self._quote)}"
            number = len(rules.lines)
            value, named = f"any_{number}", f"any_object_{number}"
            self._named.update(value=value, object=named)
            pair = f'{rules.name()} ":" {value}'
            rules.add(f'{named}: "{{" ({pair} ("," {pair})*)? "}}"')
            scalar = '%json {"type":["number","boolean","null"]}'
            rules.add(f'{value}: {text} | {scalar} | {named} | "[" ({value} ("," {value})*)? "]"')
        return self._named[kind]

    def value(self, schema: Any) -> str:
        """An expression for the values that fit."""
        if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
            return self._reference(schema)
        if schema is True or schema == {} or not isinstance(schema, dict):
            return self.anything()
        unknown = next((key for key in _UNKNOWN if schema.get(key) not in (None, False, {})), None)
        if unknown is not None:
            place = f"in the parameters of {self._tool.name[:64]!r}"
            raise ValueError(f"`{unknown}` {place} cannot be enforced in this model's form of calls")
        if "const" in schema or isinstance(schema.get("enum"), list):
            values = [schema["const"]] if "const" in schema else schema["enum"]
            return self._rules.one_of([self._rules.literal(self._written(value)) for value in values])
        self._depth += 1
        if self._depth > 64:
            raise ValueError("the schema is nested too deeply")
        made = self._rules.one_of(self._alternatives(schema))
        self._depth -= 1
        return made

    def object(self, schema: dict[str, Any]) -> str:
        rules = self._rules
        properties = schema.get("properties")
        required = [key for key in schema.get("required") or () if isinstance(key, str)]
        every = {**(properties or {}), **{key: {} for key in required if key not in (properties or {})}}
        if not every:
            extra = schema.get("additionalProperties", properties is None)
            if extra is False:
                return rules.quoted("{}")
            pair = f'{rules.name()} ":" {self.value(extra)}'
            return rules.rule(f'"{{" ({pair} ("," {pair})*)? "}}"')
        pairs = [
            (rules.rule(f"{rules.quoted(key + ':')} {self.value(inner)}"), key in required)
            for key, inner in every.items()
        ]
        return f'"{{" {rules.separated(pairs, rules.quoted(","))} "}}"'

    def _reference(self, schema: dict[str, Any]) -> str:
        """By a name of its own, as it may lead back to itself."""
        reference = schema["$ref"]
        if reference not in self._named:
            target = self._tool.resolve(schema)
            if target is schema:
                raise ValueError(f"{reference[:64]!r} is not in the schema")
            self._named[reference] = name = f"ref_{len(self._rules.lines)}_{len(self._named)}"
            self._rules.add(f"{name}: {self.value(target)}")
        return self._named[reference]

    def _alternatives(self, schema: dict[str, Any]) -> list[str]:
        for keyword in ("anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list) and schema[keyword]:
                return [self.value(branch) for branch in schema[keyword]]
        if isinstance(schema.get("allOf"), list):
            merged = {key: value for key, value in schema.items() if key != "allOf"}
            for branch in schema["allOf"]:
                merged.update(self._tool.resolve(branch))
            return [self.value(merged)]
        return [self._typed(name, schema) for name in self._tool.types_of(schema) or _TYPES]

    def _typed(self, name: str, schema: dict[str, Any]) -> str:
        rules = self._rules
        if name == "string":
            text = rules.text_value(self._tool, {**schema, "type": "string"}, self._quote, [self._quote])
            return f"{rules.literal(self._quote)} {text}"
        if name == "object":
            return self.object(schema)
        if name == "array":
            return self._array(schema)
        return f"%json {schema_text({**schema, 'type': name}, owner=self._tool.name)}"

    def _array(self, schema: dict[str, Any]) -> str:
        if isinstance(schema.get("items"), list) or "prefixItems" in schema:
            place = f"in the parameters of {self._tool.name[:64]!r}"
            raise ValueError(f"`prefixItems` {place} cannot be enforced in this model's form of calls")
        item = self.value(schema.get("items", {}))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if type(least) is not int or not (most is None or type(most) is int) or max(least, most or 0) > _MAX_ITEMS:
            raise ValueError(f"minItems and maxItems are whole numbers up to {_MAX_ITEMS}")
        if most == 0:
            return '"[]"'
        rest = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        full = f"{item} {rest}"
        return f'"[" {full} "]"' if least > 0 else f'"[" ({full})? "]"'

    def _written(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._quote}{value}{self._quote}"
        if isinstance(value, dict):
            return "{" + ",".join(f"{key}:{self._written(inner)}" for key, inner in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(self._written(inner) for inner in value) + "]"
        return json.dumps(value)
