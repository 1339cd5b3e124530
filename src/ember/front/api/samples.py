"""From the token ids of one sample to its text: incremental detokenising, stop strings, counting."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ember.front.api.repetition import STOP_REASON, Repetition, RepetitionDetector
from ember.front.link.generation import check_output
from ember.front.text.detokenizer import Detokenizer
from ember.front.text.output import Delta, Marker
from ember.front.text.stop import StopStrings
from ember.front.text.tokenizer import Tokenizer
from ember.wire import SequenceOutput, TokenLogprobs

if TYPE_CHECKING:
    from ember.front.api.output_reader import OutputReader, ReaderOptions


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How the output of one request becomes text."""

    stop: Sequence[str] = ()
    include_stop: bool = False  # show the stop string or stop token that ended the sample
    min_tokens: int = 0  # stop strings before that many tokens do not count
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    end_token_ids: frozenset[int] = frozenset()  # EOS and stop ids
    stop_token_ids: frozenset[int] = frozenset()  # those of them the request brought
    repetition: Repetition | None = None
    reader: ReaderOptions | None = None  # tells reasoning and tool calls from content

    def detokenizer(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> Detokenizer:
        """A detokenizer for the text of one sample."""
        return Detokenizer(
            tokenizer,
            prompt_token_ids,
            skip_special_tokens=self.skip_special_tokens,
            spaces_between_special_tokens=self.spaces_between_special_tokens,
        )


@dataclass(slots=True)
class Piece:
    """New output of one sample. The last piece has a finish reason. A piece has deltas instead of text when the text is
    read for reasoning and tool calls."""

    choice: int  # index of the choice in the answer
    text: str = ""
    deltas: list[Delta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    has_content: bool = True  # False when the request demanded tool calls: the answer has no content then

    def extend(self, later: Piece) -> None:
        """Append the next piece of the same choice."""
        self.text += later.text
        self.deltas += later.deltas
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.finish_reason, self.stop_reason = later.finish_reason, later.stop_reason
        self.has_content = self.has_content and later.has_content


class Sample:
    """The state of one sample. After `finish_reason` is set nothing more comes out of it."""

    def __init__(
        self, choice: int, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], options: TextOptions
    ) -> None:
        self.choice = choice
        self.num_tokens = 0  # taken: up to and with the one that ended the sample
        self.num_reasoning_tokens = 0
        self.score = 0.0  # the sum of the log probabilities of all its tokens, where they were asked for
        self.finish_reason: str | None = None
        self._options = options
        self._eos_token_id = tokenizer.eos_token_id
        self._detokenizer = options.detokenizer(tokenizer, prompt_token_ids)
        self._stops = _Stops(options) if options.stop else None
        self._repetition = RepetitionDetector(options.repetition) if options.repetition else None
        self._tokenizer = tokenizer
        self._reader: OutputReader | None = None
        if options.reader is not None:
            self._reader = options.reader.reader_for(prompt_token_ids, options.skip_special_tokens)
        self._unshown: deque[str] = deque()  # parts that the stop strings hold back, where there is a reader

    def push(self, output: SequenceOutput, piece: Piece) -> None:
        """Add one output of the engine to the piece. Raises ApiError when the engine reports an error: a 400 for a
        fault of the request, a 500 for any other."""
        if self.finish_reason is not None:
            return
        check_output(output)
        hides_last = (
            output.finish_reason == "stop"
            and not self._options.include_stop
            and output.token_ids[-1:] != []
            and output.token_ids[-1] in self._options.end_token_ids
        )
        shown = output.token_ids[:-1] if hides_last else output.token_ids
        unseen: list[int] = []
        if self._stops is None and self._repetition is None and (self._reader is None or self._reads_at_once(shown)):
            self._add(self._detokenizer.push(shown), piece)
            if output.finish_reason is not None:
                self._add(self._detokenizer.flush(), piece)
            taken = len(output.token_ids)
        else:
            taken = self._push_one_by_one(output, shown, piece, unseen)
        self.num_tokens += taken
        token_ids, logprobs = output.token_ids[:taken], (output.logprobs or [])[:taken]
        self.score += math.fsum(entry.logprob for entry in logprobs)
        for position in reversed(unseen):
            del token_ids[position : position + 1], logprobs[position : position + 1]
        piece.token_ids += token_ids
        piece.logprobs += logprobs
        if self.finish_reason is None and self._reader is not None and self._reader.is_over:
            self._finish(piece, "stop", None)
        if self.finish_reason is None and output.finish_reason is not None:
            self._finish(piece, output.finish_reason, self._stop_reason(output))
        if self.finish_reason is None and self._reader is not None:
            piece.deltas += self._reader.release()

    def close(self, piece: Piece, finish_reason: str) -> None:
        """End a sample that the engine left unfinished."""
        if self._stops is None:
            self._add(self._detokenizer.flush(), piece)
        else:  # too late for a stop string to count
            held = self._detokenizer.flush()
            self._unshown.append(held)
            self._add(self._stops.flush() + held, piece)
        self._finish(piece, finish_reason, None)

    def _reads_at_once(self, shown: Sequence[int]) -> bool:
        """Whether the reader needs nothing but the text of these tokens."""
        return self._reader is not None and self._reader.is_settled and self._reader.markers.isdisjoint(shown)

    def _push_one_by_one(self, output: SequenceOutput, shown: Sequence[int], piece: Piece, unseen: list[int]) -> int:
        """Add tokens one by one, so that those after a stop string or a repetition are left out and tokens of
        reasoning are counted. Returns the number of tokens taken. `unseen` gets the positions of tokens that the
        client does not see."""
        reader = self._reader
        for position, token_id in enumerate(shown, start=1):
            num_tokens = self.num_tokens + position
            was_reasoning = reader is not None and reader.is_reasoning
            is_over = self._show_token(token_id, num_tokens, piece)
            if reader is not None:
                is_reasoning = reader.is_reasoning
                self.num_reasoning_tokens += was_reasoning and is_reasoning
                if not reader.shows_reasoning and (was_reasoning or is_reasoning):
                    unseen.append(position - 1)
                if reader.is_over and not is_over:
                    self._finish(piece, "stop", None)
                    is_over = True
            if is_over:
                return position
            if self._repetition is not None and self._repetition.push(token_id):
                is_over = output.finish_reason is not None and position == len(output.token_ids)  # by itself
                if num_tokens >= self._options.min_tokens and not is_over:
                    self._flush(num_tokens, piece)
                    if self.finish_reason is None:
                        self._finish(piece, "repetition", STOP_REASON)
                    return position
        if output.finish_reason is not None:
            self._flush(self.num_tokens + len(output.token_ids), piece)
        return len(output.token_ids)

    def _show_token(self, token_id: int, num_tokens: int, piece: Piece) -> bool:
        """Show the text of a token. A token that is a mark for the reader becomes a part of its own."""
        if self._reader is None or token_id not in self._reader.markers:
            return self._show(self._detokenizer.push((token_id,)), num_tokens, piece)
        return self._show(self._detokenizer.flush(), num_tokens, piece) or self._show(
            Marker(self._tokenizer.vocab_entry(token_id) or ""), num_tokens, piece
        )

    def _show(self, text: str, num_tokens: int, piece: Piece) -> bool:
        """Add new text to the piece, up to a stop string. Returns whether a stop string ended the sample."""
        if self._stops is None:
            self._add(text, piece)
            return False
        if self._reader is not None:
            self._unshown.append(text)
        shown, matched = self._stops.push(str(text), num_tokens)
        self._add(shown, piece)
        if matched is not None:
            self._finish(piece, "stop", matched)
        return matched is not None

    def _flush(self, num_tokens: int, piece: Piece) -> None:
        """Show the text that was held back, at the end of the sample. It may contain a stop string."""
        if not self._show(self._detokenizer.flush(), num_tokens, piece) and self._stops is not None:
            self._add(self._stops.flush(), piece)

    def _add(self, text: str, piece: Piece) -> None:
        """Add text that can no longer change."""
        if not text:
            return
        if self._reader is None:
            piece.text += text
        elif self._stops is None:
            piece.deltas += self._reader.push((text,))
        else:
            piece.deltas += self._reader.push(self._parts(len(text)))

    def _parts(self, num_characters: int) -> list[str]:
        """The next characters that the stop strings have released, in parts. A part that is cut is not a marker."""
        parts = []
        while num_characters > 0:
            part = self._unshown.popleft()
            if len(part) > num_characters:
                self._unshown.appendleft(part[num_characters:])
                part = part[:num_characters]
            parts.append(part)
            num_characters -= len(part)
        return parts

    def _stop_reason(self, output: SequenceOutput) -> int | str | None:
        """The stop reason of an output. It is None for the tokenizer's own end token; a model may have other end
        tokens."""
        if output.stop_reason == self._eos_token_id and self._eos_token_id not in self._options.stop_token_ids:
            return None
        return output.stop_reason

    def _finish(self, piece: Piece, finish_reason: str, stop_reason: int | str | None) -> None:
        self.finish_reason = piece.finish_reason = finish_reason
        piece.stop_reason = stop_reason
        if self._reader is not None:
            piece.deltas += self._reader.finish()
            piece.finish_reason = self._reader.finish_reason(finish_reason)
            piece.has_content = not self._reader.is_forced


class _Stops:
    """Stop strings that are ignored until more than `min_tokens` tokens have arrived."""

    def __init__(self, options: TextOptions) -> None:
        self._options = options
        self._watch = StopStrings(options.stop, options.include_stop)
        self._held = ""  # pushed and not yet returned; kept until min_tokens have arrived

    def push(self, text: str, num_tokens: int) -> tuple[str, str | None]:
        if not text:
            return "", None
        shown, matched = self._watch.push(text)
        if num_tokens > self._options.min_tokens:
            self._held = ""
            return shown, matched
        self._held += text
        if matched is not None:  # too early: all of it is plain text, and the search starts anew behind it
            shown, self._held = self._held, ""
            self._watch = StopStrings(self._options.stop, self._options.include_stop)
            return shown, None
        self._held = self._held[len(shown) :]
        return shown, None

    def flush(self) -> str:
        return self._watch.flush()
