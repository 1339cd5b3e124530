"""The scheduler over cache groups, with a simulated cache: whatever happens, every query finds the K and V that it
looks at, no page is lost or held twice, and everything comes to an end.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.engine.core.block_manager import BlockManager
from ember.engine.core.block_pool import BlockPool, root_hash
from ember.engine.core.limits import EngineLimits
from ember.engine.core.scheduler import HELD_GRACE_S, Scheduled, Scheduler
from ember.engine.core.sequence import GIVEN_BACK, Sequence
from ember.engine.description.cache_groups import CacheGroup, most_pages
from ember.wire import SamplingParams


def groups_of(*windows: int | None) -> list[CacheGroup]:
    return [CacheGroup((i,), "window" if window else "full", window, 1) for i, window in enumerate(windows)]


class Simulation:
    """An engine whose model says a function of the tokens so far, and whose pages know what was written to them."""

    def __init__(
        self,
        windows: tuple[int | None, ...],
        block_size: int = 4,
        num_blocks: int = 1000,
        max_num_seqs: int = 8,
        budget: int = 64,
        policy: str = "fcfs",
        caching: bool = True,
        runs_ahead: bool = False,
        seed: int = 0,
    ) -> None:
        self.groups, self.block_size, self.runs_ahead = groups_of(*windows), block_size, runs_ahead
        self.rng = random.Random(seed)
        self.pool = BlockPool(num_blocks, caching, len(windows))
        limits = EngineLimits(block_size, num_blocks, max_num_seqs, budget, max_model_len=10**6)
        self.scheduler = Scheduler(BlockManager(self.pool, self.groups, block_size), limits, policy)
        self.written: dict[tuple[int, int], tuple[int, int]] = {}  # (page, offset): group, prefix
        self.known: dict[Sequence, list[int]] = {}  # its tokens, those included that the host has not read
        self.launched: list[Sequence] = []
        self.num_arrivals = 0
        self.late = 0.0  # how often a token cannot be drawn

    def add(self, prompt: list[int], max_tokens: int = 100, n: int = 1, priority: int = 0, salt: str | None = None):
        """The samples of a request."""
        leader, samples = None, []
        for index in range(n):
            self.num_arrivals += 1
            sequence = Sequence(
                request_id=self.num_arrivals,
                index=index,
                token_ids=list(prompt),
                num_prompt_tokens=len(prompt),
                sampling=SamplingParams(max_tokens=max_tokens),
                seed=index,
                priority=priority,
                arrival=self.num_arrivals,
                salt=root_hash(salt),
                max_num_tokens=len(prompt) + max_tokens,
                leader=leader if self.pool.enable_prefix_caching else None,
            )
            leader = leader or sequence
            self.known[sequence] = list(prompt)
            self.scheduler.add(sequence)
            samples.append(sequence)
        return samples if n > 1 else samples[0]

    def remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        del self.known[sequence]

    def step(self) -> list[Scheduled]:
        """Schedule, compute, and read the tokens of this step, or of the one before."""
        step = self.scheduler.schedule()
        assert sum(scheduled.num_tokens for scheduled in step) <= self.scheduler.limits.max_num_batched_tokens
        assert all(scheduled.num_tokens > 0 and scheduled.sequence in self.scheduler.running for scheduled in step)
        self.compute(step)
        ends = [s.sequence for s in step if s.num_tokens == s.sequence.num_uncomputed_tokens]
        self.scheduler.complete(step)
        for sequence in ends:
            sequence.num_pending += 1
            self.known[sequence].append(hash((sequence.seed, *self.known[sequence])) % 2)
        before = ends
        if self.runs_ahead:
            before, self.launched = self.launched, ends
        self.read(before, late=0.0 if self.runs_ahead else self.late)
        if self.runs_ahead:
            for sequence in ends:
                if not sequence.is_finished and self.rng.random() < self.late:
                    self.take_back(sequence)
            self.launched = [sequence for sequence in ends if sequence.is_finished or not sequence.is_held]
        self.check_pages()
        return step

    def read(self, sequences: list[Sequence], late: float) -> None:
        for sequence in sequences:
            if sequence.is_finished:
                continue
            if self.rng.random() < late:
                self.take_back(sequence)
                continue
            sequence.num_pending -= 1
            sequence.is_prefilled = True
            sequence.token_ids.append(self.known[sequence][sequence.num_tokens])
            if sequence.num_tokens >= sequence.max_num_tokens:
                self.remove(sequence)

    def take_back(self, sequence: Sequence) -> None:
        self.known[sequence].pop()
        sequence.take_back()

    def compute(self, step: list[Scheduled]) -> None:
        """Write all K and V of the step, then read what each query looks at."""
        for scheduled in step:
            sequence, prefixes = scheduled.sequence, self.prefixes(scheduled.sequence)
            for position in range(sequence.num_computed_tokens, sequence.num_computed_tokens + scheduled.num_tokens):
                for group, table in enumerate(sequence.block_tables):
                    at = table[position // self.block_size], position % self.block_size
                    assert at[0] != GIVEN_BACK
                    self.written[at] = group, prefixes[position]
        for scheduled in step:
            sequence, prefixes = scheduled.sequence, self.prefixes(scheduled.sequence)
            for query in range(sequence.num_computed_tokens, sequence.num_computed_tokens + scheduled.num_tokens):
                for group, table in enumerate(sequence.block_tables):
                    window = self.groups[group].window
                    for position in range(0 if window is None else max(0, query - window + 1), query + 1):
                        at = table[position // self.block_size], position % self.block_size
                        assert self.written[at] == (group, prefixes[position])

    def prefixes(self, sequence: Sequence) -> list[int]:
        """A number for the tokens up to each position."""
        chain, made = hash(sequence.salt), []
        for token_id in self.known[sequence]:
            chain = hash((chain, token_id))
            made.append(chain)
        return made

    def check_pages(self) -> None:
        holders: Counter[int] = Counter()
        group_of: dict[int, int] = {}
        for sequence in self.scheduler.running:
            assert len({len(table) for table in sequence.block_tables}) == 1
            for group, table in enumerate(sequence.block_tables):
                pages = [block for block in table if block != GIVEN_BACK]
                assert len(set(pages)) == len(pages)
                assert list(table[len(table) - len(pages) :]) == pages, "what was given back lies before the rest"
                holders.update(pages)
                for page in pages:
                    assert group_of.setdefault(page, group) == group
        assert not any(sequence.block_tables for sequence in self.scheduler.waiting)
        assert self.pool.num_free == self.pool.num_blocks - len(holders)
        assert all(self.pool._references[page] == count for page, count in holders.items())

    def held(self, sequence: Sequence) -> list[list[int]]:
        """By group, which blocks the sequence holds."""
        return [[i for i, block in enumerate(table) if block != GIVEN_BACK] for table in sequence.block_tables]

    def run(self, max_steps: int = 1000) -> None:
        for _ in range(max_steps):
            if not (self.scheduler.has_work or self.launched):
                return
            self.step()
        raise AssertionError("not at an end")


WINDOWS = [(None,), (5,), (None, 6), (3, None, 9), (None, None, 4), (1,), (8, None)]


@settings(max_examples=150, deadline=None)
@given(
    windows=st.sampled_from(WINDOWS),
    seed=st.integers(0, 10**6),
    block_size=st.sampled_from([1, 2, 4]),
    spare=st.integers(0, 12),
    budget=st.integers(1, 40),
    max_num_seqs=st.integers(1, 6),
    caching=st.booleans(),
    runs_ahead=st.booleans(),
)
def test_random_traffic_reads_what_was_written_and_ends(
    windows, seed, block_size, spare, budget, max_num_seqs, caching, runs_ahead
):
    """Samples, aborts, draws that are late and preemption, in a cache that holds little more than one sequence."""
    rng = random.Random(seed)
    longest = 30
    num_blocks = most_pages(groups_of(*windows), longest, 1, block_size) + spare
    policy = rng.choice(["fcfs", "priority"])
    made = Simulation(windows, block_size, num_blocks, max_num_seqs, budget, policy, caching, runs_ahead, seed)
    made.late = rng.choice([0.0, 0.1])
    shared = [rng.randint(0, 1) for _ in range(longest)]
    left = 8
    for _ in range(5000):
        if left and rng.random() < 0.4:
            left -= 1
            length = rng.randint(1, longest - 8)
            prompt = shared[:length] if rng.random() < 0.6 else [rng.randint(0, 1) for _ in range(length)]
            made.add(prompt, rng.randint(1, 8), rng.choice([1, 1, 3]), rng.randint(-2, 2), rng.choice([None, "salt"]))
        sequences = [*made.scheduler.running, *made.scheduler.waiting]
        for sequence in sequences:
            if sequence.is_held:
                if rng.random() < 0.5:
                    sequence.release()
                elif rng.random() < 0.5:
                    sequence.held_since -= 2 * HELD_GRACE_S
        if sequences and rng.random() < 0.03:
            made.remove(rng.choice(sequences))
        made.step()
        if not left and not made.scheduler.has_work and not made.launched:
            break
    assert not left and not made.scheduler.has_work, "not at an end"
    assert made.pool.num_free == num_blocks


def test_pages_before_the_window_are_given_back_in_decodes_and_between_chunks():
    made = Simulation((None, 8), budget=16)
    sequence = made.add(list(range(40)), 10)
    made.step()
    assert made.held(sequence) == [[0, 1, 2, 3]] * 2
    made.step()
    assert made.held(sequence) == [[0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7]]
    made.step()
    assert made.held(sequence)[1] == [6, 7, 8, 9]
    for _ in range(6):
        made.step()
    assert made.held(sequence) == [list(range(12)), [9, 10, 11]]
    assert made.pool.num_free == 1000 - 12 - 3


def test_a_token_whose_draw_is_undone_finds_its_window():
    """At every place in a page."""
    for length in range(9, 18):
        made = Simulation((8,), budget=16)
        sequence = made.add(list(range(length)), 10)
        for _ in range(8):
            while sequence.num_uncomputed_tokens > 1:
                made.step()
            made.late = 1.0
            made.step()
            made.late = 0.0
            made.scheduler.schedule()  # it is held: nothing is computed, and nothing that it needs is given back
            sequence.release()
            made.step()


@pytest.mark.parametrize("windows", [(6,), (None, 6), (None, 6, 10)])
def test_a_prefix_beyond_the_window_is_found(windows):
    """Also by what the first sequence does not hold any more, until that is evicted."""
    made = Simulation(windows)
    prompt = list(range(100, 139))
    made.add(prompt, 1)
    made.run()
    for length in (39, 30, 13, 9):
        again = made.add(prompt[:length], 1)
        made.step()
        assert again.num_cached_tokens == (length - 1) // 4 * 4
    other = made.add(prompt, 1, salt="other")
    made.step()
    assert other.num_cached_tokens == 0


def test_a_prefix_needs_of_each_group_what_its_window_reaches():
    made = Simulation((None, 6, 11))
    prompt = list(range(100, 141))
    made.add(prompt, 1)
    made.run()
    manager = made.scheduler.blocks
    sequence = made.add(prompt, 1)
    hashes = manager.find_prefix(sequence) and sequence.block_hashes

    def usable(*lost: tuple[int, int]) -> int:
        """Blocks that can be used without those pages: (group, block) each."""
        saved = [dict(cached) for cached in made.pool._block_of]
        for group, block in lost:
            del made.pool._block_of[group][hashes[block]]
        found = manager.find_prefix(sequence)
        made.pool._block_of = saved
        expected = next(
            length
            for length in range(10, -1, -1)
            if not any(
                block < length and (window is None or block >= max(0, length * 4 - window + 1) // 4)
                for group, block in lost
                for window in [made.groups[group].window]
            )
        )
        assert found.num_blocks == expected
        assert [len(blocks) for blocks in found.blocks] == [found.num_blocks - first for first in found.first_blocks]
        return expected

    assert usable() == 10
    assert usable((0, 9)) == 9 and usable((0, 0)) == 0
    assert usable((1, 9)) == 9 and usable((1, 8)) == 8 and usable((1, 7)) == 10
    assert usable((2, 7)) == 7 and usable((2, 6)) == 10
    assert usable((1, 9), (2, 8)) == 8 and usable((0, 8), (1, 7), (2, 5)) == 5
    rng = random.Random(0)
    for _ in range(300):
        usable(*{(rng.randrange(3), rng.randrange(10)) for _ in range(rng.randint(0, 12))})


def test_a_prompt_longer_than_all_pages_runs_alone_in_smaller_steps():
    """A window of 8 tokens needs 4 pages of 4 tokens at most; the budget alone would want 16."""
    made = Simulation((8,), num_blocks=4, budget=64)
    sequence = made.add(list(range(100)), 5)
    counts = []
    while made.scheduler.has_work:
        counts.append(sum(scheduled.num_tokens for scheduled in made.step()))
    assert sum(counts) == 104 and max(counts) <= 16 and counts[0] == 16
    assert not sequence.block_tables and made.pool.num_free == 4


def test_room_for_a_whole_prompt_is_room_for_what_it_holds_at_a_time():
    """Two prompts of 25 pages share 14 pages: each holds those of the window and of a step."""
    made = Simulation((8,), num_blocks=14, budget=16)
    first, second = made.add(list(range(100)), 20), made.add(list(range(200, 300)), 5)
    while not first.is_prefilled:
        made.step()
    made.step()
    assert made.scheduler.running == [first, second]
    made.run()
    assert made.scheduler.counters.num_preemptions == 0


def test_full_and_windowed_groups_share_the_pool_without_a_division():
    """A context of 25 pages runs in 27; in halves it would not."""
    made = Simulation((None, 4), num_blocks=27, budget=64)
    sequence = made.add(list(range(90)), 10)
    made.run()
    assert sequence.num_tokens == 100 and made.pool.num_free == 27
