"""Cohere's citations: marks in the text of an answer, `<co>four</co: 0:[1]>`, that are no part of it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ember.front.text.output import Content, Delta, Marker, Reasoning
from ember.front.text.reasoning.parser import TagParser

_MARK = re.compile(r"</?co(?::[^<>]{0,256})?>")
_BEGUN_MARK = re.compile(r"</?(?:c(?:o(?::[^<>]{0,256})?)?)?\Z")
_LONGEST_MARK = 262
_ACTION, _ACTION_END = "<|START_ACTION|>", "<|END_ACTION|>"


class CitationFilter:
    """A reasoning parser that leaves the marks of citations out of another one's text. Arguments of calls stay as they
    are. See `ember.front.text.output.OutputParser`."""

    def __init__(self, inner: TagParser) -> None:
        self._inner = inner
        self._held = ""  # the end of the text so far, which may become a mark
        self._kind: type[Content] | type[Reasoning] = Content  # of what is held
        self._is_in_action = False

    @property
    def is_reasoning(self) -> bool:
        return self._inner.is_reasoning

    @property
    def is_settled(self) -> bool:
        return self._inner.is_settled

    def push(self, parts: Sequence[str]) -> list[Delta]:
        return self._filtered(self._inner.push(parts))

    def finish(self) -> list[Delta]:
        deltas = self._filtered(self._inner.finish())
        self._release(deltas)
        return deltas

    def _filtered(self, deltas: Sequence[Delta]) -> list[Delta]:
        found: list[Delta] = []
        for delta in deltas:
            assert isinstance(delta, Content | Reasoning)
            kind = type(delta)
            if type(delta.text) is Marker:
                self._release(found)
                self._is_in_action = delta.text == _ACTION or (self._is_in_action and delta.text != _ACTION_END)
                found.append(delta)
                continue
            if kind is not self._kind:
                self._release(found)
            self._kind = kind
            if self._is_in_action:
                found.append(delta)
            elif text := self._without_marks(delta.text):
                found.append(kind(text))
        return found

    def _without_marks(self, text: str) -> str:
        text, self._held = self._held + text, ""
        shown = _MARK.sub("", text)
        begun = _BEGUN_MARK.search(shown, max(0, len(shown) - _LONGEST_MARK))
        if begun is not None:
            shown, self._held = shown[: begun.start()], begun[0]
        return shown

    def _release(self, found: list[Delta]) -> None:
        """What was held back is text."""
        held, self._held = self._held, ""
        if held:
            found.append(self._kind(held))
