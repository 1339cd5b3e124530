"""Regular expressions of a quantization_config, matched with names of modules in bounded time. No torch is imported.

They come from outside, and Python's matcher backtracks: a repetition inside of another takes time that grows
exponentially with the name. Such expressions are refused, and what the others may take together is limited.
"""

from __future__ import annotations

import re
import time
from math import inf, log2
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from ember.engine.description.fields import shown
from ember.engine.errors import ModelError

MAX_LENGTH = 10_000  # characters of an expression
MAX_BITS = 28  # the binary logarithm of the ways that one match may have to try
_REPEAT_BITS = 4.5  # of one repetition: six of them have 2 ** 27 ways to share the 64 characters of a name
MAX_SECONDS = 10.0  # of all matches with the expressions of one field
_FEW = 4  # a repetition of at most so many copies counts as these copies
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)


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
            bits = _bits(_parser.parse(text))
            pattern = re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ModelError(f"{self.field} has {entry}, which is no regular expression: {error}") from None
        if bits > MAX_BITS:
            raise ModelError(
                f"{self.field} has {entry}, a regular expression that may take too long: no repetition may be inside "
                "of another, and there may be few of them beside each other"
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


def _bits(parsed: Any) -> float:
    """The binary logarithm of the number of ways that a match may have to try; infinite for a repetition of a part
    that can itself match in several ways."""
    total = 0.0
    for operation, argument in parsed:
        if operation in _REPEATS:
            least, most, inner = argument
            own = _bits(inner)
            if most <= _FEW:
                total += most * own + log2(most - least + 1)
            elif own:
                return inf
            elif most > least:
                total += _REPEAT_BITS
        elif operation is codes.BRANCH:
            alternatives = [_bits(each) for each in argument[1]]
            most_bits = max(alternatives)
            total += inf if most_bits > MAX_BITS else log2(sum(2.0**bits for bits in alternatives))
        elif operation in (codes.SUBPATTERN, codes.ASSERT, codes.ASSERT_NOT):
            total += _bits(argument[-1])
        elif operation is codes.ATOMIC_GROUP:
            total += _bits(argument)
        elif operation is codes.GROUPREF_EXISTS:
            total += 1 + sum(_bits(part) for part in argument[1:] if part is not None)
    return total
