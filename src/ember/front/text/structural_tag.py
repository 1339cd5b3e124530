"""Structural tags as Lark grammars: text in which certain markers begin parts with a grammar of their own.

Both forms of requests are supported: `structures` with `triggers`, and the tree of `format` (const_string, json_schema,
regex, any_text, sequence, or, tag, triggered_tags, tags_with_separator).
"""

from __future__ import annotations

from typing import Any

from ember.front.text.json_schema import DEFAULT_WHITESPACE, JsonRules
from ember.front.text.lark import in_slashes, literal, parts, quoted, regex_quoted, sequence, token
from ember.front.text.portable_regex import portable
from ember.front.text.tokenizer import Tokenizer

MAX_NESTING = 32
MAX_TAGS = 1024
_ANY_TEXT = "/(?s:.*)/"


def structural_tag_grammar(
    tag: Any, tokenizer: Tokenizer, *, whitespace: str = DEFAULT_WHITESPACE, closed: bool = False
) -> str:
    """The Lark grammar of a structural tag. `whitespace` and `closed` are for its JSON schemas, see `JsonRules`.

    Raises ValueError that names the invalid part.
    """
    if not isinstance(tag, dict):
        raise ValueError("a structural tag is an object")
    if tag.get("format") is not None:
        form = tag["format"]
    elif tag.get("structures") is not None:
        form = _from_structures(tag)
    else:
        raise ValueError("a structural tag has either `format`, or `structures` and `triggers`")
    builder = _Builder(tokenizer, whitespace, closed)
    start = builder.expression(form, is_last=True)
    return "\n".join([f"start: {start}", *builder.rules]) + "\n"


def _from_structures(tag: dict[str, Any]) -> dict[str, Any]:
    """Convert the older form to the newer one."""
    structures = tag["structures"]
    if not isinstance(structures, list) or not all(isinstance(entry, dict) for entry in structures):
        raise ValueError("`structures` is a list of objects")
    tags = [
        {
            "begin": entry.get("begin"),
            "content": {"type": "json_schema", "json_schema": entry.get("schema", True)},
            "end": entry.get("end"),
        }
        for entry in structures
    ]
    return {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}


class _Builder:
    """Collects the rules of a grammar. Each method returns an expression for use in a rule."""

    def __init__(self, tokenizer: Tokenizer, whitespace: str, closed: bool) -> None:
        self._tokenizer = tokenizer
        self._nesting = 0
        self._num_tags = 0
        self.rules: list[str] = []
        self._json = JsonRules(self.rules.append, whitespace=whitespace, closed=closed)

    def expression(self, form: Any, is_last: bool) -> str:
        """The expression of a format. `is_last`: nothing follows, so unbounded text is allowed."""
        if not isinstance(form, dict):
            raise ValueError("a format of a structural tag is an object with a `type`")
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise ValueError(f"the structural tag is nested more than {MAX_NESTING} levels deep")
        kind = form.get("type")
        match kind:
            case "const_string":
                made = literal(_text(form, "value"), self._tokenizer)
            case "json_schema":
                made = self._json.value(form.get("json_schema"))
            case "regex":
                made = self._rule(self._terminal(f"/{in_slashes(portable(_text(form, 'pattern')))}/"))
            case "any_text":
                if not is_last:
                    raise ValueError("`any_text` may only stand at the end, or alone in a tag")
                made = self._plain_text(_texts(form, "excludes") if form.get("excludes") else [])
            case "sequence":
                elements = _list(form, "elements")
                last = len(elements) - 1
                made = sequence([self.expression(element, is_last and i == last) for i, element in enumerate(elements)])
            case "or":
                made = "(" + " | ".join(self.expression(element, is_last) for element in _list(form, "elements")) + ")"
            case "tag":
                made = self._tag(form)
            case "triggered_tags":
                made = self._triggered(form, is_last)
            case "tags_with_separator":
                made = self._separated(form)
            case _:
                raise ValueError(f"the structural tag format {str(kind)[:64]!r} is not supported")
        self._nesting -= 1
        return made

    def _tag(self, form: dict[str, Any], skip: str = "") -> str:
        """The fields `begin`, `content` and `end` of a tag, `begin` without the prefix `skip`."""
        self._num_tags += 1
        if self._num_tags > MAX_TAGS:
            raise ValueError(f"a structural tag has at most {MAX_TAGS} tags")
        begin = literal(_text(form, "begin")[len(skip) :], self._tokenizer)
        end = form.get("end")
        ends = [end] if isinstance(end, str) else _texts(form, "end")
        content = form.get("content")
        if isinstance(content, dict) and content.get("type") == "any_text":
            body = "(" + " | ".join(self._text_until(end) for end in ends) + ")"
        else:
            tails = " | ".join(literal(end, self._tokenizer) for end in ends)
            body = f"{self.expression(content, is_last=False)} ({tails})"
        return self._rule(f"{begin} {body}")

    def _triggered(self, form: dict[str, Any], is_last: bool) -> str:
        """Free text in which a trigger begins one of the tags."""
        triggers = _texts(form, "triggers")
        tags = _list(form, "tags")
        if not is_last:
            raise ValueError("`triggered_tags` may only stand at the end")
        own: dict[str, list[str]] = {trigger: [] for trigger in triggers}
        for tag in tags:
            begin = _text(tag, "begin")
            trigger = max((text for text in triggers if begin.startswith(text)), key=len, default=None)
            if trigger is None:
                raise ValueError(f"no trigger begins the tag {begin[:64]!r}")
            own[trigger].append(self._tag(tag, skip=trigger))
        unused = next((trigger for trigger, bodies in own.items() if not bodies), None)
        if unused is not None:
            raise ValueError(f"no tag begins with the trigger {unused[:64]!r}")
        plain = self._plain_text([text for text in triggers if not self._first_token(text)])
        chunk = self._rule(*(f"{self._head(trigger, plain)} ({' | '.join(own[trigger])})" for trigger in own))
        if form.get("stop_after_first"):
            return chunk if form.get("at_least_one") else f"({chunk} | {plain})"
        return f"{chunk}{'+' if form.get('at_least_one') else '*'} {plain}"

    def _separated(self, form: dict[str, Any]) -> str:
        tags = _list(form, "tags")
        one = self._rule(*(self._tag(tag) for tag in tags))
        separator = literal(_text(form, "separator"), self._tokenizer)
        many = one if form.get("stop_after_first") else f"{one} ({separator} {one})*"
        return many if form.get("at_least_one") else f"({many})?"

    def _head(self, trigger: str, plain: str) -> str:
        """Text up to and including the trigger."""
        first = self._first_token(trigger)
        if first is not None:
            if len(parts(trigger, self._tokenizer)) > 1:
                raise ValueError(f"the trigger {trigger[:64]!r} goes on behind a special token: use the token alone")
            return f"{plain} {token(first)}"
        return self._text_until(trigger)

    def _first_token(self, text: str) -> int | None:
        """The added token that a text begins with, or None. Raises ValueError if the text has an added token later."""
        cut = parts(text, self._tokenizer)
        if any(isinstance(part, int) for part in cut[1:]):
            raise ValueError(f"the trigger {text[:64]!r} has a special token inside: begin it there")
        return cut[0] if isinstance(cut[0], int) else None

    def _text_until(self, end: str) -> str:
        """Any text up to and including the first `end`."""
        cut = parts(end, self._tokenizer)
        if isinstance(cut[0], int):
            return f"{self._plain_text([])} {literal(end, self._tokenizer)}"
        name = self._name("text")
        self.rules.append(f"{name}[lazy]: {_ANY_TEXT} {quoted(cut[0])}")
        rest = [token(part) if isinstance(part, int) else quoted(part) for part in cut[1:]]
        return sequence([name, *rest])

    def _plain_text(self, excluded: list[str]) -> str:
        """Text, possibly empty, that contains none of these strings."""
        if not excluded:
            return self._rule(self._terminal(_ANY_TEXT))
        held = "|".join(regex_quoted(text) for text in excluded)
        return self._rule(self._terminal(f"{_ANY_TEXT} & ~/(?s:.*)({held})(?s:.*)/"))

    def _terminal(self, body: str) -> str:
        name = self._name("T").upper()
        self.rules.append(f"{name}: {body}")
        return name

    def _rule(self, *alternatives: str) -> str:
        name = self._name("r")
        self.rules.append(f"{name}: {' | '.join(alternatives)}")
        return name

    def _name(self, kind: str) -> str:
        return f"{kind}_{len(self.rules)}"


def _text(form: Any, key: str) -> str:
    value = form.get(key) if isinstance(form, dict) else None
    if not isinstance(value, str):
        raise ValueError(f"a structural tag needs a text as `{key}`")
    return value


def _texts(form: dict[str, Any], key: str) -> list[str]:
    values = _list(form, key)
    if not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"`{key}` of a structural tag holds texts that are not empty")
    return values


def _list(form: dict[str, Any], key: str) -> list[Any]:
    value = form.get(key)
    if not isinstance(value, list) or not value:
        raise ValueError(f"a structural tag needs a list as `{key}` that is not empty")
    return value
