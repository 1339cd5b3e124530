r"""Translates clients' regular expressions (Python's or JavaScript's dialect) to the engine's dialect (Rust's).

Dialects differ in the classes \d, \w and \s: ASCII or Unicode, and which version of Unicode. The output must match in
every dialect, so each class becomes the part that all have in common: \d, \w, \s are ASCII where they allow characters
and Unicode where they exclude them (\D, [^\d]). Braces that are not a quantifier are characters, and so are Rust's set
operators inside brackets. Features that Rust's dialect lacks (look-around, back-references) stay, and the engine
refuses them by name. Possessive quantifiers are refused here, since Rust would read them differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# The characters in a class in every dialect, and those in at least one dialect; as parts of a bracket expression.
_NARROW = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\v"}
_WIDE = {"d": r"\d", "w": r"\w\p{N}", "s": r"\s\x1c-\x1f\x{feff}"}
_ANY = r"[^\n\r\x{2028}\x{2029}]"  # what `.` means in every dialect
_QUANTIFIER = re.compile(r"\{(?:[0-9]+(?:,[0-9]*)?|,[0-9]+)\}")
_OPTIONS = re.compile(r"\(\?[a-zA-Z-]+\)")
_ANCHORS = frozenset({"^", "$", r"\A", r"\z", "(", "|"})
_DOT_IS_ALL = re.compile(r"\(\?[a-z]*s")
_NAMED = re.compile(r"\\(?:[pPxuU]\{[^}]*\}|p[A-Z])")  # \p{Greek}, \x{41}


def portable(pattern: str) -> str:
    """The pattern in the engine's dialect. Unbalanced brackets stay: the engine's parser reports them.

    Raises ValueError for what Python and JavaScript refuse and Rust does not (a quantifier after a quantifier or an
    anchor, options in the middle, a backslash at the end), for a possessive quantifier, and for the character NUL,
    which no output contains.
    """
    if "\0" in pattern:
        raise ValueError("a regular expression must not hold the character NUL")
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
        raise ValueError("the backslash at the end of a regular expression escapes nothing")
    options = next((found for found in _OPTIONS.finditer(pattern) if found.start() and not _is_escaped(found)), None)
    if options is not None:
        raise ValueError(f"the options `{options[0]}` may only stand at the beginning of a regular expression")
    any_char = "." if _DOT_IS_ALL.search(pattern) else _ANY
    parts: list[str] = []
    position = 0
    repeatable = False  # whether a quantifier is allowed here
    before = ""  # the text before a quantifier here
    while position < len(pattern):
        char = pattern[position]
        quantifier = _quantifier(pattern, position)
        if quantifier and not repeatable:
            raise ValueError(f"there is nothing to repeat before the quantifier `{before}{quantifier}`")
        if quantifier:
            position += len(quantifier)
            if pattern[position : position + 1] == "+":
                raise ValueError(f"the possessive quantifier `{quantifier}+` is not supported")
            lazy = pattern[position : position + 1] == "?"
            parts.append((f"{{0{quantifier[1:]}" if quantifier[1:2] == "," else quantifier) + "?" * lazy)
            position += lazy
            repeatable, before = False, quantifier + "?" * lazy
            continue
        if char == "\\" and position + 1 < len(pattern):
            named = _NAMED.match(pattern, position)
            text = named[0] if named else pattern[position : position + 2]
            parts.append(text if named else _escape(text[1], in_brackets=False, is_negated=False))
            position += len(text)
        elif char == "[":
            text, position = _brackets(pattern, position)
            parts.append(text)
        else:
            parts.append(f"\\{char}" if char in "{}" else any_char if char == "." else char)
            position += 1
        repeatable = parts[-1] not in _ANCHORS
        before = "" if repeatable else parts[-1]
    return "".join(parts)


def searched(pattern: str) -> str:
    """Convert a portable pattern that may match anywhere to one that matches the whole text. Raises ValueError for an
    anchor inside it."""
    alternatives = []
    for alternative in _alternatives(pattern):
        inner = _inner(alternative)
        if inner is not None:
            alternatives.append(searched(inner))
            continue
        starts = next((anchor for anchor in (r"\A", "^") if alternative.startswith(anchor)), "")
        ends = next((anchor for anchor in (r"\z", "$") if _ends_with(alternative, anchor)), "")
        body = alternative[len(starts) : len(alternative) - len(ends)]
        if any(anchor in _ANCHORS - {"(", "|"} for anchor in _pieces(body)):
            raise ValueError("anchors are supported at the beginning and the end of a pattern or of its alternatives")
        anything = "(?s:.*)"
        alternatives.append(f"{'' if starts else anything}(?:{body}){'' if ends else anything}")
    return "|".join(alternatives)


def _pieces(pattern: str) -> Iterator[str]:
    """Its escapes, bracket expressions and other characters, one by one."""
    position = 0
    while position < len(pattern):
        end = position + 1
        if pattern[position] == "\\":
            end += 1
        elif pattern[position] == "[":
            end = _brackets(pattern, position)[1]
        yield pattern[position:end]
        position = end


def _alternatives(pattern: str) -> list[str]:
    """Split a pattern at the bars outside groups."""
    made = [""]
    depth = 0
    for piece in _pieces(pattern):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and depth == 0:
            made.append("")
        else:
            made[-1] += piece
    return made


def _inner(pattern: str) -> str | None:
    """The content of a group that spans the whole pattern and has no options; None for other patterns."""
    opening = re.match(r"\((?:\?:|\?P?<\w+>|(?!\?))", pattern)
    if opening is None:
        return None
    depth = 0
    position = 0
    for piece in _pieces(pattern):
        depth += (piece == "(") - (piece == ")")
        position += len(piece)
        if depth == 0:
            return pattern[opening.end() : -1] if position == len(pattern) else None
    return None


def _ends_with(pattern: str, anchor: str) -> bool:
    return list(_pieces(pattern))[-1:] == [anchor]


def _is_escaped(found: re.Match[str]) -> bool:
    before = found.string[: found.start()]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1 or before.count("[") > before.count("]")


def _quantifier(pattern: str, position: int) -> str:
    """The quantifier at a position, without a following `?` or `+`."""
    if pattern[position] in "*+?":
        return "" if pattern[position - 1 : position] == "(" else pattern[position]
    found = _QUANTIFIER.match(pattern, position)
    return found[0] if found else ""


def _brackets(pattern: str, start: int) -> tuple[str, int]:
    """The bracket expression at `start`, and the position after it."""
    position = start + 1
    is_negated = pattern[position : position + 1] == "^"
    position += is_negated
    parts = ["[^" if is_negated else "["]
    if pattern[position : position + 1] == "]":  # first in brackets it is a character in Python
        parts.append(r"\]")
        position += 1
    while position < len(pattern):
        char = pattern[position]
        if char == "]":
            return "".join([*parts, "]"]), position + 1
        if char == "\\" and position + 1 < len(pattern):
            named = _NAMED.match(pattern, position)
            text = named[0] if named else pattern[position : position + 2]
            parts.append(text if named else _escape(text[1], in_brackets=True, is_negated=is_negated))
            position += len(text)
            continue
        parts.append(f"\\{char}" if char in "[&~" or (char == "-" and parts[-1] == "-") else char)
        position += 1
    return pattern[start:], len(pattern)


def _escape(letter: str, in_brackets: bool, is_negated: bool) -> str:
    """Translate a backslash and `letter`. A class is narrow where it allows characters, wide where it excludes them."""
    name = letter.lower()
    if name not in _NARROW:
        if letter in "<>":  # word boundaries in Rust
            return letter
        return r"\x08" if letter == "b" and in_brackets else r"\z" if letter == "Z" else f"\\{letter}"
    excludes = letter.isupper()
    members = _WIDE[name] if excludes != is_negated else _NARROW[name]
    if excludes:
        return f"[^{members}]"
    return members if in_brackets else f"[{members}]"
