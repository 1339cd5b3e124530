"""Regular expressions of a quantization_config, matched with names of modules in bounded time. No torch is imported.

They come from outside, and Python's matcher backtracks: a repetition inside of another takes time that grows
exponentially with the name. Such expressions are refused, and what the others may take together is limited.
"""

from __future__ import annotations

import re
import time
from math import inf, log2
from typing import Any

from ember.engine.description.fields import shown
from ember.engine.errors import ModelError

MAX_LENGTH = 10_000  # characters of an expression
MAX_BITS = 28  # the binary logarithm of the ways that one match may have to try
_REPEAT_BITS = 4.5  # of one repetition: six of them have 2 ** 27 ways to share the 64 characters of a name
MAX_SECONDS = 10.0  # of all matches with the expressions of one field
_FEW = 4  # a repetition of at most so many copies counts as these copies
_COMMENTS = re.compile(r"(?:\(\?#[^)]*\))*")
_REPETITION = re.compile(r"(?:[*+?]|\{(?!\})(\d*)(?:(,)(\d*))?\})[?+]?")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:P<\w+>|[:=!>]|<[=!]|(?P<back>P=\w+)|(?P<choice>\(\w+\))|(?P<flags>[a-zA-Z-]+):?))?")


class Expressions:
    """The expressions of one field. `match` and `search` of what `compile` returns raise ModelError when the field's
    time is over."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.seconds = 0.0

    def compile(self, text: str, shown_as: str | None = None) -> Expression:
        """Raises ModelError for an expression that cannot be read, or that may take too long. `shown_as`: the entry
        that has it, for the message."""
        entry = shown(text if shown_as is None else shown_as)
        try:
            if len(text) > MAX_LENGTH:
                raise ModelError(
                    f"{self.field} has a regular expression of {len(text)} characters; {MAX_LENGTH} are allowed"
                )
            pattern = re.compile(text)
            bits = inf if pattern.flags & re.VERBOSE else _Scanner(text).bits()
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(f"{self.field} has {entry}, which is no regular expression: {error}") from None
        if bits > MAX_BITS:
            raise ModelError(
                f"{self.field} has {entry}, a regular expression that may take too long: no repetition may be inside "
                "of another, there may be few of them beside each other, and the flag x is not allowed"
            )
        return Expression(self, pattern)


class Expression:
    """A compiled expression of a field."""

    def __init__(self, owner: Expressions, pattern: re.Pattern[str]) -> None:
        self._owner, self._pattern = owner, pattern

    def match(self, name: str) -> bool:
        """Whether it matches from the name's beginning on."""
        return self._timed(self._pattern.match, name)

    def search(self, name: str) -> bool:
        """Whether it matches anywhere in the name."""
        return self._timed(self._pattern.search, name)

    def _timed(self, find: Any, name: str) -> bool:
        start = time.perf_counter()
        found = find(name) is not None
        self._owner.seconds += time.perf_counter() - start
        if self._owner.seconds > MAX_SECONDS:
            raise ModelError(
                f"{self._owner.field} has regular expressions that take more than {MAX_SECONDS:g} seconds: write them "
                "with fewer repetitions"
            )
        return found


class _Scanner:
    """Reads an expression that `re` has compiled, so its syntax is right. `at`: the first character that is not read
    yet."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def bits(self) -> float:
        """The binary logarithm of the number of ways that a match may have to try; infinite for a repetition of a part
        that can itself match in several ways."""
        return _of_any(self._alternatives())

    def _alternatives(self) -> list[float]:
        """Read up to the end of the group: the bits of each alternative."""
        start = self.at
        found = [self._sequence()]
        while self.text[self.at : self.at + 1] == "|":
            self.at += 1
            found.append(self._sequence())
        single = self.text[start : self.at].split("|")
        if len(set(single)) == len(found) and all(len(each) == 1 and each.isalnum() for each in single):
            return [0.0]  # different characters, which are a class
        return found

    def _sequence(self) -> float:
        total = 0.0
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            total += self._repeated(self._part())
        return total

    def _part(self) -> float:
        """Read a character, a class or a group."""
        character = self.text[self.at]
        if character == "(":
            return self._group()
        if character == "[":
            self._skip(_CLASS)
        else:
            self.at += 2 if character == "\\" else 1
        return 0.0

    def _group(self) -> float:
        if self.text.startswith("(?#", self.at):  # a comment
            self.at = self.text.index(")", self.at) + 1
            return 0.0
        opening = self._skip(_GROUP)
        found = self._alternatives()
        self.at += 1
        if "x" in (opening["flags"] or "").partition("-")[0]:
            return inf
        if opening["choice"]:
            return 1 + sum(found)
        return _of_any(found)

    def _repeated(self, own: float) -> float:
        """The bits of a part, whose own are given, with the repetition that follows it."""
        self._skip(_COMMENTS)
        found = _REPETITION.match(self.text, self.at)
        if found is None:
            return own
        self.at = found.end()
        if found[0][0] == "{":
            least = int(found[1] or 0)
            most = (int(found[3]) if found[3] else inf) if found[2] else least
        else:
            least, most = (1 if found[0][0] == "+" else 0), (1 if found[0][0] == "?" else inf)
        if most <= _FEW and own < inf:
            return most * own + log2(most - least + 1)
        if own:
            return inf
        return _REPEAT_BITS if most > least else 0.0

    def _skip(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        assert found is not None, self.text
        self.at = found.end()
        return found


def _of_any(alternatives: list[float]) -> float:
    """The bits of a choice of alternatives."""
    return inf if max(alternatives) > MAX_BITS else log2(sum(2.0**bits for bits in alternatives))
