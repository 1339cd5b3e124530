"""A sequence: one sample of one request in the engine."""

from __future__ import annotations

import sys
import time
from array import array
from dataclasses import dataclass, field

from ember.engine.core.grammars.constraint import Constraint
from ember.engine.core.state_slots import StateHold
from ember.engine.core.token_counts import TokenCounts
from ember.engine.layers.pooler import Partial
from ember.wire import Pool, SamplingParams, TokenLogprobs

GIVEN_BACK = -1  # entry of a block table: a page before a sliding window, which the sequence has freed


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, pages and progress of a sample. `token_ids`: the prompt, then the sampled tokens."""

    request_id: int
    index: int  # which of the n samples
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    seed: int  # of the sampling noise, which is a function of seed and position
    priority: int
    arrival: int  # order of arrival; older sequences have precedence
    salt: bytes  # root of the prefix hash chain
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0  # time of its first step, on the same clock
    num_preemptions: int = 0
    max_num_tokens: int = sys.maxsize  # of prompt and output, at which it ends by length
    leader: Sequence | None = None  # the sample that computes the shared prompt
    # The pages of each cache group, in tables of equal length, which are read as buffers when the batch is built. Each
    # admission makes a new list. It is empty while the sequence is not running.
    block_tables: list[array[int]] = field(default_factory=list)
    states: StateHold | None = None  # of a running sequence, if layers have states
    first_blocks: list[int] = field(default_factory=list)  # of each table, the entries before it are GIVEN_BACK
    block_hashes: list[bytes] = field(default_factory=list)  # hash chain over the full blocks of token_ids
    num_computed_tokens: int = 0  # tokens whose K and V are in the cache after the launched steps
    num_pending: int = 0  # tokens after token_ids that are being sampled on the device
    num_registered_blocks: int = 0  # full blocks that are published in the prefix cache
    num_cached_tokens: int = -1  # prompt tokens found in the prefix cache at the first admission; -1 before it
    is_prefilled: bool = False  # whether the whole prompt has been computed once
    is_finished: bool = False
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # by position, as far as computed
    token_counts: TokenCounts | None = None  # of sequences with penalties
    grammar: Constraint | None = None  # of sequences with a grammar, or with a budget or marks of reasoning
    held_since: float | None = None  # time since which it is held, because its grammar is late
    pool: Pool | None = None  # the request of a pooling task, which generates nothing
    partial: Partial | None = None  # what its computed chunks left for pooling
    reads_whole_prompt: bool = False  # whether pooling needs the hidden states of every token
    finish_reason: str | None = None  # of a held sequence whose last token was its last by length

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending - self.num_computed_tokens

    @property
    def ends_by_length(self) -> bool:
        """Whether the pending token is its last by length, whatever its value."""
        return self.num_pending > 0 and len(self.token_ids) + self.num_pending >= self.max_num_tokens

    def take_back(self) -> None:
        """Undo the sampling of the pending token. A later step computes the last token again and samples."""
        self.num_pending -= 1
        self.num_computed_tokens -= 1
        self.hold()

    def hold(self) -> None:
        """Leave the sequence out of the next steps until `release`."""
        if self.held_since is None:
            self.held_since = time.monotonic()

    def release(self) -> None:
        self.held_since = None

    @property
    def is_held(self) -> bool:
        return self.held_since is not None

    @property
    def scored_prompt(self) -> list[TokenLogprobs | None] | None:
        """The log probabilities of the prompt's tokens, if requested. The first token has none."""
        return (self.prompt_logprobs or [None]) if self.wants_prompt_logprobs else None

    @property
    def may_skip_prefix(self) -> bool:
        """Whether nothing is needed of the prompt's tokens that are found in the prefix cache."""
        return not (self.wants_prompt_logprobs or self.reads_whole_prompt)

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.sampling.prompt_logprobs is not None
