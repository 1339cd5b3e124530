"""One sample's way from token ids to text: incremental detokenising, stop strings, counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ember.front.errors import ApiError
from ember.front.text.detokenizer import Detokenizer
from ember.front.text.stop import StopStrings
from ember.front.text.tokenizer import Tokenizer
from ember.wire import SequenceOutput, TokenLogprobs


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


@dataclass(slots=True)
class Piece:
    """What is new in one sample; a finish reason makes it the last one."""

    choice: int  # index of the choice in the answer
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Sample:
    """The state of one sample. After `finish_reason` is set nothing more comes out of it."""

    def __init__(
        self, choice: int, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], options: TextOptions
    ) -> None:
        self.choice = choice
        self.num_tokens = 0  # taken: up to and with the one that ended the sample
        self.finish_reason: str | None = None
        self._options = options
        self._eos_token_id = tokenizer.eos_token_id
        self._detokenizer = Detokenizer(
            tokenizer,
            prompt_token_ids,
            skip_special_tokens=options.skip_special_tokens,
            spaces_between_special_tokens=options.spaces_between_special_tokens,
        )
        self._stops = _Stops(options) if options.stop else None

    def push(self, output: SequenceOutput, piece: Piece) -> None:
        """Adds one engine output to the piece. Raises ApiError 500 when the engine reports an error."""
        if self.finish_reason is not None:
            return
        if output.finish_reason == "error":
            raise ApiError(500, output.error or "The engine could not finish this request.")
        hides_last = (
            output.finish_reason == "stop"
            and not self._options.include_stop
            and output.token_ids[-1:] != []
            and output.token_ids[-1] in self._options.end_token_ids
        )
        shown = output.token_ids[:-1] if hides_last else output.token_ids
        if self._stops is None:
            piece.text += self._detokenizer.push(shown)
            if output.finish_reason is not None:
                piece.text += self._detokenizer.flush()
            taken = len(output.token_ids)
        else:
            taken = self._push_until_stop(output, shown, piece)
        self.num_tokens += taken
        piece.token_ids += output.token_ids[:taken]
        if output.logprobs:
            piece.logprobs += output.logprobs[:taken]
        if self.finish_reason is None and output.finish_reason is not None:
            self._finish(piece, output.finish_reason, self._stop_reason(output))

    def close(self, piece: Piece, finish_reason: str) -> None:
        """Ends a sample that the engine left unfinished."""
        piece.text += self._detokenizer.flush()
        if self._stops is not None:
            piece.text += self._stops.flush()
        self._finish(piece, finish_reason, None)

    def _push_until_stop(self, output: SequenceOutput, shown: Sequence[int], piece: Piece) -> int:
        """Token by token, so that what follows a stop string can be left out. Returns how many tokens were taken."""
        assert self._stops is not None
        for position, token_id in enumerate(shown, start=1):
            text, matched = self._stops.push(self._detokenizer.push((token_id,)), self.num_tokens + position)
            piece.text += text
            if matched is not None:
                self._finish(piece, "stop", matched)
                return position
        if output.finish_reason is not None:
            text, matched = self._stops.push(self._detokenizer.flush(), self.num_tokens + len(output.token_ids))
            piece.text += text
            if matched is not None:
                self._finish(piece, "stop", matched)
            else:
                piece.text += self._stops.flush()
        return len(output.token_ids)

    def _stop_reason(self, output: SequenceOutput) -> int | str | None:
        """The ordinary end of a text, the tokenizer's own end token, is no reason; a model may have others."""
        if output.stop_reason == self._eos_token_id and self._eos_token_id not in self._options.stop_token_ids:
            return None
        return output.stop_reason

    def _finish(self, piece: Piece, finish_reason: str, stop_reason: int | str | None) -> None:
        self.finish_reason = piece.finish_reason = finish_reason
        piece.stop_reason = stop_reason


class _Stops:
    """Stop strings that do not count while fewer than `min_tokens` + 1 tokens are there."""

    def __init__(self, options: TextOptions) -> None:
        self._options = options
        self._watch = StopStrings(options.stop, options.include_stop)
        self._held = ""  # pushed and not yet given back; kept only until min_tokens are there

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
