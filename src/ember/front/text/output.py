"""What a model's output is made of, once it has been read: content, reasoning and tool calls, as increments.

Two parsers make it from text, one behind the other: the reasoning parser takes what the detokenizer gives and passes
on what is not reasoning; the tool parser takes that. Both are pushed the same parts, whatever the cuts between them,
and both give the same deltas, joined, for every way of cutting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Marker(str):
    """The text of one special token, kept apart from ordinary text that may be spelled the same.

    A format whose markers are special tokens of the tokenizer looks for them here and nowhere else; where the
    tokenizer has no such token, the marker is looked for in the text.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins. `id` is set where the format brings one."""

    index: int
    name: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the arguments of a call, as JSON text; all of a call's joined are one JSON object."""

    index: int
    text: str


Delta = Content | Reasoning | ToolCallStart | ToolCallArguments


class OutputParser(Protocol):
    """An incremental parser of one sample."""

    def push(self, parts: Sequence[str]) -> list[Delta]:
        """What these parts, ordinary text or `Marker`s, complete. What may still become a marker is held back."""
        ...

    def finish(self) -> list[Delta]:
        """What was held back, at the end of the sample. Never raises, whatever the text."""
        ...
