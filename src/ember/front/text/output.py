"""The parts of a parsed output: deltas of content, of reasoning and of tool calls, and the protocol of parsers.

Two parsers run one after the other. The reasoning parser reads the detokenizer's text and passes on what is not
reasoning. The tool parser reads that. The joined deltas of a parser do not depend on how the text is divided into
pushes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Marker(str):
    """The text of one special token, distinguished from equal ordinary text.

    A format whose markers are special tokens of the tokenizer searches only in `Marker`s. Where the tokenizer has no
    such token, the format searches for the marker in the text.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Content:
    """A delta of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A delta of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """The beginning of a tool call. `id` is set if the format has one."""

    index: int
    name: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A delta of a call's arguments as JSON text. All deltas of a call, joined, are one JSON object."""

    index: int
    text: str


Delta = Content | Reasoning | ToolCallStart | ToolCallArguments


class OutputParser(Protocol):
    """An incremental parser of one sample."""

    def push(self, parts: Sequence[str]) -> list[Delta]:
        """The deltas that these parts, ordinary text or `Marker`s, complete. Text that may become a marker is held
        back."""
        ...

    def finish(self) -> list[Delta]:
        """The deltas held back at the end of the sample. This never raises, whatever the text."""
        ...
