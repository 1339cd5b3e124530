"""A format of reasoning: the stage at the end of a prompt, the parser of an output, and `wire.Thinking` for the
engine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from ember.front.text.output import Delta, Marker
from ember.front.text.reasoning import harmony, messages
from ember.front.text.reasoning.choose import choose_name
from ember.front.text.reasoning.citations import CitationFilter
from ember.front.text.reasoning.formats import FORMATS, Tags
from ember.front.text.reasoning.parser import InContentParser, Marks, Stage, TagParser
from ember.front.text.reasoning.patterns import Pattern, pattern_of
from ember.front.text.tokenizer import Tokenizer
from ember.wire import Thinking

# The variables of templates that turn reasoning on or off.
SWITCHES = ("enable_thinking", "thinking")
_BEFORE = ("", "\n", "\n\n", " ", ".", ".\n", ".\n\n")  # texts that may share a token with the start of a textual mark
_SUFFIXED = re.compile("</?think(:[^<>]+)>")
_LONGEST_TAIL = 4096  # tokens at the end of a prompt that may belong to the message that it has begun


class ReasoningParser(Protocol):
    """An `OutputParser` that returns `Reasoning` and `Content`. A `Content` may be a `Marker` for the tool parser."""

    @property
    def is_reasoning(self) -> bool:
        """Whether the last pushed text ends inside reasoning."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether all further ordinary text is content."""
        ...

    def push(self, parts: Sequence[str]) -> list[Delta]: ...

    def finish(self) -> list[Delta]: ...


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The format of a model's reasoning. `choose_reasoning_format` makes one."""

    name: str
    tags: Tags

    def markers(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The tokens that must reach the parser as `Marker`s."""
        return _markers(_fitted(self.tags, tokenizer), tokenizer)

    def parser(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        template_variables: Mapping[str, Any],
        *,
        with_tools: bool,
    ) -> ReasoningParser:
        """The parser of one sample after this prompt. `with_tools`: a tool parser reads its content."""
        if self.tags.is_harmony:
            begun = messages.begun_message(harmony.START, harmony.MARKS, prompt_token_ids, tokenizer)
            return harmony.HarmonyParser(begun)
        if self.tags.frames is not None:
            frames = self.tags.frames
            begun = messages.begun_message(frames.start, frames.marks, prompt_token_ids, tokenizer)
            return messages.MessageParser(frames, begun)
        tags = _fitted(self.tags, tokenizer)
        marks = _marks(tags, tokenizer, with_tools)
        stage = self.stage(tokenizer, prompt_token_ids, template_variables)
        if tags.in_content:
            return InContentParser(marks, tags.starts[0], stage in (Stage.OPENED, Stage.REASONING))
        parser = TagParser(marks, stage)
        return CitationFilter(parser) if tags.has_citations else parser

    def stage(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], template_variables: Mapping[str, Any]
    ) -> Stage:
        """The stage at which the output begins, from the end of the rendered prompt, else the template's variables."""
        tags = _fitted(self.tags, tokenizer)
        tail = _begun_text(prompt_token_ids, tokenizer, _boundaries(tags, tokenizer))
        start = max((_end_of_last(tail, mark.strip()) for mark in tags.starts), default=-1)
        end = max((_end_of_last(tail, mark) for mark in tags.ends), default=-1)
        if start > end:
            return Stage.OPENED if tail[start:].strip() in ("", tags.label.strip()) else Stage.REASONING
        if end >= 0:
            return Stage.ENDED if not tail[end:].strip() else Stage.ANSWER
        if tags.opens and all(template_variables.get(name) is not False for name in SWITCHES):
            return Stage.OPENED
        return Stage.BEFORE

    def thinking(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        template_variables: Mapping[str, Any],
        budget: int | None,
        *,
        with_tools: bool = False,
        with_calls: bool = False,
    ) -> Thinking:
        """The engine's instructions: where a grammar begins after the reasoning, and how to end the reasoning at its
        budget.

        `with_tools`: a tool parser reads the output, so the beginning of a call also ends the reasoning. `with_calls`:
        the grammar has tool calls, and `answer_mark` before an answer.
        """
        if self.tags.is_harmony:
            return _harmony_thinking(tokenizer, budget, with_calls)
        if self.tags.frames is not None:
            return _messages_thinking(self.tags.frames, tokenizer, budget, with_calls)
        stage = self.stage(tokenizer, prompt_token_ids, template_variables)
        tags = _fitted(self.tags, tokenizer)
        end = _encode(tags.ends[0], tokenizer)
        forced = _encode("\n" + tags.ends[0], tokenizer)
        extra = max(len(forced) - len(end), 0)  # the newline counts towards the budget
        if budget is not None:
            forced, budget = (forced, budget - extra) if budget > extra else (end, budget)
        return Thinking(
            end_token_ids=_spellings(tags.ends, tokenizer),
            start_token_ids=_encode(tags.starts[0], tokenizer),
            is_open=stage in (Stage.OPENED, Stage.REASONING),
            is_over=stage in (Stage.ENDED, Stage.ANSWER),
            budget=budget,
            forced_token_ids=forced,
            gap_token_ids=_encode(tags.gap, tokenizer) if tags.gap else [],
            break_token_ids=_openings(tags.broken_by, tokenizer) if with_tools else [],
        )

    @property
    def answer_mark(self) -> str:
        """The mark before an answer, in outputs that may have a call in its place."""
        if self.tags.frames is not None:
            return self.tags.frames.answer
        return harmony.ANSWER if self.tags.is_harmony else ""


def choose_reasoning_format(
    template: str, model_type: str | None, model_name: str, override: str | None
) -> tuple[ReasoningFormat | None, str]:
    """The format (None: no reasoning), and the reason. Raises ValueError for an unknown override."""
    name, why = choose_name(template, model_type, model_name, override)
    return (None if name is None else ReasoningFormat(name, FORMATS[name])), why


# ---------------------------------------------------------------------------------------------- marks of a tokenizer


@lru_cache(maxsize=16)
def _fitted(tags: Tags, tokenizer: Tokenizer) -> Tags:
    """The tags with the suffix of this checkpoint's marks."""
    if not tags.has_suffix:
        return tags
    tokens = (tokenizer.vocab_entry(token_id) or "" for token_id in sorted(tokenizer.added_token_ids))
    suffix = next((match[1] for token in tokens if (match := _SUFFIXED.fullmatch(token))), "")
    starts, ends = (tuple(mark.replace(">", f"{suffix}>") for mark in marks) for marks in (tags.starts, tags.ends))
    return replace(tags, starts=starts, ends=ends)


@lru_cache(maxsize=16)
def _marks(tags: Tags, tokenizer: Tokenizer, with_tools: bool) -> Marks:
    def patterns(texts: Sequence[str]) -> tuple[Pattern, ...]:
        return tuple(pattern_of(text, tokenizer) for text in texts)

    wrapper = None
    if tags.wrapper is not None:
        wrapper = (pattern_of(tags.wrapper[0], tokenizer), pattern_of(tags.wrapper[1], tokenizer))
    breaks = patterns(tags.broken_by) if with_tools else ()
    starts, ends, dropped = patterns(tags.starts), patterns(tags.ends), patterns(tags.dropped)
    return Marks(starts, ends, breaks, wrapper, dropped, tags.label, tags.blanks)


@lru_cache(maxsize=16)
def _markers(tags: Tags, tokenizer: Tokenizer) -> frozenset[int]:
    if tags.is_harmony:
        texts: Sequence[str] = harmony.MARKS
    elif tags.frames is not None:
        texts = tags.frames.marks
    else:
        marks = _marks(tags, tokenizer, True)
        patterns = [*marks.starts, *marks.ends, *marks.breaks, *(marks.wrapper or ()), *marks.dropped]
        texts = [item for pattern in patterns for item in pattern if type(item) is Marker]
    found = (tokenizer.token_id(text) for text in texts)
    return frozenset(token_id for token_id in found if token_id is not None)


@lru_cache(maxsize=16)
def _boundaries(tags: Tags, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens of roles, at which a message of the prompt begins."""
    own = _markers(tags, tokenizer)
    return frozenset(
        token_id
        for token_id in tokenizer.added_token_ids
        if token_id not in own and (tokenizer.vocab_entry(token_id) or "").strip(" \t\r\n▁ĠĊ")
    )


def _begun_text(prompt_token_ids: Sequence[int], tokenizer: Tokenizer, boundaries: frozenset[int]) -> str:
    """The text of the prompt after its last boundary."""
    end = len(prompt_token_ids)
    first = end
    while first > max(0, end - _LONGEST_TAIL) and prompt_token_ids[first - 1] not in boundaries:
        first -= 1
    return tokenizer.decode(prompt_token_ids[first:], skip_special_tokens=False)


def _end_of_last(text: str, mark: str) -> int:
    place = text.rfind(mark)
    return place if place < 0 else place + len(mark)


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _spellings(marks: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokenizations of marks. A textual mark may share its first and last tokens with whitespace around it."""
    texts = [before + mark + behind for mark in marks for before in _BEFORE for behind in ("", "\n", "\n\n")]
    own = [_encode(mark, tokenizer) for mark in marks]
    if all(len(token_ids) == 1 for token_ids in own):
        return own
    found = [*own, *(_encode(text, tokenizer) for text in texts)]
    return [token_ids for place, token_ids in enumerate(found) if token_ids and token_ids not in found[:place]]


def _openings(marks: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokenizations of marks at the start of a text. A textual mark may share its last token with the newline after
    it."""
    found = [_encode(mark + behind, tokenizer) for mark in marks for behind in ("", "\n")]
    whole = [token_ids for token_ids in found if token_ids]
    return [ids for place, ids in enumerate(whole) if not any(ids[: len(other)] == other for other in whole[:place])]


def _harmony_thinking(tokenizer: Tokenizer, budget: int | None, with_calls: bool) -> Thinking:
    """The instructions for Harmony. Everything before the final channel is reasoning, including message headers. A call
    is a message, so if there may be calls the reasoning ends with the first message."""
    ends = (harmony.END,) if with_calls else (harmony.FINAL, harmony.FINAL_JSON)
    forced = harmony.END if with_calls else harmony.END + harmony.ANSWER
    return Thinking(
        end_token_ids=[_encode(text, tokenizer) for text in ends],
        is_open=True,
        budget=budget,
        forced_token_ids=_encode(forced, tokenizer),
    )


def _messages_thinking(frames: messages.Frames, tokenizer: Tokenizer, budget: int | None, with_calls: bool) -> Thinking:
    """The instructions for formats with messages: everything before the answer is reasoning. If calls have a mark of
    their own, the grammar begins with that mark or the answer's; otherwise it begins after the first message."""
    end = frames.ends[0]
    answer, call = _encode(frames.answer, tokenizer), _encode(frames.call, tokenizer) if frames.call else []
    if not with_calls:
        ends, forced = [answer], f"{end}{frames.start}{frames.answer}" if call else end + frames.answer
    else:
        ends, forced = [] if call else [_encode(end, tokenizer)], f"{end}{frames.start}" if call else end
    return Thinking(
        end_token_ids=ends,
        is_open=True,
        budget=budget,
        forced_token_ids=_encode(forced, tokenizer),
        break_token_ids=[call, answer] if with_calls and call else [],
    )
