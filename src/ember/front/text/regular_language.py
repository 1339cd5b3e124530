"""Queries about regular expressions in the engine's dialect: whether one is valid, empty, or matches a text.

The engine's own grammar library answers them, on bytes, so that the front and the engine agree. It is imported at the
first query, since most schemas need none.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_PATTERN_CHARS = 8_192  # of one expression: the library's memory grows with the square of it
# llguidance's limits. Each state of its lexer takes 1 to 2 kB of the front's memory; a query about bytes needs few.
MAX_LEXER_STATES = 10_000
_NUM_KEPT = 16  # most recently used matchers in the cache
_NOTHING = ("NoExtensionBias", "Regex is empty", "Unsatisfiable")


@cache
def _tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


@lru_cache(maxsize=_NUM_KEPT)
def _matcher(grammar: str) -> LLMatcher | None:
    """Compile a grammar. Returns None if no text matches it. Raises ValueError for an invalid grammar."""
    from llguidance import LLMatcher, LLParserLimits

    try:
        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES)
        matcher = LLMatcher(_tokenizer(), grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"it cannot be read ({type(error).__name__})") from None
    if not matcher.is_error():
        return matcher
    message = matcher.get_error()
    if any(part in message for part in _NOTHING):
        return None
    raise ValueError(_reason(message))


def _terminal(body: str) -> LLMatcher | None:
    from llguidance import LLMatcher

    return _matcher(LLMatcher.grammar_from_lark(f"start: T\nT: {body}\n"))


def check_length(pattern: str) -> None:
    """Raise ValueError for a regular expression that is too long."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"a regular expression has at most {MAX_PATTERN_CHARS} characters, this one {len(pattern)}")


def check(pattern: str) -> None:
    """Raise ValueError if the engine would refuse a regular expression that `portable` returned."""
    from llguidance import LLMatcher

    check_length(pattern)
    _matcher(LLMatcher.grammar_from_regex(pattern))


def is_empty(body: str) -> bool:
    """Whether a terminal of a Lark grammar matches no text. Raises ValueError."""
    return _terminal(body) is None


def is_empty_schema(schema: dict[str, Any]) -> bool:
    """Whether no value fits a schema that the engine's compiler reads. Raises ValueError."""
    from llguidance import LLMatcher

    return _matcher(LLMatcher.grammar_from_json_schema(json.dumps(schema))) is None


def matches(body: str, text: str) -> bool:
    """Whether a terminal matches the whole text. Raises ValueError."""
    matcher = _terminal(body)
    if matcher is None:
        return False
    own = matcher.deep_copy()
    given = list(text.encode())
    return own.try_consume_tokens(given) == len(given) and own.is_accepting()


def members(body: str, limit: int) -> list[str] | None:
    """All texts that a terminal matches, in the order of their bytes; None if there are more than `limit`. Raises
    ValueError."""
    start = _terminal(body)
    found: list[str] = []
    pending: list[tuple[LLMatcher, bytes]] = [] if start is None else [(start.deep_copy(), b"")]
    steps = 0
    while pending:
        matcher, text = pending.pop()
        steps += 1
        if len(found) > limit or steps > 64 * limit:
            return None
        if matcher.is_accepting():
            found.append(text.decode())
        if matcher.is_stopped():
            continue
        mask = matcher.compute_bitmask()
        following = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if len(following) > limit:
            return None
        for byte in reversed(following):
            own = matcher.deep_copy()
            own.consume_token(byte)
            pending.append((own, text + bytes([byte])))
    return found if len(found) <= limit else None


def _reason(error: str) -> str:
    """The library's error message without its drawing of the position."""
    lines = [line.strip() for line in error.partition("<state>")[0].splitlines()]
    told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[0] if lines else "")
    return told.removeprefix("error: ")[:300]
