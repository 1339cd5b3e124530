"""Random JSON schemas of the keywords that come together in objects, and random walks through their grammars."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from ember.front.text.json_schema import schema_grammar

NAMES = ("a", "b", "ab", "s", "x_1", "Größe", 'q"')
PATTERNS = ("^a", "^[ab]$", "^s$", "b$", "^x_[0-9]$", "[0-9]", "^(a|b|s)$", "^[a-c]{1,2}$", "^", "^.$")
STRING_PATTERNS = ("^[a-c]{1,4}$", "^a|z$", r"^\d{2,3}$", "b", "^(?:x|y)*$", r"^[^\"]{2}$")
FORMATS = ("date", "ipv4", "uuid", "time", "email", "int32")
MAX_STEPS = 3000


def schema(chance: random.Random, depth: int = 0) -> Any:
    """One place's."""
    leaves = [scalar, scalar, listed]
    if depth < 3:
        leaves += [an_object, an_object, an_object, an_array, combined]
    return chance.choice(leaves)(chance, depth)


def document(chance: random.Random) -> dict[str, Any]:
    """A whole one, with definitions that refer to one another."""
    names = ["D", "Page<User>", "ä b"]
    whole = an_object(chance, 0)
    whole["$defs"] = {name: schema(chance, 2) for name in names}
    properties = whole.setdefault("properties", {})
    for name in names:
        if chance.random() < 0.4:
            reference = "#/$defs/" + chance.choice([name, name.replace("<", "%3C").replace("ä", "%C3%A4")])
            properties[f"to {name}"] = {"$ref": reference}
            if chance.random() < 0.3:
                properties[f"to {name}"]["maxProperties"] = 3
    if chance.random() < 0.2:
        whole["$defs"]["D"] = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    return whole


def scalar(chance: random.Random, depth: int) -> Any:
    kind = chance.choice(("integer", "number", "string", "boolean", "null"))
    made: dict[str, Any] = {"type": kind if chance.random() < 0.8 else [kind, "null"]}
    if kind in ("integer", "number"):
        low = chance.choice((None, 0, -7, 0.5, 3, 120))
        if low is not None:
            made[chance.choice(("minimum", "exclusiveMinimum"))] = low
        if chance.random() < 0.5:
            made[chance.choice(("maximum", "exclusiveMaximum"))] = (low or 0) + chance.choice((1, 2.5, 10, 1000))
        if chance.random() < 0.2:
            made["multipleOf"] = chance.choice((2, 5, 0.5, 0.25))
    elif kind == "string":
        match chance.randrange(5):
            case 0:
                made["pattern"] = chance.choice(STRING_PATTERNS)
            case 1:
                made["format"] = chance.choice(FORMATS)
            case 2:
                made["maxLength"] = chance.randrange(6)
            case 3:
                made |= {"minLength": chance.randrange(3), "maxLength": chance.randrange(3, 6)}
    return made


def listed(chance: random.Random, depth: int) -> Any:
    values = [1, 2, "a", "b", None, True, 1.5, [1], {"a": 1}, {"b": "x"}, ""]
    if chance.random() < 0.3:
        return {"const": chance.choice(values)}
    return {"enum": chance.sample(values, chance.randrange(1, 5))}


def an_object(chance: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "object"}
    if chance.random() < 0.7:
        names = chance.sample(NAMES, chance.randrange(1, 4))
        made["properties"] = {name: schema(chance, depth + 1) for name in names}
    if chance.random() < 0.4:
        patterns = chance.sample(PATTERNS, chance.randrange(1, 3))
        made["patternProperties"] = {pattern: schema(chance, depth + 1) for pattern in patterns}
    if chance.random() < 0.6:
        made["additionalProperties"] = chance.choice([False, False, True, schema(chance, depth + 1)])
    if chance.random() < 0.25:
        made["propertyNames"] = chance.choice(
            [{"pattern": chance.choice(PATTERNS)}, {"enum": ["a", "s", "new"]}, {"maxLength": 2}, {"minLength": 2}]
        )
    if chance.random() < 0.4:
        made["required"] = chance.sample(NAMES, chance.randrange(1, 3))
    if chance.random() < 0.3:
        made["minProperties"] = chance.randrange(4)
    if chance.random() < 0.3:
        made["maxProperties"] = chance.randrange(1, 5)
    keys = list(made)
    chance.shuffle(keys)
    return {key: made[key] for key in keys}


def an_array(chance: random.Random, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array", "items": schema(chance, depth + 1)}
    if chance.random() < 0.3:
        made["prefixItems"] = [schema(chance, depth + 1) for _ in range(chance.randrange(1, 3))]
    if chance.random() < 0.4:
        made["minItems"] = chance.randrange(3)
    made["maxItems"] = chance.randrange(2, 4)
    return made


def combined(chance: random.Random, depth: int) -> dict[str, Any]:
    keyword = chance.choice(("anyOf", "allOf", "oneOf"))
    branches = [schema(chance, depth + 1) for _ in range(2)]
    if keyword == "allOf":
        branches = [an_object(chance, depth + 1), an_object(chance, depth + 1)]
    if keyword == "oneOf":
        branches = [{"type": "string", "maxLength": 3}, an_object(chance, depth + 1)]
    made = {keyword: branches}
    if chance.random() < 0.3:
        made = {**an_object(chance, depth + 1), **made}
    return made


@cache
def tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


def matcher(given: Any) -> LLMatcher:
    """Raises ValueError for a schema that is refused."""
    return matcher_of(schema_grammar(given))


def matcher_of(grammar: str) -> LLMatcher:
    """Of a Lark grammar. Raises AssertionError where the engine would refuse it."""
    made = LLMatcher(tokenizer(), LLMatcher.grammar_from_lark(grammar), log_level=0)
    if not made.is_error():
        made.compute_bitmask()
    assert not made.is_error(), made.get_error()
    return made


def walk(start: LLMatcher, chance: random.Random, num_free: int) -> str:
    """A random output: `num_free` steps of any allowed byte, then towards the end. Raises AssertionError where nothing
    may follow, or where the end does not come."""
    own = start.deep_copy()
    text = b""
    for step in range(MAX_STEPS):
        if own.is_stopped():
            return text.decode()
        mask = own.compute_bitmask()
        assert not own.is_error(), own.get_error()
        allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if own.is_accepting() and (step >= num_free or not allowed or chance.random() < 0.3):
            return text.decode()
        assert allowed, f"a dead end behind {text.decode(errors='replace')!r}"
        byte = _towards_end(allowed, chance) if step >= num_free else _any(allowed, chance)
        assert own.consume_token(byte)
        text += bytes([byte])
    raise AssertionError(f"no end after {text[:200].decode(errors='replace')!r}")


def _any(allowed: list[int], chance: random.Random) -> int:
    marks = [byte for byte in allowed if byte in b'"{}[]:,0159.abx_']
    return chance.choice(marks if marks and chance.random() < 0.8 else allowed)


def _towards_end(allowed: list[int], chance: random.Random) -> int:
    if chance.random() < 0.2:  # what a pattern still asks for
        return _any([byte for byte in allowed if byte in b"absx_01.@-:"] or allowed, chance)
    for group in (b'"', b"}]", b":", b"ntf", b"0123456789", b"abcsx_", b".-eE", b"[", b"{"):
        fit = [byte for byte in group if byte in allowed]
        if fit:
            return chance.choice(fit)
    return chance.choice(allowed)
