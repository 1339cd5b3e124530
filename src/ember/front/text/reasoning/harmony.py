"""Harmony, the format of gpt-oss: an output is a sequence of messages, each for one channel.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>

The analysis channel is reasoning. A message to a function (`to=functions.f` in its header) is passed on to the tool
parser with its marks. Every other message is content.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

from ember.front.text.output import Content, Delta, Marker, Reasoning
from ember.front.text.reasoning.patterns import normalized

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
CONSTRAIN, END, RETURN, CALL = "<|constrain|>", "<|end|>", "<|return|>", "<|call|>"
MARKS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, RETURN, CALL)
ANALYSIS = f"{CHANNEL}analysis{MESSAGE}"
FINAL = f"{CHANNEL}final{MESSAGE}"
FINAL_JSON = f"{CHANNEL}final {CONSTRAIN}json{MESSAGE}"
ANSWER = f"{START}assistant{FINAL}"  # after the end of the previous message
_ENDS = frozenset((END, RETURN, CALL))
_RECIPIENT = re.compile(r"\bto=functions\.")


class _Body(Enum):
    """The kind of a message's text."""

    ANALYSIS = 0
    CONTENT = 1
    CALL = 2


class HarmonyParser:
    """See `ember.front.text.output.OutputParser`. `opening` are the parts of the message that the prompt has begun."""

    is_settled = False  # another message may begin at any time

    def __init__(self, opening: Sequence[str] = ()) -> None:
        self._header: list[str] | None = []  # None inside a message
        self._body = _Body.CONTENT
        self._has_reasoned = False
        self._separator = ""  # between two messages of reasoning
        self.push(opening)
        self._has_reasoned, self._separator = False, ""

    @property
    def is_reasoning(self) -> bool:
        return self._header is None and self._body is _Body.ANALYSIS

    def push(self, parts: Sequence[str]) -> list[Delta]:
        deltas: list[Delta] = []
        for part in parts:
            if not part:
                continue
            if self._header is not None:
                self._read_header(part, deltas)
            elif type(part) is Marker and (part in _ENDS or part == START):
                if self._body is _Body.CALL and part in _ENDS:
                    deltas.append(Content(part))
                self._header = [part] if part == START else []
                self._separator = "\n" if self._has_reasoned else ""
            elif self._body is _Body.ANALYSIS:
                deltas.append(Reasoning(self._separator + part))
                self._has_reasoned, self._separator = True, ""
            else:
                deltas.append(Content(part))
        return deltas

    def finish(self) -> list[Delta]:
        """Drop a header without a message, unless it is text of a model that does not follow the format."""
        header, self._header = self._header, None
        if not header or CHANNEL in header:
            return []
        text = "".join(part for part in header if type(part) is not Marker).removeprefix("assistant")
        return [Content(text)] if text.strip() else []

    def _read_header(self, part: str, deltas: list[Delta]) -> None:
        assert self._header is not None
        if type(part) is not Marker and not self._header:
            if part.strip():  # not a header: the model does not follow the format
                self._header, self._body = None, _Body.CONTENT
                deltas.append(Content(part.lstrip()))
            return
        if type(part) is Marker and part in _ENDS:
            self._header = []
            return
        self._header.append(part)
        if type(part) is not Marker or part != MESSAGE:
            return
        header, self._header = normalized(self._header), None
        channel = header[header.index(CHANNEL) + 1] if CHANNEL in header[:-1] else ""
        if _RECIPIENT.search("".join(header)):
            self._body = _Body.CALL
            deltas += [Content(item) for item in header]
        else:
            self._body = _Body.ANALYSIS if channel.lstrip().startswith("analysis") else _Body.CONTENT
