"""One sample of one request on its way through the engine."""

from __future__ import annotations

import sys
import time
from array import array
from dataclasses import dataclass, field

from ember.engine.core.grammars.constraint import Constraint
from ember.engine.core.token_counts import TokenCounts
from ember.wire import SamplingParams, TokenLogprobs

GIVEN_BACK = -1  # in a block table: the page before a sliding window that the sequence does not hold


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens, pages and progress. `token_ids` is the prompt followed by what was sampled."""

    request_id: int
    index: int  # which of the n samples
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    seed: int  # of the sampling noise; together with the position it fixes every draw
    priority: int
    arrival: int  # order of arrival; older sequences go first
    salt: bytes  # root of the prefix hash chain
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0  # when it first joined a step, on the same clock
    max_num_tokens: int = sys.maxsize  # prompt and output; there it ends by length
    leader: Sequence | None = None  # the sample that computes the shared prompt first
    # The pages of each cache group, all tables of one length; read as buffers when the batch is built. Another list
    # after each admission; empty while the sequence has no place.
    block_tables: list[array[int]] = field(default_factory=list)
    first_blocks: list[int] = field(default_factory=list)  # of each table, the entries before it are GIVEN_BACK
    block_hashes: list[bytes] = field(default_factory=list)  # chain over the full blocks of token_ids, as far as known
    num_computed_tokens: int = 0  # whose K and V are in the cache, or will be when the launched steps are done
    num_pending: int = 0  # tokens that follow token_ids and are being drawn on the device
    num_registered_blocks: int = 0  # full blocks that are published in the prefix cache
    num_cached_tokens: int = -1  # of the prompt, found in the prefix cache at the first admission; -1 before it
    is_prefilled: bool = False  # the whole prompt has been computed once
    is_finished: bool = False
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # by position, as far as computed
    token_counts: TokenCounts | None = None  # of sequences with penalties
    grammar: Constraint | None = None  # of sequences with a grammar or with reasoning that is watched
    held_since: float | None = None  # no step computes it since then: its grammar is late with a mask or with a token
    finish_reason: str | None = None  # of a held one whose last token was its last by length

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
        """The token that is being drawn is its last, whatever it will be."""
        return self.num_pending > 0 and len(self.token_ids) + self.num_pending >= self.max_num_tokens

    def take_back(self) -> None:
        """Undo the draw of the token that follows `token_ids`: it is drawn in a later step, which computes the last
        token again."""
        self.num_pending -= 1
        self.num_computed_tokens -= 1
        self.hold()

    def hold(self) -> None:
        """Leave the sequence out of the next steps, until `release`."""
        if self.held_since is None:
            self.held_since = time.monotonic()

    def release(self) -> None:
        self.held_since = None

    @property
    def is_held(self) -> bool:
        return self.held_since is not None

    @property
    def scored_prompt(self) -> list[TokenLogprobs | None] | None:
        """The log probabilities of the prompt's tokens, if they are wanted; nothing comes before the first token."""
        return (self.prompt_logprobs or [None]) if self.wants_prompt_logprobs else None

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.sampling.prompt_logprobs is not None
