"""The scheduler: it decides which sequences the next step computes, how many tokens of each, and in which pages.

A step is a flat batch under a token budget. Decoding sequences come first, then prompts in progress, then new ones in
order (arrival, or priority and arrival). A sequence that cannot get a page preempts the newest running one, which frees
its pages and is recomputed later. Most of it is then found in the prefix cache.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from ember.engine.core.block_manager import BlockManager
from ember.engine.core.limits import EngineLimits
from ember.engine.core.sequence import Sequence
from ember.engine.core.state_slots import StateMove

MAX_PROMPT_LOGPROBS_CHUNK = 256  # tokens; bounds the logits [tokens, vocabulary] of requests with prompt_logprobs

# Time after which a held sequence releases its row and pages to others. It does not do so earlier, since it has to
# recompute what has left the prefix cache meanwhile.
HELD_GRACE_S = 0.1


@dataclass(slots=True)
class Scheduled:
    """A part of a step: `num_tokens` tokens of `sequence`, from `sequence.num_computed_tokens` on."""

    sequence: Sequence
    num_tokens: int
    states: list[StateMove] = field(default_factory=list)  # of all the tokens, if layers have states

    @property
    def num_prompt_tokens(self) -> int:
        """The number of these tokens that belong to the prompt. It must be read before `num_computed_tokens`
        changes."""
        left = self.sequence.num_prompt_tokens - self.sequence.num_computed_tokens
        return min(self.num_tokens, left) if left > 0 else 0


@dataclass(slots=True)
class SchedulerCounters:
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0
    num_preemptions: int = 0


class Scheduler:
    """Has the waiting and the running sequences and their pages."""

    def __init__(self, blocks: BlockManager, limits: EngineLimits, policy: str = "fcfs") -> None:
        self.blocks = blocks
        self.pool = blocks.pool
        self.limits = limits
        self.by_priority = policy == "priority"
        self.waiting: list[Sequence] = []  # in scheduling order
        self.running: list[Sequence] = []  # in scheduling order
        self.counters = SchedulerCounters()

    def reset_counters(self) -> None:
        self.counters = SchedulerCounters()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=self._order)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence, finished or not, and free its pages."""
        sequence.is_finished = True
        queue = self.running if sequence in self.running else self.waiting
        if sequence in queue:
            queue.remove(sequence)
        self.blocks.free(sequence)

    def schedule(self) -> list[Scheduled]:
        """The next step, with its pages allocated. It is empty only if the remaining work is to read the tokens of
        earlier steps or to wait for grammars.

        A sequence continues after pending tokens, unless these are its last. A preempted sequence starts again when all
        of its tokens are known.
        """
        budget = self.limits.max_num_batched_tokens
        step: list[Scheduled] = []
        preempted: set[Sequence] = set()
        going_on = [sequence for sequence in self.running if not (sequence.ends_by_length or sequence.is_held)]
        decoding = [sequence for sequence in going_on if sequence.num_uncomputed_tokens == 1]
        prefilling = [sequence for sequence in going_on if sequence.num_uncomputed_tokens > 1]
        if self.blocks.has_windows:
            for sequence in going_on:
                self.blocks.give_back_unreachable(sequence)
        for sequence in decoding + prefilling:
            if budget <= 0:
                break
            if preempted and sequence in preempted:
                continue
            left = self._budget(sequence, budget, bool(step))
            num_tokens = 1 if sequence.num_uncomputed_tokens == 1 else min(self._chunk(sequence), left)
            if self.blocks.num_new(sequence, num_tokens) > 0:
                num_tokens, victims = self._allocate(sequence, num_tokens)
                if victims:
                    preempted.update(victims)
                    budget += sum(scheduled.num_tokens for scheduled in step if scheduled.sequence in victims)
                    step = [scheduled for scheduled in step if scheduled.sequence not in victims]
            if num_tokens:
                step.append(Scheduled(sequence, num_tokens))
                budget -= num_tokens
        position = 0
        while budget > 0 and position < len(self.waiting):
            sequence = self.waiting[position]
            if sequence.num_pending or sequence.is_held or self._waits_for_leader(sequence):
                position += 1
                continue
            left = self._budget(sequence, budget, bool(step))
            num_tokens = self._admit_in_turn(sequence, left) if left else 0
            position = self.waiting.index(sequence, position)  # a held sequence before it may have been removed
            if num_tokens == 0:
                break
            del self.waiting[position]
            step.append(Scheduled(sequence, num_tokens))
            budget -= num_tokens
        if self.blocks.states is not None:
            for scheduled in step:
                scheduled.states = self.blocks.move_states(scheduled.sequence, scheduled.num_tokens)
        return step

    def complete(self, step: list[Scheduled]) -> None:
        """Update the sequences after their step was launched, and publish full pages of known tokens."""
        for scheduled in step:
            self.blocks.advance(scheduled.sequence, scheduled.num_tokens)

    def abandon(self, sequences: Iterable[Sequence]) -> None:
        """Handle sequences whose computed tokens have to be undone: after a step that failed, or whose sampling was
        undone. Pages are written again, but a state cannot go back, so sequences with states are computed again."""
        if self.blocks.states is not None:
            for sequence in sequences:
                if sequence in self.running:
                    self._preempt(sequence)

    def _order(self, sequence: Sequence) -> tuple[int, int]:
        return (sequence.priority if self.by_priority else 0, sequence.arrival)

    def _budget(self, sequence: Sequence, budget: int, has_others: bool) -> int:
        """The tokens of the step that a sequence may take, of the `budget` that is left. A text that is computed whole
        takes all it needs if it is the first, and waits for the next step if it does not fit behind others."""
        if not self.limits.whole_texts or sequence.num_uncomputed_tokens <= budget:
            return budget
        return 0 if has_others else sequence.num_uncomputed_tokens

    def _chunk(self, sequence: Sequence) -> int:
        num_tokens = sequence.num_uncomputed_tokens
        if self.blocks.max_chunk is not None:
            num_tokens = min(num_tokens, self.blocks.max_chunk)
        return min(num_tokens, MAX_PROMPT_LOGPROBS_CHUNK) if sequence.wants_prompt_logprobs else num_tokens

    def _waits_for_leader(self, sequence: Sequence) -> bool:
        """Whether a sample waits for the first sample of its request, which computes the prompt that they share."""
        leader = sequence.leader
        return leader is not None and not (leader.is_prefilled or leader.is_finished)

    def _allocate(self, sequence: Sequence, num_tokens: int) -> tuple[int, set[Sequence]]:
        """Allocate pages for a running sequence's next tokens. Returns the number of tokens, and the preempted
        sequences, which include itself if it is the newest. A sequence that runs alone computes fewer tokens per step
        instead: windows limit its pages, so its prompt may be longer than the pool."""
        victims: set[Sequence] = set()
        while self.pool.num_free < self.blocks.num_new(sequence, num_tokens):
            victim = self._newest_held() or self.running[-1]
            fitting = self.blocks.num_tokens_that_fit(sequence)
            if victim is sequence and len(self.running) == 1 and fitting > 0:
                num_tokens = fitting
                break
            self._preempt(victim)
            victims.add(victim)
            if victim is sequence:
                return 0, victims
        self.blocks.extend(sequence, num_tokens)
        return num_tokens, victims

    def _newest_held(self) -> Sequence | None:
        """The newest running sequence that has been held for its grammar for some time, or None."""
        before = time.monotonic() - HELD_GRACE_S
        late = (each for each in reversed(self.running) if each.held_since is not None and each.held_since < before)
        return next(late, None)

    def _admit_in_turn(self, sequence: Sequence, budget: int) -> int:
        """Admit a sequence if there is room or held sequences can make room. Returns the tokens to compute now; 0: it
        waits."""
        while True:
            num_tokens = self._admit(sequence, budget) if len(self.running) < self.limits.max_num_seqs else 0
            victim = self._newest_held() if num_tokens == 0 else None
            if victim is None:
                return num_tokens
            self._preempt(victim)

    def _admit(self, sequence: Sequence, budget: int) -> int:
        """Start a sequence with its cached prefix. Returns the tokens to compute now; 0: it has to wait."""
        blocks = self.blocks
        uses_cache = self.pool.enable_prefix_caching and sequence.may_skip_prefix
        prefix = blocks.find_prefix(sequence) if uses_cache else blocks.no_prefix()
        # There must be room for the whole prompt although only a chunk is allocated now: partly computed prompts would
        # preempt each other. If nothing is running, waiting would not help.
        chunk = self._chunk(sequence)
        if not self.limits.whole_texts:
            chunk = min(chunk, self.limits.max_num_batched_tokens)
        if self.running and blocks.most_new(sequence, prefix, chunk) > self.pool.num_free:
            return 0
        blocks.start(sequence, prefix)
        num_tokens = min(self._chunk(sequence), budget)
        if blocks.num_new(sequence, num_tokens) > self.pool.num_free:
            num_tokens = 0 if self.running else max(blocks.num_tokens_that_fit(sequence), 0)
            if num_tokens == 0:
                blocks.free(sequence)
                return 0
        bisect.insort(self.running, sequence, key=self._order)
        blocks.extend(sequence, num_tokens)
        if sequence.num_cached_tokens < 0:
            sequence.num_cached_tokens = prefix.num_blocks * blocks.block_size
            sequence.admitted = time.monotonic()
            self.counters.prefix_cache_queries += sequence.num_tokens
            self.counters.prefix_cache_hits += sequence.num_cached_tokens
        return num_tokens

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.free(sequence)
        self.counters.num_preemptions += 1
        sequence.num_preemptions += 1
        if sequence.wants_prompt_logprobs and not sequence.is_prefilled:
            sequence.prompt_logprobs = None
        self.add(sequence)
