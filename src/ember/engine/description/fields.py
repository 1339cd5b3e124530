"""Reading of the fields of a config.json with their types and ranges. This module does not import torch.

An invalid field is a ModelError of one line that names the field, its value and what is allowed. Absent and null mean
the default of the family's Hugging Face configuration.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from ember.engine.errors import ModelError

MAX_INTEGER = 2**31 - 1
MAX_LAYERS = 10_000  # of a model, and experts of a layer: a larger number is a fault, for which lists would be made
_LARGEST = 1e300
_SHOWN = 8  # names in a message


class Fields:
    """A JSON object of a model's configuration. `prefix`: put before the names of fields in messages."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values = values
        self.prefix = prefix
        self.warnings: list[str] = []  # about fields that are unusual, or may change what is computed

    def integer(self, name: str, default: int | None = None, *, at_least: int = 1, at_most: int = MAX_INTEGER) -> int:
        """An integer in a range. Raises ModelError, as all methods do, also for an absent field without a default."""
        value = self._value(name, default)
        if type(value) is not int or not at_least <= value <= at_most:
            raise self.error(name, f"an integer from {at_least} to {at_most}")
        return value

    def optional_integer(self, name: str, default: int | None) -> int | None:
        """The same, with None for null; an absent field is the default."""
        if name in self.values and self.values[name] is None:
            return None
        return None if name not in self.values and default is None else self.integer(name, default)

    def number(
        self,
        name: str,
        default: float | None = None,
        *,
        above: float = -math.inf,
        at_least: float = -math.inf,
        at_most: float = _LARGEST,
    ) -> float:
        """A finite number in a range."""
        value = self._value(name, default)
        if type(value) not in (int, float) or not (above < value <= at_most and value >= at_least):
            ranges = [f"above {above:g}"] if above > -math.inf else []
            ranges += [f"of at least {at_least:g}"] if at_least > -math.inf else []
            ranges += [f"of at most {at_most:g}"] if at_most < _LARGEST else []
            raise self.error(name, " ".join(["a number", " and ".join(ranges)]).strip())
        return float(value)

    def optional_number(self, name: str, default: float | None, *, above: float = -math.inf) -> float | None:
        """The same, with None for null; an absent field is the default."""
        if self.values.get(name, default) is None:
            return None
        return self.number(name, default, above=above)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.error(name, "text")
        return default if value is None else value

    def one_of(self, name: str, default: str, allowed: Collection[str]) -> str:
        value = self.text(name, default)
        if value not in allowed:
            raise self.error(name, f"one of {', '.join(allowed)}: no other is supported")
        return str(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object; empty if the field is absent or null."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(name, "an object")
        return {} if value is None else value

    def names(self, name: str) -> list[str]:
        """A list of strings; empty if the field is absent or null."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, "a list of names")
        return value

    def flags(self, name: str) -> list[bool] | None:
        """A list of true and false, or of 1 and 0; None if the field is absent or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) in (int, bool) and item in (0, 1) for item in value):
            raise self.error(name, "a list of true and false, or of 1 and 0")
        return [bool(item) for item in value]

    def numbers(self, name: str, count: int, why: str = "") -> tuple[float, ...]:
        """A list of `count` positive finite numbers. `why`: where that number comes from, for the message."""
        value = self._value(name, None)
        if not isinstance(value, list) or len(value) != count:
            raise self.error(name, f"a list of {count} numbers{why}")
        if not all(type(item) in (int, float) and 0 < item < _LARGEST for item in value):
            raise self.error(name, "a list of positive numbers")
        return tuple(float(item) for item in value)

    def unread(self, known: Collection[str]) -> list[str]:
        """The names of fields that are not `known`, with the prefix. Fields that are null are left out."""
        return [self.prefix + name for name, value in self.values.items() if value is not None and name not in known]

    def error(self, name: str, allowed: str) -> ModelError:
        return ModelError(f"{self.prefix}{name} must be {allowed}, not {shown(self.values.get(name))}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None and default is None:
            raise ModelError(f"the field {self.prefix}{name} is missing")
        return default if value is None else value


def shown(value: object) -> str:
    """A value in a message: on one line, and shortened."""
    return ascii(value)[:100] if isinstance(value, str) else ascii(reprlib.repr(value))[1:-1]


def listed(names: Collection[str]) -> str:
    """The first names, and the number of further ones."""
    short = [name if name.isprintable() and len(name) <= 100 else ascii(name)[:100] for name in list(names)[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(short) + more
