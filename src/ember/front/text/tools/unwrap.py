"""Removal of a wrapper around arguments: `{"arguments": {...}}` for a tool that has no such parameter."""

from __future__ import annotations

import json
import re

from ember.front.text.tools.schema import NotPython, Tool, dumps, python_value

WRAPPERS = ("arguments", "input", "properties")
_FIRST_KEY = re.compile(r'\{\s*"(\w+)"')
_BEGUN_KEY = re.compile(r'\{?\s*(?:(?<=[{\s])"(\w*))?')


class Unwrapping:
    """The arguments of one call. They are passed on at once, unless their first name is that of a wrapper: then they
    are held back until they are complete."""

    def __init__(self, tool: Tool, wrappers: tuple[str, ...]) -> None:
        self.is_over = False  # whether all further text is passed on
        self._tool = tool
        self._wrappers = wrappers
        self._held: list[str] = []
        self._is_wrapped = False

    @classmethod
    def of(cls, tool: Tool) -> Unwrapping | None:
        """Make one; None for a tool that declares no parameters, or declares all of the wrappers' names itself."""
        wrappers = tuple(name for name in WRAPPERS if name not in tool.properties)
        return cls(tool, wrappers) if tool.properties and wrappers else None

    def push(self, text: str) -> str:
        """The text that can be passed on."""
        self._held.append(text)
        if self._is_wrapped:
            return ""
        text = "".join(self._held)
        self._held = [text]
        first = _FIRST_KEY.match(text)
        if first is not None and first[1] in self._wrappers:
            self._is_wrapped = True
            return ""
        begun = None if first is not None else _BEGUN_KEY.fullmatch(text)
        if begun is not None and any(name.startswith(begun[1] or "") for name in self._wrappers):
            return ""
        self.is_over = True
        return text

    def finish(self) -> str:
        """The rest, without the wrapper if it contains only declared parameters."""
        text = "".join(self._held)
        if not self._is_wrapped:
            return text
        try:
            arguments = json.loads(text)
            if not isinstance(arguments, dict) or len(arguments) != 1:
                return text
            inner = next(iter(arguments.values()))
            if isinstance(inner, str):
                inner = _value(inner)
            if not isinstance(inner, dict) or not self._tool.properties.keys() >= inner.keys():
                return text
            return dumps(inner)
        except (ValueError, TypeError, RecursionError):  # truncated, or not JSON
            return text


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        value = python_value(text)
        return None if value is NotPython else value
