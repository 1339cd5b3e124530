"""The types of what a program gives: arguments are Python objects here, where a request has JSON."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


def plain(value: Any) -> Any:
    """The value in Python's own types: arrays, tensors, tuples, ranges and sets as lists, and numbers of NumPy and
    PyTorch as numbers, also within a list or a mapping."""
    if callable(convert := getattr(value, "tolist", None)):
        return convert()
    if isinstance(value, list | tuple | range | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    if not isinstance(value, int | float | str | bytes) and hasattr(type(value), "__index__"):
        return operator.index(value)
    return value


def check_options(options: Any) -> None:
    """Convert the options of a dataclass to plain values. Raises ValueError for one that is not of its field's type."""
    kind: Any = type(options)
    for field in fields(options):
        given = getattr(options, field.name)
        if given is field.default:
            continue
        value = plain(given)
        try:
            _adapter(kind, field.name).validate_python(value)
        except ValidationError:
            raise ValueError(f"{field.name} must be {field.type}, got {reprlib.repr(given)}.") from None
        setattr(options, field.name, value)


@cache
def _adapter(kind: Any, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(kind)[name], config=_STRICT)


def check_argument(name: str, value: Any, is_fit: bool, allowed: str) -> None:
    """Raises TypeError, with the argument's name, for a value that is not fit."""
    if not is_fit:
        raise TypeError(f"{name} must be {allowed}, not {type(value).__name__}.")


def check_params(name: str, given: Any, kind: type, *, many: bool = False) -> None:
    """Raises TypeError for what is neither None nor of this kind, nor, with `many`, a list of such."""
    allowed = f"{kind.__name__} or None" + (", or a list of them" if many else "")
    is_list = many and isinstance(given, Sequence) and not isinstance(given, str | bytes)
    for each in given if is_list else [given]:
        check_argument(f"each of {name}" if is_list else name, each, each is None or isinstance(each, kind), allowed)


def check_count(name: str, given: Any) -> None:
    """Raises TypeError and ValueError."""
    check_argument(name, given, type(given) is int, "a whole number")
    if given < 1:
        raise ValueError(f"{name} must be at least 1, got {given}.")
