"""Grammars that hold a model to the calls of its own format, with arguments by schema.

A format describes its calls as an opening mark and an expression for what follows; what stands before is decided here:
nothing where a call is demanded, text that the model is free in where it is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ember.front.text import lark
from ember.front.text.json_schema import schema_text
from ember.front.text.portable_regex import portable
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.tools.schema import Tool, is_text

_ANY = "/(?s:.*)/"
_MAX_ROUNDS = 256  # of writing out the alternatives at the head of a schema
_MAX_DEPTH = 64  # of alternatives within alternatives
_MAX_RULES, _MAX_SIZE = 20_000, 8 << 20  # of one grammar; its size in characters
_MAX_LENGTH = 4096  # longer bounds of strings in plain text are left to the model


class Form(Protocol):
    """What a format says of its grammar."""

    def rules(self, tools: list[Tool], rules: Rules, parallel: bool) -> tuple[str, str]:
        """The mark that opens the calls, "" where there is none, and an expression for what follows it: at least one
        call, and more where they may be parallel."""
        ...


def calls_grammar(form: Form, tools: list[Tool], tokenizer: Tokenizer, *, at_least_one: bool, parallel: bool) -> str:
    """The Lark grammar. Raises ValueError for schemas that are none, and where there is no tool."""
    if not tools:
        raise ValueError("there is no tool to call")
    rules = Rules(tokenizer, enforce_all=at_least_one)
    opening, calls = form.rules(tools, rules, parallel)
    if at_least_one:
        start = f"{rules.literal(opening)} {calls}"
    else:
        start = rules.text_before(opening, calls, [tool.name for tool in tools])
    return "\n".join([f"start: {start}", *rules.lines]) + "\n"


class Rules:
    """Collects the rules of one grammar; most methods return an expression that may stand in one."""

    def __init__(self, tokenizer: Tokenizer, enforce_all: bool) -> None:
        self._tokenizer = tokenizer
        self._enforce_all = enforce_all
        self._texts: dict[str, str] = {}
        self.lines: list[str] = []
        self._size = 0

    def add(self, line: str) -> None:
        """Raises ValueError where there are too many: schemas that share their parts are written out."""
        self._size += len(line)
        if len(self.lines) == _MAX_RULES or self._size > _MAX_SIZE:
            raise ValueError("the grammar of the tools' schemas is too large")
        self.lines.append(line)

    def literal(self, text: str) -> str:
        return lark.literal(text, self._tokenizer)

    def has_token(self, text: str) -> bool:
        return isinstance(lark.parts(text, self._tokenizer)[0], int)

    def is_text(self, text: str) -> bool:
        """Whether no token of the tokenizer's own is in it."""
        return not any(isinstance(part, int) for part in lark.parts(text, self._tokenizer))

    def own_of(self, marks: Sequence[str]) -> str:
        """The first of a mark's spellings that the tokenizer has tokens of, else the first of all."""
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
        """Equal ones are one: two that match the same text would be at odds."""
        if body not in self._texts:
            self._texts[body] = name = f"T_{len(self.lines)}"
            self.add(f"{name}: {body}")
        return self._texts[body]

    def is_enforced(self, tool: Tool) -> bool:
        return self._enforce_all or tool.is_strict

    def schema(self, tool: Tool) -> dict[str, Any]:
        """The schema of the arguments object. Nothing undeclared, where the schema says nothing of it."""
        parameters = tool.parameters if self.is_enforced(tool) else {"type": "object"}
        if not isinstance(parameters, dict):
            raise ValueError(f"the parameters of {tool.name[:64]!r} are no schema")
        if parameters.get("type", "object") != "object":
            raise ValueError(f"the parameters of {tool.name[:64]!r} must be of the type object")
        schema = {**parameters, "type": "object"}
        if schema.get("properties") is not None and not any(
            key in schema for key in ("allOf", "anyOf", "oneOf", "$ref")
        ):
            schema.setdefault("additionalProperties", False)
        return schema

    def arguments(self, tool: Tool) -> str:
        """All arguments of a call, as one JSON object."""
        return self.rule(f"%json {schema_text(self.schema(tool), owner=tool.name)}")

    def header(self, written: str, name: str, index: str, behind: str) -> str:
        """A header with the name in it, and its number: a text, or a regular expression."""
        before, has_index, rest = written.replace("{name}", name).partition("{index}")
        if not has_index:
            return self.literal(before + behind)
        number = self.terminal(index) if index.startswith("/") else self.quoted(index)
        return f"{self.literal(before)} {number} {self.literal(rest + behind)}"

    def text_before(self, opening: str, calls: str, names: Sequence[str]) -> str:
        """Any text, and perhaps calls behind it; where nothing opens them, calls or text unlike one."""
        if not opening:
            # The first character tells text from calls; a call further on would not be held to its schema.
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
        """Any text up to and with the first `end`."""
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

    def pairs(self, tool: Tool, pair: Callable[[Rules, Tool, str | None, Any], str], separator: str = "") -> str:
        """All arguments of a call, one after the other: the declared ones in their order, the optional ones or not."""
        if not self.is_enforced(tool):
            return (
                f"{self.rule(pair(self, tool, None, {}))}*" if not separator else self._free_list(tool, pair, separator)
            )
        made = [self._pairs_of(tool, variant, pair, separator) for variant in variants(tool)]
        return self.one_of(made)

    def _free_list(self, tool: Tool, pair: Callable[[Rules, Tool, str | None, Any], str], separator: str) -> str:
        one = self.rule(pair(self, tool, None, {}))
        return f"({one} ({self.literal(separator)} {one})*)?"

    def _pairs_of(
        self, tool: Tool, schema: dict[str, Any], pair: Callable[[Rules, Tool, str | None, Any], str], separator: str
    ) -> str:
        properties = schema.get("properties") or {}
        required = [key for key in schema.get("required") or () if isinstance(key, str)]
        missing: dict[str, Any] = {key: {} for key in required if key not in properties}
        every = {**properties, **missing}
        rules = {key: self.rule(pair(self, tool, key, inner)) for key, inner in every.items()}
        if not every and schema.get("additionalProperties") is not False and schema.get("properties") is None:
            return self._free_list(tool, pair, separator) if separator else f"{self.rule(pair(self, tool, None, {}))}*"
        if not separator:
            return lark.sequence([rule if key in required else f"{rule}?" for key, rule in rules.items()])
        return self.separated([(rule, key in required) for key, rule in rules.items()], self.literal(separator))

    def separated(self, items: list[tuple[str, bool]], separator: str) -> str:
        """The items in their order, separated; those that are not required may be left out."""
        behind = '""'  # what may follow when something has come before
        alone = '""'  # the same when nothing has
        for item, is_required in reversed(items):
            rest = behind
            behind = self.rule(f"{separator} {item} {rest}" + ("" if is_required else f" | {rest}"))
            alone = self.rule(f"{item} {rest}" + ("" if is_required else f" | {alone}"))
        return alone

    def name(self) -> str:
        """The name of an argument that the schema does not have."""
        return self.terminal("/[A-Za-z_][A-Za-z0-9_]{0,63}/")

    def text_value(
        self, tool: Tool, schema: Any, end: str, early: Sequence[str] = (), misread: Sequence[str] = ()
    ) -> str:
        """A string in plain text and the end behind it; "" where the schema allows no string. `early` are texts that
        a parser would take for the end, too; `misread` are regular expressions of what it would read otherwise."""
        return self._text_value(tool, schema, end, (tuple(early), tuple(misread)), set(), 0)

    def _text_value(
        self,
        tool: Tool,
        schema: Any,
        end: str,
        barred: tuple[tuple[str, ...], tuple[str, ...]],
        seen: set[int],
        depth: int,
    ) -> str:
        """`seen` are the alternatives that were written already."""
        schema = tool.resolve(schema)
        types = tool.types_of(schema)
        if (types and "string" not in types) or schema is False or id(schema) in seen:
            return ""
        _check_depth(depth)
        seen.add(id(schema))
        if not isinstance(schema, dict):
            schema = {}
        for keyword in ("anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list):
                made = [self._text_value(tool, branch, end, barred, seen, depth + 1) for branch in schema[keyword]]
                made = [branch for branch in dict.fromkeys(made) if branch]
                return self.rule(" | ".join(made)) if made else ""
        if "const" in schema or isinstance(schema.get("enum"), list):
            values = [schema["const"]] if "const" in schema else schema["enum"]
            texts = [self.literal(value + end) for value in values if isinstance(value, str)]
            return self.rule(" | ".join(texts)) if texts else ""
        if not types and not self._is_free(schema):
            return ""  # untyped, with demands on other types: all of it as JSON
        bounds, pattern = _bounds(schema), schema.get("pattern")
        cut = lark.parts(end, self._tokenizer)
        lead = cut[0] if cut and isinstance(cut[0], str) else ""
        behind = cut[1:] if lead else cut
        tail = lark.regex_quoted(lead)
        body = f"/(?s:.{bounds or '*'}){tail}/"
        if isinstance(pattern, str):
            body += f" & /{_searched(pattern)}{tail}/"
        early, misread = barred
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
        """That a string with its end does not hold the text but at its end."""
        if any(isinstance(part, int) for part in lark.parts(text, self._tokenizer)):
            return ""  # no text is a token
        quoted = lark.regex_quoted(text)
        if not lead.endswith(text):
            return f" & ~/(?s:.*){quoted}(?s:.*)/"
        made = f" & ~/(?s:.*){quoted}(?s:.+)/"
        if len(lead) > len(text):
            made += f" & ~/((?s:.*)[^{lark.regex_quoted(lead[-len(text) - 1])}])?{quoted}/"
        return made

    def _is_free(self, schema: dict[str, Any]) -> bool:
        return not any(key in schema for key in ("properties", "items", "minimum", "maximum", "allOf", "not", "if"))

    def plain_value(self, tool: Tool, schema: Any) -> str:
        """Anything but a string, as JSON; "" where the schema allows strings alone, or where all text is allowed."""
        types = tool.types_of(schema)
        if not types:
            resolved = tool.resolve(schema)
            is_free = not isinstance(resolved, dict) or self._is_free(resolved)
            return "" if is_free else self._json(tool, schema)
        if is_text(types):
            return ""  # it would be read as a string
        others = without_strings(tool, schema)
        return "" if others is None else self._json(tool, others)

    def json_value(self, tool: Tool, schema: Any) -> str:
        """One argument as JSON."""
        return self._json(tool, schema)

    def _json(self, tool: Tool, schema: Any) -> str:
        if not isinstance(schema, dict):
            schema = {}
        definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
        text = json.dumps(schema)
        if "#/properties" in text:
            raise ValueError(f"the parameters of {tool.name[:64]!r} refer to one another's schemas: use $defs")
        whole = {**definitions, **schema} if "$ref" in text else schema
        return f"%json {schema_text(whole, owner=tool.name)}"


def variants(tool: Tool) -> list[dict[str, Any]]:
    """The schemas of the arguments without `allOf`, `anyOf` and `oneOf` at the head: one for each combination."""
    done: list[dict[str, Any]] = []
    pending: list[Any] = [tool.root]
    for _ in range(_MAX_ROUNDS):
        if not pending or len(done) + len(pending) >= 64:
            break
        schema = tool.resolve(pending.pop(0))
        if not isinstance(schema, dict):
            continue
        keyword = next((key for key in ("allOf", "anyOf", "oneOf") if isinstance(schema.get(key), list)), None)
        if keyword is None:
            done.append(schema)
            continue
        rest = {key: value for key, value in schema.items() if key != keyword}
        branches = [tool.resolve(branch) for branch in schema[keyword]]
        if keyword == "allOf":
            for branch in branches:
                rest = _merged(rest, branch)
            pending.append(rest)
        else:
            pending += [_merged(rest, branch) for branch in branches]
    if pending or not done:
        raise ValueError(f"the parameters of {tool.name[:64]!r} have too many alternatives")
    return done


def _merged(schema: dict[str, Any], other: Any) -> dict[str, Any]:
    if not isinstance(other, dict):
        return schema
    merged = {**schema, **{key: value for key, value in other.items() if key not in ("properties", "required")}}
    if "properties" in schema or "properties" in other:
        merged["properties"] = {**(schema.get("properties") or {}), **(other.get("properties") or {})}
    if "required" in schema or "required" in other:
        merged["required"] = list(dict.fromkeys([*(schema.get("required") or ()), *(other.get("required") or ())]))
    return merged


def without_strings(tool: Tool, schema: Any) -> dict[str, Any] | None:
    """The schema of what else than strings it allows, None for nothing."""
    return _without_strings(tool, schema, set(), 0)


def _without_strings(tool: Tool, schema: Any, seen: set[int], depth: int) -> dict[str, Any] | None:
    """`seen` are the alternatives that are in the schema already."""
    schema = tool.resolve(schema)
    if not isinstance(schema, dict) or id(schema) in seen:
        return None
    _check_depth(depth)
    seen.add(id(schema))
    made = dict(schema)
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            branches = [_without_strings(tool, branch, seen, depth + 1) for branch in schema[keyword]]
            made[keyword] = [branch for branch in branches if branch is not None]
            if not made[keyword]:
                return None
    if isinstance(schema.get("enum"), list):
        made["enum"] = [value for value in schema["enum"] if not isinstance(value, str)]
        if not made["enum"]:
            return None
    if isinstance(schema.get("const"), str) or schema.get("type") == "string":
        return None
    if isinstance(schema.get("type"), list):
        made["type"] = [name for name in schema["type"] if name != "string"]
        if not made["type"]:
            return None
    return made


def _check_depth(depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("the schema is nested too deeply")


def _bounds(schema: dict[str, Any]) -> str | None:
    """The length of a string as a repetition."""
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if type(least) is not int or not (most is None or type(most) is int):
        raise ValueError("minLength and maxLength are whole numbers")
    if least == 0 and most is None:
        return None
    if max(least, most or 0) > _MAX_LENGTH:
        raise ValueError(f"minLength and maxLength are at most {_MAX_LENGTH} in this model's form of calls")
    return f"{{{least},{'' if most is None else most}}}"


def _searched(pattern: str) -> str:
    """A schema's pattern, which may match anywhere, as one that matches the whole."""
    made = portable(pattern)
    before = "" if made.startswith("^") else "(?s:.*)"
    behind = "" if made.endswith("$") and not made.endswith(r"\$") else "(?s:.*)"
    made = made.removeprefix("^")
    made = made[:-1] if behind == "" else made
    made = re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", made)
    return f"{before}({made}){behind}"
