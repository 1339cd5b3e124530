"""The parser that splits reasoning from the answer by marks. Newlines that only separate the two belong to neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ember.front.text.output import Content, Delta, Marker, Reasoning
from ember.front.text.reasoning.patterns import Fit, Pattern, Place, begins_with_token, find, fit, normalized, split

MAX_BLANKS = 4096  # characters of whitespace held back for a mark after it


class Stage(Enum):
    """The stage of an output."""

    BEFORE = 0  # only whitespace so far, and the prompt does not tell whether there is reasoning
    OPENED = 1  # only whitespace so far, inside reasoning that the prompt or the format has opened
    LABEL = 2  # inside reasoning, before its optional label
    REASONING = 3
    ENDED = 4  # directly after the reasoning
    ANSWER = 5


@dataclass(frozen=True, slots=True)
class Marks:
    """A format's marks in one tokenizer."""

    starts: tuple[Pattern, ...]
    ends: tuple[Pattern, ...]
    breaks: tuple[Pattern, ...] = ()  # marks that end the reasoning and belong to the answer
    wrapper: tuple[Pattern, Pattern] | None = None
    dropped: tuple[Pattern, ...] = ()  # marks that are removed
    label: str = ""
    blanks: str = "\n"

    @property
    def start_tokens(self) -> tuple[Pattern, ...]:
        """The marks that begin with a special token: they are recognised anywhere."""
        return tuple(pattern for pattern in self.starts if begins_with_token(pattern))

    @property
    def end_tokens(self) -> tuple[Pattern, ...]:
        return tuple(pattern for pattern in self.ends if begins_with_token(pattern))


class TagParser:
    """The reasoning parser of one sample; see `ember.front.text.output.OutputParser`.

    Marks that are tokens begin and end reasoning anywhere in the output. Marks that are text begin it only at the start
    of the output, since an answer may be about them.
    """

    def __init__(self, marks: Marks, stage: Stage) -> None:
        self._marks = marks
        self._in_reasoning = (*marks.ends, *marks.breaks, *marks.start_tokens, *marks.dropped)
        self._in_answer = (*marks.start_tokens, *marks.end_tokens, *marks.dropped)
        self._answers_in_plain_text = all(begins_with_token(pattern) for pattern in marks.dropped)
        self._ends_with_tokens = all(begins_with_token(pattern) for pattern in self._in_reasoning)
        self._wrapper_is_open = False
        self._stage = stage
        self._held: list[str] = []  # parts that may become a mark
        self._newlines = ""  # of the reasoning, or of a wrapped answer; released when text follows
        self._has_reasoned = False
        self._has_shown = False  # whether text of the current reasoning or wrapped answer was released

    @property
    def is_reasoning(self) -> bool:
        return self._stage in (Stage.REASONING, Stage.OPENED, Stage.LABEL)

    @property
    def is_settled(self) -> bool:
        """Whether all further ordinary text is content."""
        if not self._answers_in_plain_text:
            return False
        return self._stage is Stage.ANSWER and not self._held and not self._wrapper_is_open

    def push(self, parts: Sequence[str]) -> list[Delta]:
        if self.is_settled:
            for part in parts:
                if type(part) is Marker and self._in_answer:
                    break
            else:
                return [Content(part) for part in parts if part]
        deltas: list[Delta] = []
        if self._stage is Stage.REASONING and self._ends_with_tokens and not self._held:
            for part in parts:
                if type(part) is Marker:
                    break
            else:
                self._reason(parts, deltas)
                return deltas
        self._held = normalized([*self._held, *parts])
        while self._held and self._step(deltas):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        deltas: list[Delta] = []
        held, self._held = self._held, []
        if self._stage is Stage.LABEL and held and self._marks.label.startswith(held[0]):
            held = held[1:]
        if self.is_reasoning:
            self._reason(held, deltas)
        else:
            self._answer(held, deltas)
            self._newlines = ""
        return deltas

    def _step(self, deltas: list[Delta]) -> bool:
        """Read the held parts. Returns whether more can be read."""
        match self._stage:
            case Stage.BEFORE | Stage.OPENED:
                return self._read_front()
            case Stage.LABEL:
                return self._read_label()
            case Stage.REASONING:
                return self._read_reasoning(deltas)
            case Stage.ENDED:
                return self._read_gap()
            case Stage.ANSWER:
                return self._read_answer(deltas)

    def _read_front(self) -> bool:
        """Read a mark that begins the reasoning, after optional whitespace."""
        place = _behind_blanks(self._held, None)
        is_open = self._stage is Stage.OPENED
        is_too_far = _num_characters(self._held, place) > MAX_BLANKS
        if place[0] == len(self._held) and not is_too_far:
            return False
        for pattern in () if is_too_far else self._marks.starts:
            found, behind = fit(self._held, place, pattern)
            if found is Fit.PARTLY:
                return False
            if found is Fit.WHOLE:
                self._held = split(self._held, behind)[1]
                is_open = True
                break
        self._stage = Stage.LABEL if is_open else Stage.ANSWER
        return True

    def _read_label(self) -> bool:
        """Skip the label of the reasoning, which is not part of its text."""
        first, label = self._held[0], self._marks.label
        if label and type(first) is not Marker:
            if len(first) < len(label) and label.startswith(first) and len(self._held) == 1:
                return False
            if first.startswith(label):
                self._held = split(self._held, (0, len(label)))[1]
        self._stage = Stage.REASONING
        return True

    def _read_reasoning(self, deltas: list[Delta]) -> bool:
        pattern, place, behind = find(self._held, self._in_reasoning)
        before, rest = split(self._held, place)
        self._reason(before, deltas)
        self._held = rest
        if pattern is None:
            return False
        if pattern in self._marks.breaks:
            self._leave_reasoning(Stage.ANSWER)
            return True
        self._held = split(self._held, _relative(behind, place))[1]
        if pattern in self._marks.ends:
            self._leave_reasoning(Stage.ENDED)
        elif pattern in self._marks.starts:
            self._stage = Stage.LABEL
        return True

    def _leave_reasoning(self, stage: Stage) -> None:
        self._newlines = ""
        self._has_shown = False
        self._stage = stage

    def _read_gap(self) -> bool:
        """Read newlines after the reasoning, and the mark that opens the answer if the format has one."""
        self._held = split(self._held, _behind_blanks(self._held, "\n"))[1]
        if not self._held:
            return False
        if self._marks.wrapper is not None and not self._wrapper_is_open:
            place = _behind_blanks(self._held, None)
            is_too_far = _num_characters(self._held, place) > MAX_BLANKS
            if place[0] == len(self._held) and not is_too_far:
                return False
            found, behind = (Fit.NO, place) if is_too_far else fit(self._held, place, self._marks.wrapper[0])
            if found is Fit.PARTLY:
                return False
            if found is Fit.WHOLE:
                self._held = split(self._held, behind)[1]
                self._wrapper_is_open = True
                return True
        self._stage = Stage.ANSWER
        return True

    def _read_answer(self, deltas: list[Delta]) -> bool:
        watched = self._in_answer
        if self._wrapper_is_open and self._marks.wrapper is not None:
            watched = (*watched, self._marks.wrapper[1])
        pattern, place, behind = find(self._held, watched)
        before, rest = split(self._held, place)
        self._answer(before, deltas)
        self._held = rest
        if pattern is None:
            return False
        self._held = split(self._held, _relative(behind, place))[1]
        if pattern in self._marks.dropped:
            return True
        self._newlines = ""
        if self._marks.wrapper is not None and pattern == self._marks.wrapper[1]:
            self._wrapper_is_open = False
        elif pattern in self._marks.starts:
            if self._has_reasoned:
                self._newlines = "\n"
            self._has_shown = False
            self._stage = Stage.LABEL
        else:  # an end mark without a start
            self._stage = Stage.ENDED
        return True

    def _reason(self, parts: Sequence[str], deltas: list[Delta]) -> None:
        for part in parts:
            if text := self._without_trailing_newlines(part):
                self._has_reasoned = True
                deltas.append(Reasoning(text))

    def _answer(self, parts: Sequence[str], deltas: list[Delta]) -> None:
        for part in parts:
            shown = self._without_trailing_newlines(part) if self._wrapper_is_open else part
            if shown:
                deltas.append(Content(shown))

    def _without_trailing_newlines(self, part: str) -> str:
        """Drop leading newlines, and hold back those at the end until text follows. A format's `blanks` are handled in
        the same way."""
        if type(part) is Marker:
            if self._newlines:
                part = self._newlines + part
                self._newlines = ""
            self._has_shown = True
            return part
        text = part if self._has_shown else part.lstrip(self._marks.blanks)
        body = text.rstrip(self._marks.blanks)
        if not body:
            held, self._newlines = self._newlines, ""
            held += text  # extended in place, since nothing else refers to it
            self._newlines = held
            return ""
        shown = self._newlines + body
        self._newlines = text[len(body) :]
        self._has_shown = True
        return shown


class InContentParser:
    """Leaves reasoning in the content, with its marks. A mark that the prompt has written is added at the start."""

    is_reasoning = False
    is_settled = False

    def __init__(self, marks: Marks, start: str, is_open: bool) -> None:
        self._prefix = start if is_open else ""
        self._visible = {item for pattern in (*marks.starts, *marks.ends) for item in pattern if type(item) is Marker}

    def push(self, parts: Sequence[str]) -> list[Delta]:
        deltas: list[Delta] = []
        for part in parts:
            if not part:
                continue
            if self._prefix:
                deltas.append(Content(self._prefix))
                self._prefix = ""
                self.is_settled = not self._visible
            deltas.append(Content(str(part) if part in self._visible else part))
        return deltas

    def finish(self) -> list[Delta]:
        return []


def _relative(place: Place, origin: Place) -> Place:
    """The place relative to the parts that begin at `origin`."""
    return place[0] - origin[0], place[1] - (origin[1] if place[0] == origin[0] else 0)


def _num_characters(parts: Sequence[str], place: Place) -> int:
    """The number of characters before the place."""
    return sum(len(part) for part in parts[: place[0]]) + place[1]


def _behind_blanks(parts: Sequence[str], blanks: str | None) -> Place:
    """The place of the first character that is not one of these (None: not whitespace), or the end."""
    for index, part in enumerate(parts):
        if type(part) is Marker:
            return index, 0
        kept = part.lstrip(blanks)
        if kept:
            return index, len(part) - len(kept)
    return len(parts), 0
