"""Search for a format's marks in a stream of parts. A mark is a sequence of special tokens and text."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from ember.front.text import lark
from ember.front.text.output import Marker
from ember.front.text.tokenizer import Tokenizer

Pattern = tuple[str, ...]  # never empty; each item ordinary text or a `Marker`
Place = tuple[int, int]  # index of a part, offset in it


class Fit(Enum):
    """Whether a pattern matches at a place."""

    NO = 0
    PARTLY = 1  # it matches up to the end of the parts
    WHOLE = 2


def pattern_of(text: str, tokenizer: Tokenizer) -> Pattern:
    """A mark in this tokenizer: its added tokens as `Marker`s, the rest as text."""
    items = lark.parts(text, tokenizer)
    return tuple(item if isinstance(item, str) else Marker(tokenizer.vocab_entry(item) or "") for item in items)


def begins_with_token(pattern: Pattern) -> bool:
    return type(pattern[0]) is Marker


def normalized(parts: Sequence[str]) -> list[str]:
    """The parts without empty ones, and with consecutive texts joined."""
    runs: list[list[str]] = []
    for part in parts:
        if type(part) is Marker or (part and (not runs or type(runs[-1][0]) is Marker)):
            runs.append([part])
        elif part:
            runs[-1].append(part)
    return [run[0] if len(run) == 1 else "".join(run) for run in runs]


def fit(parts: Sequence[str], place: Place, pattern: Pattern) -> tuple[Fit, Place]:
    """Whether the pattern matches at this place of normalized parts, and the place after it."""
    index, offset = place
    for item in pattern:
        if index == len(parts):
            return Fit.PARTLY, place
        part = parts[index]
        if type(item) is Marker:
            if type(part) is not Marker or part != item:
                return Fit.NO, place
            index += 1
            continue
        if type(part) is Marker:
            return Fit.NO, place
        if part.startswith(item, offset):
            offset += len(item)
            if offset == len(part):
                index, offset = index + 1, 0
        elif index == len(parts) - 1 and item.startswith(part[offset:]):
            return Fit.PARTLY, place
        else:
            return Fit.NO, place
    return Fit.WHOLE, (index, offset)


def find(parts: Sequence[str], patterns: Sequence[Pattern]) -> tuple[Pattern | None, Place, Place]:
    """The first pattern that matches, its place, and the place after it. Otherwise None, with the place from which one
    may still match, or the end."""
    for index, part in enumerate(parts):
        best: tuple[int, Fit, Pattern, Place] | None = None
        for pattern in patterns:
            offset = _candidate(part, pattern[0], index == len(parts) - 1, 0)
            while offset >= 0 and (best is None or offset < best[0]):
                found, behind = fit(parts, (index, offset), pattern)
                if found is not Fit.NO:
                    best = (offset, found, pattern, behind)
                    break
                offset = _candidate(part, pattern[0], index == len(parts) - 1, offset + 1)
        if best is not None:
            offset, found, pattern, behind = best
            return (pattern if found is Fit.WHOLE else None), (index, offset), behind
    end = (len(parts), 0)
    return None, end, end


def _candidate(part: str, item: str, is_last: bool, start: int) -> int:
    """The position in this part, from `start` on, at which the item may begin; -1 if there is none."""
    if type(part) is Marker or type(item) is Marker:
        return 0 if start == 0 and type(part) is type(item) and part == item else -1
    whole = part.find(item, start)
    if whole >= 0 or not is_last:
        return whole
    begin = part.find(item[0], max(start, len(part) - len(item) + 1))
    while begin >= 0 and not item.startswith(part[begin:]):
        begin = part.find(item[0], begin + 1)
    return begin


def split(parts: Sequence[str], place: Place) -> tuple[list[str], list[str]]:
    """The parts before the place, and those from it on."""
    index, offset = place
    if offset == 0:
        return list(parts[:index]), list(parts[index:])
    return [*parts[:index], parts[index][:offset]], [parts[index][offset:], *parts[index + 1 :]]
