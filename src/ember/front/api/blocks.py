"""The output of one sample as a row of blocks: reasoning, text and calls, one after the other.

Routes whose answers are lists of items (Anthropic's content blocks, the items of OpenAI's Responses) read the pieces of
a sample through `BlockReader`. White space before a block that is not text is no content: a text block begins with the
first piece that holds anything else.

The log probabilities of a piece belong to the text in it, or to the next text where the piece itself has none because
its text is held back. Those of reasoning and of calls belong to no block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ember.front.api.samples import Piece
from ember.front.text.output import Content, Delta, Reasoning, ToolCallArguments, ToolCallStart
from ember.untrusted_json import UntrustedJsonError, loads_strict
from ember.wire import TokenLogprobs

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    """One block. `parts`, joined, are its text; the arguments as JSON where it is a call."""

    kind: Kind
    index: int  # in the answer
    id: str = ""  # of a call
    name: str = ""  # of a call's function
    parts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of a text block

    @property
    def text(self) -> str:
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class BlockStart:
    """A block begins; the block before it has ended."""

    block: Block


@dataclass(frozen=True, slots=True)
class BlockDelta:
    """A block has more text. The block holds the new part already."""

    block: Block
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockEnd:
    """A block is whole."""

    block: Block


BlockEvent = BlockStart | BlockDelta | BlockEnd


class BlockReader:
    """Turns the pieces of one sample into the events of its blocks. `blocks` are those that have begun."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open: Block | None = None
        self._blank = ""  # white space that may begin a text block
        self._waiting: tuple[TokenLogprobs, ...] = ()  # of text that is still held back
        self._events: list[BlockEvent] = []
        self._has_content = True

    def push(self, piece: Piece) -> list[BlockEvent]:
        """The events of one piece. After the last piece, which has a finish reason, all blocks have ended."""
        self._has_content = piece.has_content
        deltas = _joined(piece.deltas or ((Content(piece.text),) if piece.text else ()))
        logprobs = (*self._waiting, *piece.logprobs)
        is_held = not deltas and (self._open is None or self._open.kind == "text")
        for delta in deltas:
            if isinstance(delta, ToolCallStart):
                self._blank = ""
                self._begin(Block("call", len(self.blocks), delta.id or "", delta.name))
            elif isinstance(delta, ToolCallArguments):
                if delta.text:
                    self._add(delta.text)
            elif isinstance(delta, Reasoning):
                if delta.text:
                    self._in("reasoning")
                    self._add(delta.text)
            elif delta.text and self._has_content:
                logprobs = self._add_content(delta.text, logprobs)
        self._waiting = logprobs if is_held or self._blank else ()
        if piece.finish_reason is not None:
            self._finish()
        events, self._events = self._events, []
        return events

    def _add_content(self, text: str, logprobs: tuple[TokenLogprobs, ...]) -> tuple[TokenLogprobs, ...]:
        """Add content. Returns the log probabilities that no block has taken."""
        if self._open is None or self._open.kind != "text":
            text = self._blank + str(text)
            if not text.strip():
                self._blank = text
                return logprobs
            self._blank = ""
            self._in("text")
        self._add(text, logprobs)
        return ()

    def _in(self, kind: Kind) -> None:
        if self._open is None or self._open.kind != kind:
            self._begin(Block(kind, len(self.blocks)))

    def _begin(self, block: Block) -> None:
        self._end()
        self._open = block
        self.blocks.append(block)
        self._events.append(BlockStart(block))

    def _add(self, text: str, logprobs: tuple[TokenLogprobs, ...] = ()) -> None:
        assert self._open is not None
        self._open.parts.append(text)
        self._open.logprobs += logprobs
        self._events.append(BlockDelta(self._open, text, logprobs))

    def _end(self) -> None:
        if self._open is not None:
            self._events.append(BlockEnd(self._open))
            self._open = None

    def _finish(self) -> None:
        """End the open block. An answer of white space alone is a text block."""
        if self._blank and not any(block.kind in ("text", "call") for block in self.blocks):
            self._in("text")
            self._add(self._blank)
            self._blank = ""
        self._end()


def _joined(deltas: Iterable[Delta]) -> list[Delta]:
    """The deltas with those of content that follow each other as one: the log probabilities are those of all."""
    joined: list[Delta] = []
    for delta in deltas:
        last = joined[-1] if joined else None
        if isinstance(delta, Content) and isinstance(last, Content):
            joined[-1] = Content(last.text + delta.text)
        else:
            joined.append(delta)
    return joined


def whole_blocks(piece: Piece) -> list[Block]:
    """The blocks of a whole answer."""
    reader = BlockReader()
    reader.push(piece)
    return reader.blocks


def arguments_of(call: Block) -> dict[str, Any] | None:
    """The arguments of a call. None where they are no object, which is so where they were cut off."""
    try:
        given = loads_strict(call.text.encode())
    except UntrustedJsonError:
        return None
    return given if isinstance(given, dict) else None


def is_cut(piece: Piece, blocks: Sequence[Block]) -> bool:
    """Whether the last block of a finished sample has no end. A call may be cut by a stop string or an end token, too:
    nobody may take it for one to run."""
    if piece.finish_reason in ("length", "abort", "repetition"):
        return True
    return bool(blocks) and blocks[-1].kind == "call" and arguments_of(blocks[-1]) is None
