"""The numbers of a JSON schema as terminals of a Lark grammar.

A model may generate endless digits, and JSON does not limit a number's length. So each number has at most 19 digits
before the point, as 64-bit integers have, and 17 after it, which distinguish all doubles; more where the schema's own
bounds have more. Exponents are limited to those of a double.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any

DIGITS_BEFORE = 19
DIGITS_AFTER = 17
_EXPONENT = "[eE][+-]?(?:0?[0-9]{1,2}|1[0-9]{2}|2[0-7][0-9])"
_MAX_DIGITS = 400  # of a bound
_MAX_DEPTH = 75  # of groups in an expression; the engine's parser counts three levels for each, and takes 250
_TOO_LONG = "a bound of a number has too many digits; use a bound of at most 70 digits"
_INTEGER_BITS = 63  # width of the grammar compiler's integers in `multipleOf`
_COMMON = 10**15 - 1  # the largest multiple where the schema has no bound

Bound = tuple[Decimal, bool]  # the bound, and whether it is exclusive


def number_terminal(low: Bound | None, high: Bound | None, multiples: list[Decimal], *, is_integer: bool) -> str | None:
    """An expression for the numbers between the bounds; None if there are none. Raises ValueError."""
    for bound in (low, high):
        if bound is not None and (bound[0].adjusted() > _MAX_DIGITS or _places(bound[0]) > _MAX_DIGITS):
            raise ValueError(_TOO_LONG)
    if any(multiple <= 0 for multiple in multiples):
        raise ValueError("`multipleOf` must be greater than 0")
    if is_integer:
        low, high = _whole(low, up=True), _whole(high, up=False)
    if low is not None and high is not None and (low[0], low[1] or high[1]) > (high[0], False):
        return None
    if multiples:
        step = _common_multiple([*multiples, Decimal(1)] if is_integer else multiples)
        if not (is_integer and step == 1):
            return _multiples(step, low, high, is_integer)
    if low is None and high is None:
        plain = rf"-?(?:0|[1-9][0-9]{{0,{DIGITS_BEFORE - 1}}})"
        return f"/{plain}/" if is_integer else rf"/{plain}(?:\.[0-9]{{1,{DIGITS_AFTER}}})?(?:{_EXPONENT})?/"
    made = _between(low, high, is_integer)
    if made is not None and _depth(made) > _MAX_DEPTH:
        raise ValueError(_TOO_LONG)
    return made


def _depth(expression: str) -> int:
    """How deep groups are nested in an expression of this module, which escapes no parentheses."""
    steps = (1 if char == "(" else -1 if char == ")" else 0 for char in expression)
    return max(accumulate(steps), default=0)


def bounds(schema: dict[str, Any]) -> tuple[Bound | None, Bound | None]:
    """The tighter bound on each side, from the keywords of draft 4 and of later drafts. Raises ValueError."""
    low, high = _number(schema, "minimum"), _number(schema, "maximum")
    below: Bound | None = None if low is None else (low, schema.get("exclusiveMinimum") is True)
    above: Bound | None = None if high is None else (high, schema.get("exclusiveMaximum") is True)
    for name, is_low in (("exclusiveMinimum", True), ("exclusiveMaximum", False)):
        value = None if isinstance(schema.get(name), bool) else _number(schema, name)
        if value is not None and is_low:
            below = tighter_low(below, (value, True))
        elif value is not None:
            above = tighter_high(above, (value, True))
    return below, above


def tighter_low(first: Bound | None, second: Bound | None) -> Bound | None:
    if first is None or second is None:
        return first or second
    return max(first, second)


def tighter_high(first: Bound | None, second: Bound | None) -> Bound | None:
    if first is None or second is None:
        return first or second
    return min(first, second, key=lambda bound: (bound[0], not bound[1]))


def _number(schema: dict[str, Any], name: str) -> Decimal | None:
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a number, got {repr(value)[:64]}")
    return Decimal(str(value)) if isinstance(value, float) else Decimal(value)


def multiple_of(schema: dict[str, Any]) -> Decimal | None:
    return _number(schema, "multipleOf")


def _places(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _whole(bound: Bound | None, up: bool) -> Bound | None:
    """Converts a bound of numbers to the inclusive bound of integers."""
    if bound is None:
        return None
    value, is_excluded = bound
    whole = math.ceil(value) if up else math.floor(value)
    if is_excluded and whole == value:
        whole += 1 if up else -1
    return Decimal(whole), False


def _common_multiple(values: list[Decimal]) -> Fraction:
    made = Fraction(values[0])
    for value in values[1:]:
        other = Fraction(value)
        made = Fraction(
            math.lcm(made.numerator * other.denominator, other.numerator * made.denominator),
            made.denominator * other.denominator,
        )
    return made


def _multiples(step: Fraction, low: Bound | None, high: Bound | None, is_integer: bool) -> str | None:
    """The grammar compiler's own automaton for numbers between bounds. It has no exponents."""
    farthest = max(_COMMON, *(math.ceil(abs(bound[0])) * 10 for bound in (low, high) if bound is not None), 0)
    lowest: Bound = low or (Decimal(-farthest), False)
    highest: Bound = high or (Decimal(farthest), False)
    if max(abs(lowest[0]), abs(highest[0])) >= 2**_INTEGER_BITS:
        raise ValueError("bounds of numbers beside `multipleOf` are within 64 bits")
    first, last = math.ceil(Fraction(lowest[0]) / step), math.floor(Fraction(highest[0]) / step)
    first += lowest[1] and first * step == Fraction(lowest[0])
    last -= highest[1] and last * step == Fraction(highest[0])
    if first > last:
        return None
    schema = {
        "type": "integer" if is_integer else "number",
        "multipleOf": _json_number(step),
        "exclusiveMinimum" if lowest[1] else "minimum": _json_number(Fraction(lowest[0])),
        "exclusiveMaximum" if highest[1] else "maximum": _json_number(Fraction(highest[0])),
        "x-guidance": {"whitespace_flexible": False},
    }
    return f"%json {json.dumps(schema)}"


def _json_number(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)


def _between(low: Bound | None, high: Bound | None, is_integer: bool) -> str | None:
    given = [bound[0] for bound in (low, high) if bound is not None]
    digits = max([DIGITS_BEFORE, *(value.adjusted() + 1 for value in given)])
    places = 0 if is_integer else max([DIGITS_AFTER, *(_places(value) + 1 for value in given)])
    zero = (Decimal(0), False)
    parts = []
    if high is None or high >= zero:
        parts.append(_magnitudes(max(low or zero, zero), high, digits, places))
    if low is None or low[0] < 0:
        least: Bound = (-high[0], high[1]) if high is not None and high[0] < 0 else (Decimal(0), True)
        below = _magnitudes(least, None if low is None else (-low[0], low[1]), digits, places)
        parts.append(None if below is None else f"-(?:{below})")
    made = "|".join(part for part in parts if part is not None)
    return f"/{made}/" if made else None


def _magnitudes(low: Bound, high: Bound | None, digits: int, places: int) -> str | None:
    """Numbers without a sign, as one regular expression. An intersection of several would not do: the grammar library
    does not detect the end of its match at once."""
    bottom, below = _cut(low[0])
    top, above = ("9" * digits, "") if high is None else _cut(high[0])
    is_last_excluded = high is not None and high[1]
    anything = rf"(?:\.[0-9]{{1,{places}}})?" if places else ""
    if high is not None and bottom == top:
        return _with_fraction(bottom, _after((below, low[1]), (above, is_last_excluded), places), places)
    # A bound that is itself a whole number needs no digits of its own: what follows its point is free.
    is_whole = not below and not low[1]
    parts = [] if is_whole else [_with_fraction(bottom, _after((below, low[1]), None, places), places)]
    first, last = int(bottom) + (not is_whole), int(top) - (high is not None)
    if first <= last:
        parts.append(f"(?:{_whole_numbers(str(first), str(last))}){anything}")
    if high is not None:
        parts.append(_with_fraction(top, _after(None, (above, is_last_excluded), places), places))
    return "|".join(part for part in parts if part is not None) or None


def _with_fraction(whole: str, after: str | None, places: int) -> str | None:
    """A whole number and the digits after its point. `after` begins with "|" if there may be no digits."""
    if after is None:
        return None
    if not places or after == "|":
        return whole if after.startswith("|") else None
    point = rf"\.(?:{after.removeprefix('|')})"
    return f"{whole}(?:{point})?" if after.startswith("|") else f"{whole}{point}"


Behind = tuple[str, bool]  # the digits of a bound after the point, and whether it is exclusive


def _after(low: Behind | None, high: Behind | None, places: int) -> str | None:
    """The digits after the point of numbers from `low` to `high`, with "|" before them if there may be no digits; None
    if there is no such number."""
    may_end = (low is None or (not low[0] and not low[1])) and (high is None or bool(high[0]) or not high[1])
    rest = _digits_after(low, high, places)
    if rest is None:
        return "|" if may_end else None
    return f"|{rest}" if may_end else rest


@lru_cache(maxsize=512)
def _digits_after(low: Behind | None, high: Behind | None, left: int) -> str | None:
    """An expression for at least one digit after the point; None if no digits fit."""
    if left == 0:
        return None
    if low is None and high is None:
        return f"[0-9]{{1,{left}}}"
    groups: dict[tuple[Behind | None, Behind | None], list[int]] = {}
    for digit in range(10):
        rest_low, rest_high = low, high
        if low is not None:
            least = int(low[0][:1] or 0)
            if digit < least:
                continue
            rest_low = None if digit > least or (len(low[0]) <= 1 and not low[1]) else (low[0][1:], low[1])
        if high is not None:
            most = int(high[0][:1] or 0)
            if digit > most:
                continue
            rest_high = None if digit < most else (high[0][1:], high[1])
        groups.setdefault((rest_low, rest_high), []).append(digit)
    made = []
    for (rest_low, rest_high), found in groups.items():
        rest = _after(rest_low, rest_high, left - 1)
        if rest is None:
            continue
        head = f"[{found[0]}-{found[-1]}]"
        if rest == "|":
            made.append(head)
        else:
            made.append(f"{head}(?:{rest.removeprefix('|')}){'?' if rest.startswith('|') else ''}")
    return "|".join(made) or None


def _whole_numbers(first: str, last: str) -> str:
    """An expression for the whole numbers from `first` to `last`."""
    parts = []
    if len(first) == len(last):
        return _same_length(first, last)
    parts.append(_same_length(first, "9" * len(first)))
    if len(last) - len(first) > 1:
        parts.append(f"[1-9][0-9]{{{len(first)},{len(last) - 2}}}")
    parts.append(_same_length("1" + "0" * (len(last) - 1), last))
    return "|".join(parts)


def _same_length(first: str, last: str) -> str:
    if not first:
        return ""
    size = len(first) - 1
    low, high = int(first[0]), int(last[0])
    if low == high:
        rest = _same_length(first[1:], last[1:])
        return f"{low}(?:{rest})" if "|" in rest else f"{low}{rest}"
    zeros, nines = "0" * size, "9" * size
    parts = []
    if first[1:] != zeros:
        parts.append(f"{low}(?:{_same_length(first[1:], nines)})")
        low += 1
    if last[1:] != nines:
        parts.append(f"{high}(?:{_same_length(zeros, last[1:])})")
        high -= 1
    if low <= high:
        parts.append(f"[{low}-{high}]" + (f"[0-9]{{{size}}}" if size else ""))
    return "|".join(parts)


def _cut(value: Decimal) -> tuple[str, str]:
    """The digits before the point, and those after it without zeros at the end."""
    whole, _, after = f"{value:f}".partition(".")
    return whole.lstrip("0") or "0", after.rstrip("0")
