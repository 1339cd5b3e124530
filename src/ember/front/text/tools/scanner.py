"""The scanner of all tool parsers: it reads a stream that arrives in parts, and collects deltas.

Readers of formats are generators that yield when they need more text. Their decisions depend only on the text and never
on its division into parts, so a stream has the same joined deltas as the whole output at once.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

from ember.front.text.output import Content, Delta, ToolCallArguments, ToolCallStart
from ember.front.text.tools.marks import Finder, Markers
from ember.front.text.tools.schema import Tools, encodable
from ember.front.text.tools.unwrap import Unwrapping

Result = TypeVar("Result")
Steps = Generator[None, None, Result]  # yields for more text; returns a result
_BLANKS = re.compile(r"[ \t\r\n]*")
_LONGEST_MARK = 128
MAX_HEADER = 1024  # characters of a call's header, which is held back until it is complete
# Text that begins like a call and is none is read again as something else. Text may repeat this endlessly, so the
# number of characters read again has a limit: a constant plus a multiple of the output. Beyond it all is content.
FREE_REPEATS = 1 << 16
REPEATS = 4


@dataclass(frozen=True, slots=True)
class _OpenCall:
    """A call of which nothing was released yet, with the state before it."""

    start: int  # position of its text
    num_deltas: int
    blanks: list[str]


class CallScanner:
    """One sample: the text that has not been read, and the deltas that have not been taken."""

    def __init__(self, markers: Markers, tools: Tools, boundaries: Finder) -> None:
        self.tools = tools
        self.markers = markers
        self.boundaries = boundaries  # the marks of the format
        self._open_call: _OpenCall | None = None
        self._unwrapping: Unwrapping | None = None
        self._ids: set[str] = set()
        self.text = ""
        self.at = 0
        self.is_ended = False
        self.num_calls = 0
        self.has_content = False
        self._tried: int | None = None  # start of the text that may not be a call, kept until this is known
        self._num_dropped = 0  # characters before `text`
        self._num_repeated = 0  # characters that were read in vain
        self._blanks: list[str] = []  # whitespace at the end of the content, released when text follows
        self._deltas: list[Delta] = []

    # -------------------------------------------------------------------------------------------------------- in

    def add(self, parts: Sequence[str]) -> None:
        take_in = self.markers.take_in
        first = self._first_kept
        text, self.text = self.text[first:], ""
        text += "".join([take_in(part) for part in parts])  # extended in place, since nothing else refers to the text
        self.text = text
        self.at -= first
        self._num_dropped += first
        if self._tried is not None:
            self._tried -= first
        if self._open_call is not None:
            self._open_call = replace(self._open_call, start=self._open_call.start - first)

    @property
    def _first_kept(self) -> int:
        """The position of the first character that may be read again."""
        if self._open_call is not None:
            return self._open_call.start
        return self.at if self._tried is None else self._tried

    def character(self) -> Steps[str]:
        """The next character without taking it; "" at the end."""
        while self.at >= len(self.text):
            if self.is_ended:
                return ""
            yield
        return self.text[self.at]

    def blanks(self) -> Steps[None]:
        """Skip whitespace."""
        while True:
            found = _BLANKS.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or self.is_ended:
                return
            yield

    def take(self, mark: str) -> Steps[bool]:
        """Take the mark if it is next."""
        while True:
            if self.text.startswith(mark, self.at):
                self.at += len(mark)
                return True
            if self.is_ended or len(self.text) - self.at >= len(mark) or not mark.startswith(self.text[self.at :]):
                return False
            yield

    def take_any(self, marks: Iterable[str]) -> Steps[str | None]:
        """Take the first of the marks that is next."""
        for mark in marks:
            if (yield from self.take(mark)):
                return mark
        return None

    def until(self, finder: Finder, limit: int | None = None) -> Steps[tuple[str, str] | None]:
        """Take the text up to a mark, and the mark. Returns None and takes nothing if there is no mark within the
        limit."""
        seen = 0
        while True:
            if limit is not None and len(self.text) - self.at > limit + _LONGEST_MARK:
                window = self.text[self.at : self.at + limit + _LONGEST_MARK]
                seen, mark = finder.find(window, seen, False)
                place = self.at + seen
            else:
                place, mark = finder.find(self.text, self.at + seen, self.is_ended)
                seen = place - self.at
            if limit is not None and seen > limit:
                self._num_repeated += limit
                return None
            if mark is not None:
                taken = self.text[self.at : place]
                self.at = place + len(mark)
                return taken, mark
            if self.is_ended:
                self._num_repeated += len(self.text) - self.at
                return None
            yield

    # ------------------------------------------------------------------------------------------------------- out

    def keep(self) -> None:
        """Accept the text since `begin`."""
        self._end_call()
        self._tried = None

    @property
    def is_trying(self) -> bool:
        return self._tried is not None

    def begin(self, length: int = 0) -> None:
        """Mark the last `length` characters and the following text as possibly not a call: `go_back` makes them
        content."""
        self._end_call()
        self._tried = self.at - length

    @property
    def num_tried(self) -> int:
        """The number of characters since `begin`, for `return_to`."""
        assert self._tried is not None
        return self.at - self._tried

    def return_to(self, num_tried: int) -> None:
        self._num_repeated += self.num_tried - num_tried
        assert self._tried is not None
        self.at = self._tried + num_tried

    def go_back(self) -> None:
        """Return to the position of `begin`, so that the text is read again as something else."""
        assert self._tried is not None
        self._num_repeated += self.at - self._tried
        self.at = self._tried
        self._tried = None

    def may_repeat(self) -> bool:
        """Whether more text may be read in vain. It must be called at positions that do not depend on the stream's
        parts."""
        return self._num_repeated <= FREE_REPEATS + REPEATS * (self._num_dropped + self.at)

    def call(self, name: str, call_id: str | None = None) -> None:
        """Begin a call. An id that another call of the sample has is ignored."""
        self._end_call()
        if self._tried is not None:
            self._open_call = _OpenCall(self._tried, len(self._deltas), self._blanks)
        self._tried = None
        self._blanks = []
        name = encodable(self.markers.plain(name))
        call_id = None if call_id is None or call_id in self._ids else encodable(call_id)
        if call_id is not None:
            self._ids.add(call_id)
        self._deltas.append(ToolCallStart(self.num_calls, name, call_id))
        self._unwrapping = Unwrapping.of(self.tools.get(name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """Append JSON text to the arguments of the last call."""
        text = self.markers.json_plain(text)
        if self._unwrapping is not None:
            text = self._unwrapping.push(text)
            if self._unwrapping.is_over:
                self._unwrapping = None
        if text:
            self._deltas.append(ToolCallArguments(self.num_calls - 1, text))

    def withdraw(self) -> bool:
        """Take back the last call, so that `go_back` makes it content. Returns False, without effect, if a part of it
        was released."""
        if self._open_call is None:
            return False
        call, self._open_call = self._open_call, None
        self._unwrapping = None
        del self._deltas[call.num_deltas :]
        self._blanks = call.blanks
        self._tried = call.start
        self.num_calls -= 1
        return True

    def _end_call(self) -> None:
        """Note that the last call is complete."""
        self._open_call = None
        if self._unwrapping is not None:
            text, self._unwrapping = self._unwrapping.finish(), None
            if text:
                self._deltas.append(ToolCallArguments(self.num_calls - 1, text))

    def content(self, text: str) -> None:
        """Drop whitespace around calls."""
        if not text:
            return
        text = self.markers.plain(text)
        shown = text.rstrip()
        if shown:
            end = text[len(shown) :]
            shown = "".join([*self._blanks, shown])
            self._blanks = []
            if self.num_calls and not self.has_content:
                shown = shown.lstrip()
            self.has_content = True
            self._deltas.append(Content(shown))
            text = end
        if text:
            self._blanks.append(text)

    def close(self) -> None:
        """Finish the sample."""
        self._end_call()
        if self._blanks and not self.num_calls:
            self._deltas.append(Content("".join(self._blanks)))
        self._blanks = []

    def take_deltas(self, is_released: bool = False) -> list[Delta]:
        """The deltas since the last time, with adjacent ones joined. The deltas of a call that can be taken back are
        returned only if `is_released` or at the end."""
        if self._open_call is not None and not (is_released or self.is_ended):
            num_whole = self._open_call.num_deltas
            deltas, self._deltas = self._deltas[:num_whole], self._deltas[num_whole:]
            self._open_call = replace(self._open_call, num_deltas=0)
        else:
            deltas, self._deltas = self._deltas, []
            self._open_call = None
        if len(deltas) < 2:
            return deltas
        return [_joined(list(run)) for _, run in groupby(deltas, key=_kind)]


def _joined(run: list[Delta]) -> Delta:
    first = run[0]
    if isinstance(first, ToolCallArguments):
        return ToolCallArguments(
            first.index, "".join([delta.text for delta in run if isinstance(delta, ToolCallArguments)])
        )
    if isinstance(first, Content):
        return Content("".join([delta.text for delta in run if isinstance(delta, Content)]))
    return first


def _kind(delta: Delta) -> object:
    """A key that is equal for adjacent deltas that can be joined."""
    return (
        delta.index
        if isinstance(delta, ToolCallArguments)
        else type(delta)
        if isinstance(delta, Content)
        else id(delta)
    )
