"""Allocation of pages and states to sequences: one block table per cache group with pages, a slot for the states of all
others, and the lookup of cached prefixes.

Pages before the sliding window of a group are freed while the sequence runs, since no query can reach them. They keep
their content, so a later request may still find them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass

from ember.engine.core.block_pool import BlockPool, chain_hash
from ember.engine.core.sequence import GIVEN_BACK, Sequence
from ember.engine.core.state_slots import StateMove, StateSlots
from ember.engine.description.cache_groups import CacheGroup, paged

MIN_WINDOW_CHUNK = 2048  # tokens, which keep a GPU's matrix products busy


def window_chunk(windows: Items[int]) -> int | None:
    """The most tokens of one sequence in a step of a model with these sliding windows; None: no limit.

    All pages of a chunk are in use during its step. With a chunk much longer than the window, a prompt would hold more
    pages for a layer with the window than the window saves.
    """
    return max(MIN_WINDOW_CHUNK, 4 * min(windows)) if windows else None


@dataclass(slots=True)
class CachedPrefix:
    """Pages that a new sequence can share, for its first `num_blocks` blocks."""

    num_blocks: int
    first_blocks: list[int]  # for each group, the first block that the next token attends to
    blocks: list[list[int]]  # for each group, the pages from that block on; they are not held yet
    num_pages: int = 0  # blocks whose pages are cached, although a state is not


class BlockManager:
    """Allocates the pages of a pool and the slots of states to sequences, and frees them."""

    def __init__(
        self, pool: BlockPool, groups: Items[CacheGroup], block_size: int, states: StateSlots | None = None
    ) -> None:
        """`states`: of a model whose layers have states."""
        self.pool = pool
        self.groups = groups = paged(groups)
        self.states = states
        self.block_size = block_size
        self._windows = [(i, group.window) for i, group in enumerate(groups) if group.window is not None]
        self.has_windows = bool(self._windows)
        self.max_chunk = window_chunk([window for _, window in self._windows])
        self._whole = [i for i, group in enumerate(groups) if group.window is None]

    def find_prefix(self, sequence: Sequence) -> CachedPrefix:
        """The longest prefix of the sequence that need not be computed, because the pages that later tokens attend to
        are cached: in groups without a window all pages of the prefix, in the others those within the window. The last
        token is always computed."""
        length = (sequence.num_tokens - 1) // self.block_size
        self._extend_hashes(sequence, length)
        hashes = sequence.block_hashes
        for group in self._whole:
            cached = self.pool.cached(group)
            length = next((i for i in range(length) if hashes[i] not in cached), length)
        found = num_pages = length
        while length:
            for group, window in self._windows:
                cached = self.pool.cached(group)
                first = self._first_seen(length * self.block_size, window)
                # Without this page, no prefix that ends after it can be used.
                missing = next((i for i in range(length - 1, first - 1, -1) if hashes[i] not in cached), None)
                length = length if missing is None else missing
            if self.states is not None:
                length = self.states.longest(hashes, length)
            if length == found:
                break
            found = length
        firsts = [0] * len(self.groups)
        for group, window in self._windows:
            firsts[group] = self._first_seen(length * self.block_size, window)
        cached_in = map(self.pool.cached, range(len(self.groups)))
        blocks = [
            [cached[each] for each in hashes[first:length]] for cached, first in zip(cached_in, firsts, strict=True)
        ]
        return CachedPrefix(length, firsts, blocks, num_pages)

    def no_prefix(self) -> CachedPrefix:
        """A prefix without blocks."""
        return CachedPrefix(0, [0] * len(self.groups), [[] for _ in self.groups])

    def most_new(self, sequence: Sequence, prefix: CachedPrefix, chunk: int) -> int:
        """The most free pages that the sequence needs at a time, with and after a cached prefix, until all of its
        tokens are computed, at most `chunk` of them per step."""
        pages = 0
        for group, first, blocks in zip(self.groups, prefix.first_blocks, prefix.blocks, strict=True):
            most = group.most_pages(sequence.num_tokens - first * self.block_size, chunk, self.block_size)
            pages += max(0, most - len(blocks)) + sum(map(self.pool.is_free, blocks))
        return pages

    def start(self, sequence: Sequence, prefix: CachedPrefix) -> None:
        """Create the block tables of a sequence, with a cached prefix."""
        for blocks in prefix.blocks:
            self.pool.hold(blocks)
        sequence.block_tables = [
            array("q", [GIVEN_BACK] * first + blocks)
            for first, blocks in zip(prefix.first_blocks, prefix.blocks, strict=True)
        ]
        sequence.first_blocks = prefix.first_blocks
        sequence.num_computed_tokens = prefix.num_blocks * self.block_size
        sequence.num_registered_blocks = prefix.num_blocks
        if self.states is not None:
            borders = ((sequence.num_tokens - 1) // self.block_size, prefix.num_pages)
            checkpoint = sequence.block_hashes[prefix.num_blocks - 1] if prefix.num_blocks else None
            kept = tuple(border * self.block_size for border in borders if border > prefix.num_blocks)
            sequence.states = self.states.start(checkpoint, kept)

    def forget_prefixes(self) -> None:
        """Empty the prefix cache. Sequences keep their pages and states."""
        self.pool.forget_prefixes()
        if self.states is not None:
            self.states.forget_checkpoints()

    def move_states(self, sequence: Sequence, num_tokens: int) -> list[StateMove]:
        """The slots that the sequence's next tokens read and write; empty if no layer has states."""
        if self.states is None or sequence.states is None:
            return []
        return self.states.move(sequence.states, sequence.num_computed_tokens, num_tokens)

    def advance(self, sequence: Sequence, num_tokens: int) -> None:
        """Count the sequence's next tokens as computed, after the launch of their step."""
        sequence.num_computed_tokens += num_tokens
        if self.states is not None and sequence.states is not None:
            self.states.advance(sequence.states)
        self.publish(sequence)

    def num_new(self, sequence: Sequence, num_tokens: int) -> int:
        """The number of pages that the sequence lacks for its next tokens."""
        total = -(-(sequence.num_computed_tokens + num_tokens) // self.block_size)
        return (total - len(sequence.block_tables[0])) * len(self.groups)

    def num_tokens_that_fit(self, sequence: Sequence) -> int:
        """The number of its next tokens that the sequence can compute with the free pages."""
        blocks = len(sequence.block_tables[0]) + self.pool.num_free // len(self.groups)
        return blocks * self.block_size - sequence.num_computed_tokens

    def extend(self, sequence: Sequence, num_tokens: int) -> None:
        """Allocate the pages for the sequence's next tokens, which must be free."""
        total = -(-(sequence.num_computed_tokens + num_tokens) // self.block_size)
        for table in sequence.block_tables:
            while len(table) < total:
                table.append(self.pool.allocate())

    def give_back_unreachable(self, sequence: Sequence) -> None:
        """Free the pages before the windows of the sequence's next token. It is called when a step is scheduled:
        undoing a sampling (`Sequence.take_back`) returns the sequence at most to the start of that step."""
        for group, window in self._windows:
            first, known = self._first_seen(sequence.num_computed_tokens, window), sequence.first_blocks[group]
            if first > known:
                table = sequence.block_tables[group]
                self.pool.release(table[known:first])
                table[known:first] = array("q", [GIVEN_BACK] * (first - known))
                sequence.first_blocks[group] = first

    def publish(self, sequence: Sequence) -> None:
        """Publish the sequence's pages that are full of known tokens, and its states after them."""
        num_full = min(sequence.num_computed_tokens, sequence.num_tokens) // self.block_size
        if num_full > sequence.num_registered_blocks:
            self._extend_hashes(sequence, num_full)
            for group, table in enumerate(sequence.block_tables):
                for i in range(sequence.num_registered_blocks, num_full):
                    if table[i] != GIVEN_BACK:
                        self.pool.publish(table[i], sequence.block_hashes[i], group)
            sequence.num_registered_blocks = num_full
        if self.states is not None and sequence.states is not None and sequence.states.kept:
            self._extend_hashes(sequence, num_full)
            self.states.publish(sequence.states, sequence.block_hashes, num_full * self.block_size)

    def free(self, sequence: Sequence) -> None:
        """Free all pages and states of the sequence."""
        if self.states is not None and sequence.states is not None:
            self.states.free(sequence.states)
            sequence.states = None
        tables = sequence.block_tables
        if len(tables) == 1 and not sequence.first_blocks[0]:
            self.pool.release(tables[0])
        else:
            self.pool.release(
                [block for column in zip(*tables, strict=True) for block in column if block != GIVEN_BACK]
            )
        sequence.block_tables, sequence.first_blocks = [], []
        sequence.num_computed_tokens = 0
        sequence.num_registered_blocks = 0

    def _first_seen(self, position: int, window: int) -> int:
        """The first block that a query at `position` attends to."""
        return max(0, position - window + 1) // self.block_size

    def _extend_hashes(self, sequence: Sequence, num_blocks: int) -> None:
        hashes = sequence.block_hashes
        while len(hashes) < num_blocks:
            start = len(hashes) * self.block_size
            parent = hashes[-1] if hashes else sequence.salt
            hashes.append(chain_hash(parent, sequence.token_ids[start : start + self.block_size]))
