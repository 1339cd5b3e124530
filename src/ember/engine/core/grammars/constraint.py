"""The constraint of one sample: reasoning up to its budget, then the grammar.

The grammar is evaluated in a process of its own (`grammars.workers`). Its mask may be late, and so may its confirmation
of a token.

A constraint lives as long as its sequence, also across preemptions: sampled tokens are then recomputed, but not sampled
again. It gets every token (`advance`) and is asked for a mask before every restricted sampling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ember.engine.errors import GrammarError
from ember.wire import SamplingParams, Thinking

if TYPE_CHECKING:
    from ember.engine.core.grammars.workers import Matcher

Bits = NDArray[np.int32]  # [words]; bit i of word w stands for token 32 w + i
NOTHING_LEFT = "other options of the request forbid every token that may follow"


class State(Enum):
    """The stage of a sample."""

    UNDECIDED = "the next token either begins reasoning or is the grammar's first"
    REASONING = "inside reasoning"
    ANSWER = "the grammar holds, if there is one"


class Constraint:
    """The state of one sample. Its masks are `num_words` wide."""

    def __init__(
        self, sampling: SamplingParams, matcher: Matcher | None, eos_token_ids: Collection[int], num_words: int
    ) -> None:
        self.num_words = num_words
        self.param = (
            sampling.grammar.param if sampling.grammar else "thinking_token_budget"
        )  # the field that an error names
        self._matcher = matcher
        self._thinking = sampling.thinking
        self._eos_token_ids = list(eos_token_ids)
        self._ignores_eos = sampling.ignore_eos
        self._end_token_ids = [*([] if sampling.ignore_eos else eos_token_ids), *sampling.stop_token_ids]
        self._forced: deque[int] = deque()  # the next tokens, which replace the model's
        self._state_after = State.ANSWER  # after the forced tokens
        self._told: list[int] = []  # tokens that the matcher has not confirmed
        self._num_reasoning_tokens = 0
        self._recent: deque[int] = deque(maxlen=_longest_marker(self._thinking))
        self.state = State.ANSWER
        # Markers that begin calls: the reasoning cannot end with one that the grammar does not allow.
        self._breaks = self._thinking.break_token_ids if self._thinking is not None and matcher is not None else []
        if self._thinking is not None:
            if self._thinking.is_open:
                self.state = State.REASONING
                self._enforce_budget(self._thinking)
            elif matcher is not None and self._thinking.start_token_ids and not self._thinking.is_over:
                self.state = State.UNDECIDED

    @property
    def matcher(self) -> Matcher | None:
        """The sample's matcher, which has its position in the grammar."""
        return self._matcher

    @property
    def is_complete(self) -> bool:
        """Whether the grammar has ended, so that no token can follow."""
        matcher = self._matcher
        return self.state is State.ANSWER and not self._forced and matcher is not None and matcher.is_complete

    @property
    def is_settled(self) -> bool:
        """Whether the grammar's process has confirmed the last token. Raises GrammarError if the grammar does not allow
        it, because other options of the request left none of the allowed tokens, or if the process has failed."""
        matcher = self._matcher
        if matcher is None:
            return True
        if matcher.error is not None:
            raise GrammarError(NOTHING_LEFT if "satisfy the grammar" in matcher.error else matcher.error)
        return matcher.is_settled

    @property
    def needs_mask(self) -> bool:
        """Whether the next token is restricted."""
        return bool(self._forced) or self._matcher is not None

    @property
    def is_ready(self) -> bool:
        """Whether the mask is available, or an error in its place."""
        matcher = self._matcher
        if matcher is None or self._forced or matcher.error is not None:
            return True
        if self.state is State.REASONING:
            return all(tuple(marker) in matcher.accepted for marker in self._breaks)
        return matcher.has_mask

    def _accepts(self, marker: Sequence[int]) -> bool:
        """Whether the grammar can begin with a marker."""
        return self._matcher is None or self._matcher.accepted.get(tuple(marker), False)

    def prepare(self) -> None:
        """Request the next mask, unless this was done before."""
        if self._matcher is not None:
            self._matcher.prepare(self._breaks)

    def close(self) -> None:
        """The sample is over."""
        if self._matcher is not None:
            self._matcher.close()

    def fill(self, bits: Bits) -> None:
        """Write the mask to `bits`. Raises GrammarError if the grammar's process has failed."""
        if self._forced:
            bits[:] = 0
            _set(bits, self._forced[0])
        elif self.state is State.REASONING:  # a sample that ended here would never come to its grammar
            bits[:] = -1
            for token_id in self._end_token_ids:
                _clear(bits, token_id)
            for marker in self._breaks:
                if self._ends_with(marker[:-1]) and not self._accepts(marker):
                    _clear(bits, marker[-1])
        else:
            matcher = self._matcher
            assert matcher is not None
            if matcher.error is not None:
                bits[:] = -1
                raise GrammarError(matcher.error)
            bits[:] = matcher.mask
            if self.state is State.UNDECIDED:
                assert self._thinking is not None
                _set(bits, self._thinking.start_token_ids[0])
            if self._ignores_eos:  # the output goes on while the grammar lets it
                for token_id in self._eos_token_ids:
                    _clear(bits, token_id)
                if not bits.any():  # the end is all that is left
                    _set(bits, self._eos_token_ids[0])

    def advance(self, token_ids: Sequence[int]) -> None:
        """Tell the tokens that a step sampled (without one that ended the sample). Raises GrammarError when one is not
        the one that was to come; `is_settled` says whether the grammar allows them."""
        for token_id in token_ids:
            self._advance(token_id)
        if self._told:  # in one command: the worker answers each command, and the last answer settles
            told, self._told = self._told, []
            assert self._matcher is not None
            self._matcher.advance(told)

    def _advance(self, token_id: int) -> None:
        if self._forced:
            if token_id != self._forced[0]:
                raise GrammarError(NOTHING_LEFT)
            self._forced.popleft()
            if not self._forced:
                self._enter(self._state_after)
            return
        thinking = self._thinking
        if self.state is State.UNDECIDED:
            assert thinking is not None and self._matcher is not None
            if token_id == thinking.start_token_ids[0] and not self._matcher.allows(token_id):
                self._force(thinking.start_token_ids[1:], State.REASONING)
                return
            self.state = State.ANSWER
        if self.state is State.ANSWER and self._matcher is not None:
            self._told.append(token_id)
        elif thinking is not None:
            self._recent.append(token_id)
            self._watch(thinking)

    def _watch(self, thinking: Thinking) -> None:
        """Look for the marker that the last tokens may have completed."""
        if self.state is State.ANSWER:
            if thinking.start_token_ids and self._ends_with(thinking.start_token_ids):
                self._enter(State.REASONING)
        elif any(marker and self._ends_with(marker) for marker in thinking.end_token_ids):
            self._force(thinking.gap_token_ids if self._matcher is not None else [], State.ANSWER)
        elif marker := next((marker for marker in thinking.break_token_ids if self._ends_with(marker)), None):
            self._enter(State.ANSWER)
            if self._matcher is not None:
                self._told += marker
        else:
            self._num_reasoning_tokens += 1
            self._enforce_budget(thinking)

    def _enforce_budget(self, thinking: Thinking) -> None:
        if thinking.budget is not None and self._num_reasoning_tokens >= thinking.budget:
            end = thinking.forced_token_ids or thinking.end_token_ids[0]
            self._force([*end, *(thinking.gap_token_ids if self._matcher is not None else [])], State.ANSWER)

    def _force(self, token_ids: Sequence[int], then: State) -> None:
        self._forced.extend(token_ids)
        self._state_after = then
        if not token_ids:
            self._enter(then)

    def _enter(self, state: State) -> None:
        self.state = state
        self._recent.clear()
        if state is State.REASONING:
            assert self._thinking is not None
            self._enforce_budget(self._thinking)

    def _ends_with(self, marker: Sequence[int]) -> bool:
        """Whether the last tokens are these. No tokens are always the last."""
        return not marker or list(self._recent)[-len(marker) :] == list(marker)


def _longest_marker(thinking: Thinking | None) -> int:
    if thinking is None:
        return 0
    markers = [thinking.start_token_ids, *thinking.end_token_ids, *thinking.break_token_ids]
    return max(len(marker) for marker in markers)


def _set(bits: Bits, token_id: int) -> None:
    bits.view(np.uint32)[token_id >> 5] |= np.uint32(1 << (token_id & 31))


def _clear(bits: Bits, token_id: int) -> None:
    bits.view(np.uint32)[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF)
