"""Models whose layers have states: they say what transformers says, however the engine schedules the work, while slots
that hold no state are filled with NaN. And the slots of states themselves.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ember.engine.core.engine import Engine
from ember.engine.core.memory import Memory, MemoryPlan, plan_memory
from ember.engine.core.state_slots import StateMove, StateSlots
from ember.engine.description.cache_groups import cache_groups, paged, state_bytes
from ember.engine.errors import ModelError
from ember.engine.layers.batch import StateRun
from ember.engine.operators.torch_state import plan_states
from ember.wire import Configure, Generate
from tests.engine_core.inline import greedy, make_engine, poison_states, run, tokens
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny, tiny_config

NUM_OUTPUT = 14
LENGTHS = [1, 2, 8, 9, 60, 131, 87, 131]
VARIANTS = ["qwen3_5", "lfm2", "falcon_h1", "mamba"]


def prompts() -> list[list[int]]:
    """The last two begin as the one before them, up to the middle of a page."""
    rng = random.Random(3)
    made = [[rng.randrange(6, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]
    made[6][:70] = made[5][:70]
    made[7][:100] = made[5][:100]
    return made


def check_empty(engine: Engine) -> None:
    """Nothing is held: every page and every slot is free."""
    stats, slots = engine.stats(), engine.scheduler.blocks.states
    assert stats.num_free_blocks == stats.num_blocks
    assert slots is not None and slots.num_free == slots.num_own + slots.num_checkpoints
    assert not any(slots._holders.values()) and slots._slot_of.keys() == set(slots._hash_of.values())


def answers(engine: Engine, which: Any = range(8), **params: Any) -> list[list[int]]:
    given = prompts()
    outputs = run(engine, [Generate(i, given[i], greedy(NUM_OUTPUT, **params)) for i in which])
    check_empty(engine)
    return [tokens(outputs[i, 0]) for i in which]


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory):
    directory = make_tiny(request.param, tmp_path_factory.mktemp("states"))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    options = {"max_new_tokens": NUM_OUTPUT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            generated = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        expected.append(generated[0, len(prompt) :].tolist())
    return directory, expected


def engine_of(directory: Path, **configure: Any) -> Engine:
    """An engine with few pages, all of which are poisoned before each step."""
    return poison_states(make_engine(directory, **{"num_blocks": 500, **configure}))


@pytest.mark.parametrize("configure", [{}, {"max_num_batched_tokens": 37}, {"max_num_batched_tokens": 8}], ids=str)
def test_together_in_chunks_and_from_the_prefix_cache(case, configure):
    """The second time, all full pages before the last token are shared."""
    directory, expected = case
    engine = engine_of(directory, **configure)
    assert answers(engine) == expected
    hits = engine.stats().prefix_cache_hits
    assert answers(engine) == expected
    assert engine.stats().prefix_cache_hits - hits == sum((length - 1) // 8 * 8 for length in LENGTHS)


def test_alone_and_without_a_prefix_cache(case):
    directory, expected = case
    for configure in ({"enable_prefix_caching": False}, {"state_checkpoints": 0}):
        engine = engine_of(directory, **configure)
        for _ in range(2):
            assert [answers(engine, [i])[0] for i in range(len(LENGTHS))] == expected
        assert engine.stats().prefix_cache_hits == 0


def test_checkpoints_without_a_prefix_cache_or_states_are_named(case):
    configure = Configure(model="", block_size=4, num_blocks=99, state_checkpoints=3, enable_prefix_caching=False)
    engine = engine_of(case[0])
    config = engine.runner.model.config
    groups = cache_groups(config, 4)
    with_states = plan_memory(config, groups, configure, element_size=4, memory=Memory("cpu", 1 << 30))
    assert with_states.limits.num_checkpoints == 0
    assert "STATE_CHECKPOINTS=3 has no effect: ENABLE_PREFIX_CACHING is off" in with_states.warnings
    pages = paged(groups)
    without = plan_memory(config, pages, configure, element_size=4, memory=Memory("cpu", 1 << 30))
    assert "STATE_CHECKPOINTS=3 has no effect: no layer of this model has states" in without.warnings


def test_a_common_beginning_is_shared_from_the_third_prompt_on(case):
    """The second prompt finds pages but no state after them, and leaves one. A hit says what it saved."""
    directory, expected = case
    engine = engine_of(directory)
    hits = []
    for i in (5, 6, 6, 7, 7):
        before = engine.stats().prefix_cache_hits
        assert answers(engine, [i]) == [expected[i]]
        hits.append(engine.stats().prefix_cache_hits - before)
    assert hits == [0, 0, 80, 64, 128]


def test_a_chat_continues_from_the_end_of_its_answer(case):
    """The last state that a decode left at the end of a page is found."""
    directory, expected = case
    engine = engine_of(directory)
    assert answers(engine, [4]) == [expected[4]]
    history = prompts()[4] + expected[4]
    run(engine, [Generate(9, [*history, 7, 8, 9], greedy(2))])
    assert engine.stats().prefix_cache_hits == 72 <= len(history)


def test_few_pages_and_few_slots(case):
    """Sequences are preempted and computed again; checkpoints are replaced."""
    directory, expected = case
    for checkpoints in (1, 2, 5):
        engine = engine_of(directory, num_blocks=19, max_model_len=150, state_checkpoints=checkpoints)
        assert answers(engine) == expected
        assert engine.stats().num_preemptions > 0


def test_samples_share_the_prompt(case):
    directory, expected = case
    engine = engine_of(directory)
    outputs = run(engine, [Generate(1, prompts()[6], greedy(NUM_OUTPUT, n=4))])
    check_empty(engine)
    assert [tokens(outputs[1, index]) for index in range(4)] == [expected[6]] * 4
    assert engine.stats().prefix_cache_hits == 3 * 80


def test_a_failed_step_and_an_undone_sampling_are_computed_again(case):
    """Both have changed states that cannot go back."""
    directory, expected = case
    engine = engine_of(directory)
    runner: Any = engine.runner
    launch, calls = runner.launch, []

    def failing(step: Any) -> Any:
        calls.append(step)
        launched = launch(step)
        if len(calls) == 6:
            raise RuntimeError("can't allocate memory")
        if len(calls) == 9:
            launched.outcome.late |= {0, 1}
        return launched

    runner.launch = failing
    given = prompts()
    for i in range(4, 8):
        engine.add(Generate(i, given[i], greedy(NUM_OUTPUT)))
    outputs: dict[int, list[int]] = {i: [] for i in range(4, 8)}
    failed = []
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id] += output.token_ids
            failed += [output.request_id] if output.error else []
        for sequence in engine._held:
            sequence.release()
        engine._held.clear()
    check_empty(engine)
    assert len(failed) == 1
    assert {i: outputs[i] for i in outputs if i not in failed} == {i: expected[i] for i in outputs if i not in failed}


def test_nothing_is_left_of_many_requests(case):
    """In random order, with aborts in the middle, on few pages and slots."""
    directory, expected = case
    engine = engine_of(directory, num_blocks=70, max_model_len=160, max_num_seqs=7, state_checkpoints=9)
    rng, given = random.Random(5), prompts()
    made: dict[int, list[int]] = {}
    chosen: dict[int, int] = {}
    while len(made) < 200 or engine.has_work:
        while len(made) < 200 and rng.random() < 0.4:
            number, which = len(made), rng.randrange(len(given))
            made[number], chosen[number] = [], which
            engine.add(Generate(number, given[which], greedy(NUM_OUTPUT)))
        if made and rng.random() < 0.05:
            number = rng.choice(list(made))
            if len(made[number]) < NUM_OUTPUT:
                engine.abort(number)
                chosen[number] = -1
        for output in engine.step():
            made[output.request_id] += output.token_ids
    check_empty(engine)
    for number, which in chosen.items():
        if which >= 0:
            assert made[number] == expected[which], number
    assert engine.stats().prefix_cache_hits > 0


def test_a_slot_is_replaced_when_no_one_reads_it():
    slots = StateSlots(2, 1, 4)
    first = slots.start(None, (4,))
    assert slots.move(first, 0, 6) == [StateMove(4, -1, 2), StateMove(2, 2, 0)]
    slots.advance(first)
    slots.publish(first, [b"a"], 6)
    second = slots.start(b"a", (8,))
    assert slots.move(second, 4, 6) == [StateMove(6, 2, 1)], "the only slot for checkpoints is read"
    slots.advance(second)
    assert slots.move(second, 10, 2) == [StateMove(2, 1, 2)] and slots.longest([b"a"], 1) == 0
    slots.advance(second)
    slots.publish(second, [b"a", b"b", b"c"], 8)
    assert slots.longest([b"a", b"b", b"c"], 3) == 0, "its tokens are not known yet"
    slots.publish(second, [b"a", b"b", b"c"], 12)
    assert slots.longest([b"a", b"b", b"c"], 3) == 3
    for hold in (first, second):
        slots.free(hold)
    assert slots.num_free == 3


def test_forgotten_checkpoints_are_slots_again():
    slots = StateSlots(2, 2, block_size=4)
    hold = slots.start(None, ())
    slots.move(hold, 0, 4)
    slots.advance(hold)
    slots.publish(hold, [b"a"], 4)
    assert slots.longest([b"a"], 1) == 1
    slots.forget_checkpoints()
    assert slots.longest([b"a"], 1) == 0
    slots.free(hold)
    assert slots.num_free == 4
    other = slots.start(None, ())
    slots.move(other, 0, 4)
    slots.advance(other)
    slots.publish(other, [b"a"], 4)
    slots.free(other)
    assert slots.longest([b"a"], 1) == 1 and slots.num_free == 4


def test_a_short_run_beside_a_long_one_is_not_padded_to_its_chunks():
    runs = [StateRun(0, 2, -1, 0, 0), StateRun(2, 200, -1, 1, 0), StateRun(202, 1, 2, 2, 0), StateRun(203, 3, 3, 3, 0)]
    (only,) = plan_states(runs, torch.device("cpu"))
    assert only.singles is not None and only.singles.rows.tolist() == [202]
    assert [(longer.chunks.shape, longer.lengths) for longer in only.longer] == [((4, 64), [200]), ((2, 8), [3, 2])]


def test_slots_fit_beside_the_pages_that_a_setting_says():
    config = tiny_config("mamba")
    groups = cache_groups(config, 4)
    each = state_bytes(groups)

    def plan(device: str, num_slots: int, **fields: Any) -> MemoryPlan:
        asked = Configure(model="", num_blocks=99, kv_cache_memory_bytes=num_slots * each, **fields)
        return plan_memory(config, groups, asked, element_size=4, memory=Memory(device, 1 << 30))

    made = plan("cpu", 11, max_num_seqs=8)
    assert (made.limits.num_blocks, made.limits.max_num_seqs, made.limits.num_checkpoints) == (99, 8, 3)
    assert "MAX_NUM_SEQS" not in str(made.warnings)
    fewer = plan("cpu", 5, max_num_seqs=8)
    assert (fewer.limits.max_num_seqs, fewer.limits.num_checkpoints) == (5, 0)
    assert any("MAX_NUM_SEQS is 5 instead of 8" in warning for warning in fewer.warnings)
    with pytest.raises(ModelError, match="no room for the states of one sequence") as caught:
        plan("cpu", 0)
    assert "GPU_MEMORY" not in str(caught.value) and "set or raise KV_CACHE_MEMORY_BYTES" in str(caught.value)
    with pytest.raises(ModelError, match="raise GPU_MEMORY_UTILIZATION"):
        plan("cuda", 0)


def test_a_convolution_of_width_1_has_an_empty_state(tmp_path):
    directory = make_tiny("lfm2", tmp_path, conv_L_cache=1)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    engine = engine_of(directory)
    for _ in range(2):
        for prompt, answer in zip(prompts(), answers(engine), strict=True):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
            assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer
