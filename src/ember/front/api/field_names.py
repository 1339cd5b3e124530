"""Names the fields of a body in errors of routes that translate their body to that of another route.

The other route checks the translated body, and its errors name fields that the client never sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ember.front.errors import ApiError

_BODY = "body."


class FieldNames:
    """`names` maps the fields of the other route's body to those of the client's body. `functions` maps the fields of a
    function to those of a tool where a tool is not a function in an object."""

    def __init__(self, names: Mapping[str, str], functions: Mapping[str, str] | None = None) -> None:
        self._names = names
        self._functions = functions

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Name the client's fields in the 400s that are raised inside. Raises ApiError."""
        try:
            yield
        except ApiError as error:
            if error.status == 400 and error.param is not None:
                self._rename(error, error.param)
            raise

    def _rename(self, error: ApiError, param: str) -> None:
        field = param.removeprefix(_BODY)
        if field in self._names:
            names = [name for name in self._names if self._names[name] == self._names[field]]
            for name in sorted(names, key=len, reverse=True):
                error.message = re.sub(rf"(?<![\w.]){name}(?![\w])", self._names[name], error.message)
                error.message = error.message.replace(f"{_BODY}{name}'", f"{_BODY}{self._names[name]}'")
            error.param = _BODY * param.startswith(_BODY) + self._names[field]
        elif field == "tools" and self._functions is not None:
            functions = self._functions
            error.message = re.sub(
                r"(tools\.\d+)\.function\.(\w+)",
                lambda found: f"{found[1]}.{functions.get(found[2], found[2])}",
                error.message,
            )
        error.args = (error.message,)
