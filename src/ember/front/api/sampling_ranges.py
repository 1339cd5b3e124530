"""The sampling options that the deployment may have a default for: their ranges, and which value a request gets.

A field of the request wins over the deployment's generation default, and that over the neutral value.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from ember.front.api.schemas import GenerationRequest
from ember.front.errors import bad_request

INT64_MAX = 2**63 - 1


def _penalty_allowed(value: float) -> bool:
    return -2 <= value <= 2


# What a request and the deployment's defaults may say: the test of a value, and its words.
_ALLOWED: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value <= 2, "in [0, 2]"),
    "top_p": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "top_k": (lambda value: value >= -1, "0 (disable), or at least 1"),
    "min_p": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "presence_penalty": (_penalty_allowed, "in [-2, 2]"),
    "frequency_penalty": (_penalty_allowed, "in [-2, 2]"),
    "repetition_penalty": (lambda value: 0 < value < math.inf, "greater than zero"),
}


def in_range(name: str, request: GenerationRequest, defaults: Mapping[str, Any], neutral: float) -> float:
    """The value of the option for this request. Raises ApiError 400 when it is out of range."""
    value = getattr(request, name)
    if value is None:
        value = defaults.get(name)
    if value is None:
        value = neutral
    return check_range(name, value)


def check_range(name: str, value: float) -> float:
    """The value. Raises ApiError 400 when it is out of the option's range."""
    is_fit, allowed = _ALLOWED[name]
    if not is_fit(value):
        raise bad_request(f"{name} must be {allowed}, got {value:g}.", name)
    return value


def checked_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The generation defaults as numbers, which may be written as a request may write them: 20.0 or "20" for 20. None
    stands for unset. Raises ValueError, one line, for the first that cannot be used."""
    checked: dict[str, Any] = {}
    for name, given in defaults.items():
        value: Any = None
        if name == "skip_special_tokens":
            value, allowed = _as_flag(given), "true or false"
        elif name == "max_new_tokens":
            value, allowed = _as_number(given, whole=True), "a whole number of at least 1"
            value = value if value is not None and value >= 1 else None
        elif name in _ALLOWED:
            is_fit, allowed = _ALLOWED[name]
            whole = name == "top_k"
            value = _as_number(given, whole)
            value = value if value is not None and is_fit(value) else None
            allowed = f"a {'whole ' if whole else ''}number, {allowed}"
        else:
            known = ", ".join(["max_new_tokens", *_ALLOWED, "skip_special_tokens"])
            raise ValueError(f"{name[:64]!r} is no sampling default; there are {known}")
        if given is not None and value is None:
            raise ValueError(f"the sampling default {name} must be {allowed}, not {reprlib.repr(given)}")
        checked[name] = value
    return checked


def _as_number(value: Any, whole: bool) -> float | None:
    """Converts a value to a number; None where it is none, or has a fraction and must be whole."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not whole:
        return value
    return int(value) if abs(value) <= INT64_MAX and value == int(value) else None


def _as_flag(value: Any) -> bool | None:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None
