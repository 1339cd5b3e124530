"""Outputs that are sequences of messages with headers: those of Inkling and of Muse.

    <|message_model|><|content_thinking|>...<|end_message|><|message_model|><|content_text|>...<|end_message|>
    <|start|>assistant to=self<|message|>...<|eom|><|start|>assistant to=user<|message|>...<|eot|>

The kind of a message follows from the mark after its header, or from the recipient in the header. A call is passed on
to the tool parser from that mark to its end. Harmony's headers have more fields and a parser of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ember.front.text.output import Content, Delta, Marker, Reasoning
from ember.front.text.tokenizer import Tokenizer

_MAX_HEADER = 512
_LONGEST_TAIL = 4096  # tokens at the end of a prompt that may belong to the message that it has begun


class Body(Enum):
    """The kind of a message's text."""

    REASONING = 0
    CONTENT = 1
    CALL = 2


@dataclass(frozen=True, slots=True)
class Frames:
    """The format of one family's messages. The marks are special tokens."""

    start: str
    bodies: tuple[tuple[str, Body | None], ...]  # marks after a header; None: the recipient decides
    ends: tuple[str, ...]
    header: str  # a regular expression that matches every prefix of a header
    answer: str  # before an answer, after the end of the previous message
    reasoning: str  # before reasoning, for the engine
    call: str = ""  # the mark before a call, if bodies have one
    recipients: tuple[tuple[str, Body], ...] = ()  # any other recipient is a tool

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.start, *(mark for mark, _ in self.bodies), *self.ends)


INKLING = Frames(
    start="<|message_model|>",
    bodies=(
        ("<|content_text|>", Body.CONTENT),
        ("<|content_thinking|>", Body.REASONING),
        ("<|content_invoke_tool_json|>", Body.CALL),
        ("<|content_invoke_tool_text|>", Body.CONTENT),
        ("<|content_tool_error|>", Body.CONTENT),
    ),
    ends=("<|end_message|>", "<|content_model_end_sampling|>"),
    header=r"\s*[\w.\-]*\s*",
    answer="<|content_text|>",
    reasoning="<|content_thinking|>",
    call="<|content_invoke_tool_json|>",
)
MUSE = Frames(
    start="<|start|>",
    bodies=(("<|message|>", None),),
    ends=("<|eom|>", "<|eot|>"),
    header=r"\s*(?:a?|as|ass|assi|assis|assist|assista|assistan|assistant)\s*(?:t|to|to=[\w.\-]*\s*)?",
    answer="<|start|>assistant to=user<|message|>",
    reasoning=" to=self<|message|>",
    recipients=(("self", Body.REASONING), ("user", Body.CONTENT), ("", Body.CONTENT)),
)
_RECIPIENT = re.compile(r"\bto=([\w.\-]+)\s*\Z")
_BARE_HEADER = re.compile(r"[ \t]+(?:t|to|to=[\w.\-]{0,256})?\Z")  # of a message after one without an end mark


class MessageParser:
    """See `ember.front.text.output.OutputParser`. `opening` are the parts of the message that the prompt has begun."""

    is_settled = False  # another message may begin at any time

    def __init__(self, frames: Frames, opening: Sequence[str] = ()) -> None:
        self._frames = frames
        self._bodies = dict(frames.bodies)
        self._may_be_header = re.compile(frames.header)
        self._header: list[str] | None = []  # its text; None inside a message
        self._is_own = False  # whether the model generated the header's mark
        self._body = Body.CONTENT
        self._held = ""  # the end of a text, which may be a header without its mark
        self.push(opening)
        self._is_own = False

    @property
    def is_reasoning(self) -> bool:
        return self._header is None and self._body is Body.REASONING

    def push(self, parts: Sequence[str]) -> list[Delta]:
        deltas: list[Delta] = []
        for part in parts:
            if not part:
                continue
            if type(part) is Marker:
                self._read_mark(part, deltas)
            elif self._header is not None:
                self._header.append(part)
                text = "".join(self._header)
                if len(text) > _MAX_HEADER or self._may_be_header.fullmatch(text) is None:
                    self._header, self._body = None, Body.CONTENT  # the model does not follow the format
                    text = text.lstrip()
                    self._write(text.removeprefix("assistant") if self._frames.recipients else text, deltas)
            else:
                self._write(part, deltas)
        return deltas

    def finish(self) -> list[Delta]:
        """Drop a header without a message, unless it is text of a model that does not follow the format."""
        deltas: list[Delta] = []
        self._release(deltas)
        self._leave_header(deltas)
        return deltas

    def _read_mark(self, mark: Marker, deltas: list[Delta]) -> None:
        frames = self._frames
        if mark in self._bodies:
            if self._header is None:  # the previous message has no end mark
                held, self._held = self._held, ""
                if held.strip() and not _RECIPIENT.search(held):
                    self._emit(held, deltas)
                    held = ""
                self._header = [held]
            self._body = self._body_of(mark, "".join(self._header))
            self._header = None
            if self._body is Body.CALL:
                deltas.append(Content(mark))
        elif mark in frames.ends or mark == frames.start:
            self._release(deltas)
            if self._header is None and self._body is Body.CALL and mark in frames.ends:
                deltas.append(Content(mark))
            if mark in frames.ends:
                self._leave_header(deltas)
            self._header, self._is_own = [], mark == frames.start
        elif self._header is None:
            self._release(deltas)
            self._emit(mark, deltas)

    def _leave_header(self, deltas: list[Delta]) -> None:
        text = "" if self._header is None else "".join(self._header)
        self._header = None
        named = self._frames.recipients and (text.strip() == "assistant" or "to=" in text)
        if text.strip() and not self._is_own and not named:
            deltas.append(Content(text.strip()))

    def _body_of(self, mark: str, header: str) -> Body:
        body = self._bodies[mark]
        if body is not None:
            return body
        found = _RECIPIENT.search(header)
        return dict(self._frames.recipients).get(found[1] if found else "", Body.CALL)

    def _write(self, text: str, deltas: list[Delta]) -> None:
        text, self._held = self._held + text, ""
        begun = _BARE_HEADER.search(text, max(0, len(text) - _MAX_HEADER))
        if begun is not None and self._frames.recipients:
            text, self._held = text[: begun.start()], begun[0]
        self._emit(text, deltas)

    def _release(self, deltas: list[Delta]) -> None:
        held, self._held = self._held, ""
        self._emit(held, deltas)

    def _emit(self, text: str, deltas: list[Delta]) -> None:
        if text:
            deltas.append(Reasoning(text) if self._body is Body.REASONING else Content(text))


def begun_message(
    start_mark: str, all_marks: Sequence[str], prompt_token_ids: Sequence[int], tokenizer: Tokenizer
) -> list[str]:
    """The parts of the message at the end of the prompt, from `start_mark` on, which is one of `all_marks`."""
    marks = {token_id: mark for mark in all_marks if (token_id := tokenizer.token_id(mark)) is not None}
    start = tokenizer.token_id(start_mark)
    tail: list[int] = []
    for token_id in reversed(prompt_token_ids[-_LONGEST_TAIL:]):
        tail.append(token_id)
        if token_id == start:
            break
    else:
        return []
    parts: list[str] = []
    text: list[int] = []
    for token_id in reversed(tail):
        if token_id in marks:
            parts += [tokenizer.decode(text), Marker(marks[token_id])]
            text = []
        else:
            text.append(token_id)
    parts.append(tokenizer.decode(text))
    return [part for part in parts if part]
