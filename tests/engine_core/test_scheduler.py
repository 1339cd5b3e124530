"""The scheduler without a model: budgets, order, preemption, sharing, and conservation of pages."""

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ember.engine.core.block_manager import BlockManager
from ember.engine.core.block_pool import BlockPool, root_hash
from ember.engine.core.limits import EngineLimits
from ember.engine.core.scheduler import HELD_GRACE_S, MAX_PROMPT_LOGPROBS_CHUNK, Scheduler
from ember.engine.core.sequence import Sequence
from ember.engine.description.cache_groups import CacheGroup
from ember.wire import SamplingParams

BLOCK = 4


def make(arrival: int, prompt: list[int], priority: int = 0, leader: Sequence | None = None, **sampling) -> Sequence:
    return Sequence(
        request_id=arrival,
        index=0,
        token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(max_tokens=100, **sampling),
        seed=0,
        priority=priority,
        arrival=arrival,
        salt=root_hash(None),
        leader=leader,
    )


def scheduler(num_blocks: int = 100, max_num_seqs: int = 8, budget: int = 64, policy: str = "fcfs", caching=True):
    limits = EngineLimits(BLOCK, num_blocks, max_num_seqs, budget, max_model_len=num_blocks * BLOCK)
    blocks = BlockManager(BlockPool(num_blocks, caching), [CacheGroup((0,), "full", None, 1)], BLOCK)
    return Scheduler(blocks, limits, policy)


def run_step(scheduler: Scheduler, token: int = 7) -> dict[int, int]:
    """One step with a model that always says `token`. Returns tokens computed per request id."""
    step = scheduler.schedule()
    ends = [s.sequence for s in step if s.num_tokens == s.sequence.num_uncomputed_tokens]
    scheduler.complete(step)
    for sequence in ends:
        sequence.is_prefilled = True
        sequence.token_ids.append(token)
    return {s.sequence.request_id: s.num_tokens for s in step}


def test_whole_texts_wait_for_a_step_in_which_they_fit():
    s = scheduler(budget=10, caching=False)
    s.limits = replace(s.limits, whole_texts=True)
    for arrival, length in enumerate([4, 6, 3, 25, 10, 1, 5]):
        s.add(make(arrival, range(length)))
    steps = []
    while s.has_work:
        step = s.schedule()
        s.complete(step)
        steps.append([scheduled.num_tokens for scheduled in step])
        for scheduled in step:
            s.remove(scheduled.sequence)
    assert steps == [[4, 6], [3], [25], [10], [1, 5]]
    assert s.pool.num_free == s.pool.num_blocks


def test_decodes_go_before_prefills_under_the_budget():
    s = scheduler(budget=10)
    s.add(make(1, range(100, 106)))
    assert run_step(s) == {1: 6}
    s.add(make(2, range(200, 215)))
    assert run_step(s) == {1: 1, 2: 9}
    assert run_step(s) == {1: 1, 2: 6}
    assert run_step(s) == {1: 1, 2: 1}


def test_number_of_running_sequences_is_limited():
    s = scheduler(max_num_seqs=2)
    for i in range(3):
        s.add(make(i, [i, i, i]))
    assert set(run_step(s)) == {0, 1}
    s.remove(s.running[0])
    assert set(run_step(s)) == {1, 2}


def test_priority_policy_orders_admission_and_fcfs_ignores_it():
    for policy, expected in (("priority", [2, 3, 1]), ("fcfs", [1, 2, 3])):
        s = scheduler(policy=policy, max_num_seqs=1)
        s.add(make(1, [1], priority=5))
        s.add(make(2, [2], priority=-1))
        s.add(make(3, [3], priority=0))
        order = []
        while s.has_work:
            (request_id,) = run_step(s)
            order.append(request_id)
            s.remove(s.running[0])
        assert order == expected


def test_common_prefix_is_computed_once():
    s = scheduler()
    prompt = list(range(10))
    s.add(make(1, prompt))
    assert run_step(s) == {1: 10}
    second = make(2, prompt)
    s.add(second)
    assert run_step(s) == {1: 1, 2: 2}
    assert second.num_cached_tokens == 8
    assert s.running[0].block_tables[0][:2] == second.block_tables[0][:2]
    assert (s.counters.prefix_cache_queries, s.counters.prefix_cache_hits) == (20, 8)


def test_the_last_token_is_always_computed():
    s = scheduler()
    prompt = list(range(8))
    s.add(make(1, prompt))
    run_step(s)
    s.remove(s.running[0])
    s.add(make(2, prompt))
    assert run_step(s) == {2: 4}


def test_salt_separates_caches():
    s = scheduler()
    s.add(make(1, range(8)))
    run_step(s)
    other = make(2, range(8))
    other.salt = root_hash("tenant")
    s.add(other)
    assert run_step(s) == {1: 1, 2: 8}


def test_generated_tokens_are_cached_too():
    s = scheduler()
    first = make(1, range(6))
    s.add(first)
    for _ in range(4):
        run_step(s)
    tokens = list(first.token_ids)
    s.remove(first)
    s.add(make(2, [*tokens, 99]))
    assert run_step(s) == {2: len(tokens) + 1 - 8}


def test_samples_of_a_request_share_the_prompt():
    s = scheduler(budget=8)
    leader = make(1, range(12))
    follower = make(2, range(12), leader=leader)
    s.add(leader)
    s.add(follower)
    assert run_step(s) == {1: 8}
    assert run_step(s) == {1: 4}
    assert run_step(s) == {1: 1, 2: 4}
    assert s.pool.num_free == 100 - 5


def test_the_newest_is_preempted_and_comes_back():
    s = scheduler(num_blocks=4, caching=False)
    old, new = make(1, range(7)), make(2, range(50, 57))
    s.add(old)
    s.add(new)
    assert run_step(s) == {1: 7, 2: 7}
    assert run_step(s) == {1: 1, 2: 1}  # both pages are full now
    assert run_step(s) == {1: 1}  # the old one took the new one's pages
    assert s.counters.num_preemptions == 1 and s.waiting == [new] and new.num_computed_tokens == 0
    assert (old.num_preemptions, new.num_preemptions) == (0, 1)
    s.remove(old)
    assert run_step(s) == {2: 9}


def test_a_victim_gives_its_tokens_back_to_the_budget():
    s = scheduler(num_blocks=5, budget=3, caching=False)
    sequences = [make(i, [10 * i, 10 * i + 1, 10 * i + 2]) for i in range(3)]
    for sequence in sequences:
        s.add(sequence)
        run_step(s)
    for _ in range(40):
        step = s.schedule()
        assert 0 < sum(scheduled.num_tokens for scheduled in step) <= 3
        assert all(s_.sequence in s.running for s_ in step)
        s.complete(step)
        for scheduled in step:
            if scheduled.sequence.num_uncomputed_tokens == 0:
                scheduled.sequence.token_ids.append(1)
        for sequence in list(s.running):
            if sequence.num_tokens >= 12:
                s.remove(sequence)
        if not s.has_work:
            break
    assert not s.has_work
    assert s.pool.num_free == 5


def test_prompt_logprobs_skip_the_cache_and_come_in_small_chunks():
    s = scheduler(budget=4 * MAX_PROMPT_LOGPROBS_CHUNK, num_blocks=1000)
    prompt = list(range(MAX_PROMPT_LOGPROBS_CHUNK + 10))
    s.add(make(1, prompt))
    run_step(s)
    s.add(make(2, prompt, prompt_logprobs=1))
    assert run_step(s) == {1: 1, 2: MAX_PROMPT_LOGPROBS_CHUNK}
    assert run_step(s) == {1: 1, 2: 10}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_blocks=st.integers(6, 30),
    budget=st.integers(1, 40),
    max_num_seqs=st.integers(1, 6),
    caching=st.booleans(),
)
def test_random_traffic_finishes_and_leaks_nothing(seed, num_blocks, budget, max_num_seqs, caching):
    rng = random.Random(seed)
    s = scheduler(num_blocks, max_num_seqs, budget, rng.choice(["fcfs", "priority"]), caching)
    pending = []
    for i in range(12):
        length = rng.randint(1, 12)
        pending.append((make(i, [rng.randint(0, 1) for _ in range(length)], rng.randint(-2, 2)), rng.randint(1, 12)))
    limits = {sequence.request_id: sequence.num_tokens + extra for sequence, extra in pending}
    finished = set()
    for _ in range(4000):
        if pending and rng.random() < 0.5:
            s.add(pending.pop()[0])
        step = s.schedule()
        assert sum(x.num_tokens for x in step) <= budget
        assert len(s.running) <= max_num_seqs
        ends = [x.sequence for x in step if x.num_tokens == x.sequence.num_uncomputed_tokens]
        for x in step:
            needed = -(-(x.sequence.num_computed_tokens + x.num_tokens) // BLOCK)
            (table,) = x.sequence.block_tables
            assert len(set(table)) == len(table) >= needed
        s.complete(step)
        for sequence in ends:
            sequence.is_prefilled = True
            sequence.token_ids.append(rng.randint(0, 1))
            if sequence.num_tokens >= limits[sequence.request_id] or rng.random() < 0.03:
                s.remove(sequence)
                finished.add(sequence.request_id)
        if not pending and not s.has_work:
            break
    assert len(finished) == 12
    assert s.pool.num_free == num_blocks


def test_a_sequence_whose_grammar_is_late_gives_its_row_to_one_that_can_go_on():
    s = scheduler(max_num_seqs=2)
    held, other, new = make(1, [1] * 6), make(2, [2] * 6), make(3, [3] * 6)
    s.add(held)
    s.add(other)
    run_step(s)
    held.hold()
    s.add(new)
    assert run_step(s) == {2: 1}, "late for a moment"
    held.held_since -= 2 * HELD_GRACE_S
    assert run_step(s) == {2: 1, 3: 6}
    assert s.waiting == [held] and not held.block_tables
    held.release()
    assert run_step(s) == {2: 1, 3: 1}, "its place is taken now"
    s.remove(other)
    assert run_step(s) == {1: 3, 3: 1}, "what the cache has of it is not computed again"


def test_pages_of_late_sequences_go_first():
    """Also to sequences that run already, and whatever their order."""
    s = scheduler(num_blocks=6, caching=False)
    held, other = make(1, [1] * 8), make(2, [2] * 8)
    s.add(held)
    s.add(other)
    run_step(s)
    held.hold()
    held.held_since -= 2 * HELD_GRACE_S
    for _ in range(9):
        assert run_step(s) == {2: 1}
    assert s.waiting == [held] and s.running == [other]
    s.add(make(3, [3] * 20))
    assert run_step(s) == {2: 1}, "what runs keeps its pages"
