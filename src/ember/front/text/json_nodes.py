"""A JSON schema as a graph of nodes: for each place in a value, the alternatives that are allowed there.

A place has to satisfy several schemas at once: that of its property, those of the patterns that its name matches, and
those of `allOf` and `$ref`. A node is therefore made from a set of schemas. The set is divided into branches without
`anyOf`, `oneOf`, `allOf` and `$ref`, and each branch into the types that it allows. A set that was seen before has its
node already, so recursive schemas end.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from ember.front.text import regular_language
from ember.front.text.json_fits import Fits, canonical
from ember.front.text.json_keywords import PLAIN, TYPES, Keywords
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
from ember.front.text.json_numbers import number_terminal, tighter_high, tighter_low
from ember.front.text.json_one_of import Exclusion
from ember.front.text.json_reference import References
from ember.front.text.lark import in_slashes
from ember.front.text.portable_regex import searched

MAX_NODES = 20_000
MAX_BRANCHES = 4096  # of one place
_TOO_MANY = "the schema has too many alternatives in one place"
MAX_PATTERNS = 6  # of the names in one object: each combination of them is a case of its own
MAX_LISTED_NAMES = 64  # of names that a pattern has, where they must be told apart


Branch = list[dict[str, Any]]  # schemas that all hold, without those keywords that lead to other schemas


class Nodes:
    """The nodes of one document, by number."""

    def __init__(self, schema: Any, keywords: Keywords, document: Any = None) -> None:
        """`document` is what references in the schema are looked up in, where that is not the schema itself."""
        root = schema if document is None else document
        self.nodes: list[Node] = []
        self._keywords = keywords
        self._references = References(root)
        self._exclusion = Exclusion(root)
        self._fits = Fits(self._references, keywords)
        self._places: dict[tuple[int, ...], int] = {}
        self._branches_done: dict[tuple[int, ...], list[int]] = {}
        self._pending: list[tuple[int, tuple[Any, ...]]] = []
        self._tags: dict[str, dict[str, Any]] = {}  # the schemas that require a discriminator
        self.root = self.place((schema,))
        while self._pending:
            keywords.pace.keep()
            number, schemas = self._pending.pop()
            self._fill(number, schemas)

    def place(self, schemas: Sequence[Any]) -> int:
        """The node of what has to satisfy all of these schemas."""
        for schema in schemas:
            if not isinstance(schema, dict | bool):
                self._keywords.refuse("schema", f"is an object or a boolean, got {repr(schema)[:64]}")
        if any(schema is False for schema in schemas):
            return self._add(Alternatives())
        held = list({id(schema): schema for schema in schemas if isinstance(schema, dict) and schema}.values())
        key = tuple(id(schema) for schema in held)
        if key not in self._places:
            self._places[key] = self._add(Alternatives())
            self._pending.append((self._places[key], tuple(held)))
        return self._places[key]

    @property
    def anything(self) -> int | None:
        """The node that every value fits, if there is one."""
        return self._places.get(())

    def _add(self, node: Node) -> int:
        if len(self.nodes) >= MAX_NODES:
            raise ValueError("the schema is too large: its parts come together in too many ways")
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _fill(self, number: int, schemas: tuple[Any, ...]) -> None:
        node = self.nodes[number]
        assert isinstance(node, Alternatives)
        for branch in self._branches(schemas):
            key = tuple(id(schema) for schema in branch)
            if key not in self._branches_done:
                self._branches_done[key] = [self._add(made) for made in self._typed(branch)]
            node.nodes += [inner for inner in self._branches_done[key] if inner not in node.nodes]

    # ----------------------------------------------------------------------------------------------------- branches

    def _branches(self, schemas: Sequence[Any]) -> list[Branch]:
        done: list[Branch] = []
        known: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        pending: list[tuple[list[tuple[Any, bool]], Branch, frozenset[int]]] = [
            ([(schema, False) for schema in schemas], [], frozenset())
        ]
        while pending:
            if len(done) + len(pending) > MAX_BRANCHES:
                raise ValueError(_TOO_MANY)
            todo, branch, seen = pending.pop()
            key = (tuple(2 * id(entry) + is_plain for entry, is_plain in todo), tuple(id(entry) for entry in branch))
            if key in known:
                continue
            known.add(key)
            if not todo:
                done.append(branch)
                continue
            (schema, is_plain), *rest = todo
            if schema is False:
                continue
            if not isinstance(schema, dict) or not schema or (id(schema) in seen and not is_plain):
                pending.append((rest, branch, seen))
            elif is_plain:
                pending.append((rest, [*branch, schema], seen))
            else:
                cases = self._cases(schema)
                seen |= {id(schema)}
                pending += [([*case, *rest], branch, seen) for case in reversed(cases)]
        return done

    def _cases(self, schema: dict[str, Any]) -> list[list[tuple[Any, bool]]]:
        """The sets of schemas of which a value must satisfy one: every combination of choices of the keywords that lead
        to other schemas, with the schema itself as a plain one (True). The latter has the position of `properties`
        among the keywords, since properties keep the order of the text."""
        self._keywords.check(schema)
        parts: list[list[list[tuple[Any, bool]]]] = []  # each part has choices, each choice schemas
        plain: list[list[tuple[Any, bool]]] = [[(schema, True)]]
        for keyword, value in schema.items():
            if keyword == "properties":
                parts.append(plain)
            elif keyword == "$ref":
                parts.append([[(target, False)] for target in self._referred(schema, value)])
            elif keyword == "allOf":
                parts.append([[(inner, False) for inner in self._keywords.list_of(schema, keyword) or []]])
            elif keyword in ("anyOf", "oneOf"):
                choices = self._keywords.list_of(schema, keyword)
                if choices is None:
                    continue
                tag = self._tag(schema, choices) if keyword == "oneOf" else None
                parts.append([[(choice, False), *([] if tag is None else [(tag, False)])] for choice in choices])
        if "properties" not in schema and not PLAIN.isdisjoint(schema):
            parts.append(plain)
        if math.prod(map(len, parts)) > MAX_BRANCHES:
            raise ValueError(_TOO_MANY)
        return [[entry for part in case for entry in part] for case in itertools.product(*parts)]

    def _referred(self, schema: dict[str, Any], reference: Any) -> list[Any]:
        target = self._references.lookup(reference, schema) if isinstance(reference, str) else None
        if target is None:
            self._keywords.refuse("$ref", f"{repr(reference)[:128]} is not in the schema")
            return [True]
        return [target]

    def _tag(self, schema: dict[str, Any], choices: list[Any]) -> dict[str, Any] | None:
        """Check that the branches of a `oneOf` exclude each other, so that it is equivalent to `anyOf`. Returns a
        schema that requires the discriminator, if there is one: without it the branches could not be distinguished."""
        tag = schema.get("discriminator")
        tag = tag.get("propertyName") if isinstance(tag, dict) else None
        if not isinstance(tag, str) or any(self._exclusion.values_of(choice, tag) is None for choice in choices):
            tag = None
        if not self._exclusion.excludes(choices, tag):
            self._keywords.refuse(
                "oneOf",
                "cannot be enforced: its branches must exclude each other; use `anyOf`, or a property that each branch "
                "requires with a `const` of its own",
            )
        return None if tag is None else self._tags.setdefault(tag, {"required": [tag]})

    # -------------------------------------------------------------------------------------------------------- types

    def _typed(self, branch: Branch) -> list[Node]:
        """A node for each type of value that fits."""
        keywords = self._keywords
        types = set(TYPES)
        for schema in branch:
            own = set(keywords.types(schema))
            types &= own | {"integer"} if "number" in own else own
        lists = [values for schema in branch if (values := keywords.listed(schema)) is not None]
        if lists:
            values = [value for value in lists[0] if all(self._fits(value, schema) for schema in branch)]
            values = list({canonical(value): value for value in reversed(values)}.values())[::-1]
            return [Values(values)] if values else []
        made: list[Node | None] = []
        if "null" in types:
            made.append(Leaf('"null"', True))
        if "boolean" in types:
            made.append(Leaf("/true|false/", True))
        if types & {"integer", "number"}:
            made.append(self._number(branch, is_integer="number" not in types))
        if "string" in types:
            made.append(self._string(branch))
        if "array" in types:
            made.append(self._array(branch))
        if "object" in types:
            made.append(self._object(branch))
        return [node for node in made if node is not None]

    def _number(self, branch: Branch, is_integer: bool) -> Leaf | None:
        low = high = None
        multiples: list[Decimal] = []
        for schema in branch:
            own_low, own_high = self._keywords.bounds(schema)
            low, high = tighter_low(low, own_low), tighter_high(high, own_high)
            step = self._keywords.multiple_of(schema)
            multiples += [] if step is None else [step]

        def body() -> str | None:
            made = number_terminal(low, high, multiples, is_integer=is_integer)
            if made is not None and made.startswith("%json"):
                self._keywords.check_time()
                regular_language.is_empty_schema(json.loads(made.removeprefix("%json ")))
            return made

        keyword = "multipleOf" if multiples else "minimum"
        fallback = r"/-?[0-9]{1,19}/" if is_integer else None
        made = self._keywords.checked(keyword, body, fallback)
        return None if made is None else Leaf(made, not made.startswith("%json"))

    def _string(self, branch: Branch) -> String | None:
        least, most = self._sizes(branch, "minLength", "maxLength")
        if most is not None and least > most:
            return None
        rules = [rule for schema in branch for rule in self._keywords.string_rules(schema)]
        if rules:
            keyword = next(iter(rules[0]))
            schema = string_schema(least, most, rules)
            self._keywords.check_time()
            if self._keywords.checked(keyword, lambda: regular_language.is_empty_schema(schema), False):
                return None
        return String(least, most, rules)

    def _array(self, branch: Branch) -> Array | None:
        least, most = self._sizes(branch, "minItems", "maxItems")
        if most is not None and least > most:
            return None
        items = [self._keywords.items(schema) for schema in branch]
        num_first = max(len(prefix) for prefix, _ in items) if items else 0
        first = [
            self.place([prefix[i] if i < len(prefix) else rest for prefix, rest in items])
            for i in range(num_first if most is None else min(num_first, most))
        ]
        return Array(first, self.place([rest for _, rest in items]), least, most)

    def _sizes(self, branch: Branch, least: str, most: str) -> tuple[int, int | None]:
        lows = [self._keywords.size(schema, least) or 0 for schema in branch]
        highs = [size for schema in branch if (size := self._keywords.size(schema, most)) is not None]
        return max(lows, default=0), min(highs, default=None)

    # ------------------------------------------------------------------------------------------------------ objects

    def _object(self, branch: Branch) -> Object | None:
        keywords = self._keywords
        least, most = self._sizes(branch, "minProperties", "maxProperties")
        required = list(dict.fromkeys(name for schema in branch for name in keywords.required(schema)))
        names = dict.fromkeys(name for schema in branch for name in keywords.schemas(schema, "properties"))
        names.update(dict.fromkeys(required))
        rules = [schema["propertyNames"] for schema in branch if "propertyNames" in schema]
        allowed, conditions = self._name_rules(rules)
        patterns = self._patterns(branch)
        if allowed is not None:
            names.update(dict.fromkeys(allowed))
        items = []
        for name in names:
            if not all(self._fits(name, rule) for rule in rules):
                if name in required:
                    return None
                continue
            found = {key for key, body in patterns.items() if regular_language.matches(f"/{body}/", name)}
            items.append((name, self.place(self._of_name(branch, name, found)), name in required))
        free = [] if allowed is not None else self._free(branch, patterns, conditions, list(names))
        if least - len(required) > 1 and free:
            items, free = self._told_apart(items, free, least)
            least = min(least, len(items) + 1) if free else least
        return Object(items, free, least, most)

    def _of_name(self, branch: Branch, name: str | None, found: set[str]) -> list[Any]:
        """The schemas of one property. `found`: the patterns that its name matches."""
        made: list[Any] = []
        for schema in branch:
            properties = self._keywords.schemas(schema, "properties")
            own = [properties[name]] if name is not None and name in properties else []
            own += [rule for key, rule in self._keywords.schemas(schema, "patternProperties").items() if key in found]
            made += own or [self._keywords.additional(schema)]
        return made

    def _patterns(self, branch: Branch) -> dict[str, str]:
        """The patterns of names, and what a terminal finds in them."""
        found: dict[str, str] = {}
        for schema in branch:
            for pattern in self._keywords.schemas(schema, "patternProperties"):
                body = self._searched(pattern, "patternProperties")
                if body is not None:
                    found[pattern] = body
        if len(found) > MAX_PATTERNS:
            self._keywords.refuse("patternProperties", f"has more than {MAX_PATTERNS} patterns for one object")
            return {}
        return found

    def _searched(self, pattern: Any, keyword: str) -> str | None:
        def read() -> str | None:
            made = self._keywords.pattern(pattern, keyword)
            return None if made is None else in_slashes(searched(made))

        return self._keywords.checked(keyword, read, None)

    def _free(
        self, branch: Branch, patterns: dict[str, str], conditions: list[str], taken: list[str]
    ) -> list[tuple[OtherNames, int]]:
        """The names that are not listed, in disjoint sets by the patterns that they match."""
        made: list[tuple[OtherNames, int]] = []
        for number in range(2 ** len(patterns)):
            found = {key for i, key in enumerate(patterns) if number >> i & 1}
            schemas = self._of_name(branch, None, found)
            if any(schema is False for schema in schemas):
                continue
            matched = [f'{"" if key in found else "~"}/"(?:{body})"/' for key, body in patterns.items()]
            names = OtherNames(tuple(taken), (*conditions, *matched))
            if names.conditions:
                self._keywords.check_time()
                keyword = "patternProperties" if patterns else "propertyNames"
                if self._keywords.checked(keyword, partial(regular_language.is_empty, names.terminal), True):
                    continue
            made.append((names, self.place(schemas)))
        return made

    def _name_rules(self, rules: list[Any]) -> tuple[list[str] | None, list[str]]:
        """Reads the rules of `propertyNames`: the names that they list, and what terminals must match."""
        listed: list[str] | None = None
        conditions: list[str] = []
        for rule in rules:
            branches = self._branches([rule])
            if not branches:
                return [], []
            if len(branches) > 1:
                values = [
                    value for branch in branches for schema in branch for value in self._keywords.listed(schema) or []
                ]
                if not all(any(self._keywords.listed(schema) is not None for schema in branch) for branch in branches):
                    self._keywords.refuse("propertyNames", "cannot be enforced with alternatives")
                    continue
                listed = values if listed is None else listed
                continue
            for schema in branches[0]:
                if "string" not in self._keywords.types(schema):
                    return [], []
                values_here = self._keywords.listed(schema)
                if values_here is not None:
                    listed = values_here if listed is None else listed
                    continue
                least, most = self._sizes([schema], "minLength", "maxLength")
                if least or most is not None:
                    conditions.append(f'/"(?s:.{{{least},{"" if most is None else most}}})"/')
                for string_rule in self._keywords.string_rules(schema):
                    if "format" in string_rule:
                        self._keywords.refuse("propertyNames", "cannot be enforced with this format")
                    elif (body := in_slashes(searched(string_rule["pattern"]))) is not None:
                        conditions.append(f'/"(?:{body})"/')
        names = None if listed is None else [name for name in listed if isinstance(name, str)]
        return names, conditions

    def _told_apart(
        self, items: list[tuple[str, int, bool]], free: list[tuple[OtherNames, int]], least: int
    ) -> tuple[list[tuple[str, int, bool]], list[tuple[OtherNames, int]]]:
        """List the free names as properties where they are few. Several properties are demanded then, and a repeated
        name is the same property, so free names could not be counted."""
        few: list[tuple[str, int, bool]] = []
        for other, node in free:
            names = regular_language.members(other.terminal, MAX_LISTED_NAMES - len(few))
            if names is None:
                if len(items) < least - 1:
                    self._keywords.refuse(
                        "minProperties",
                        "cannot be enforced above 1 for names that are free, as a model may write the same name again",
                    )
                return items, free
            few += [(json.loads(name), node, False) for name in names]
        return [*items, *few], []
