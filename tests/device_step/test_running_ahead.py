"""One step ahead: stops seen late, rows reused, preemption and aborts with tokens in flight, recorded steps."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from ember.engine.core.gpu.graph_sizes import DECODE, MAX_CHUNKS
from ember.wire import Generate, SamplingParams
from tests.device_step.engines import all_said, check_empty, compare, device_engine, recorded_engine, said
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_models.tiny import EOS_TOKEN_ID, VOCAB_SIZE, make_tiny

PROMPT = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_tiny("qwen3", tmp_path_factory.mktemp("qwen3"), num_hidden_layers=1)


def mixture(count: int, seed: int = 0) -> list[Generate]:
    """Requests of many lengths and options; some stop early, by a token that is likely."""
    draw = random.Random(seed)
    requests = []
    for i in range(count):
        prompt = [draw.randrange(6, VOCAB_SIZE) for _ in range(draw.randrange(1, 25))]
        options: dict[str, Any] = draw.choice(
            [
                {"temperature": 0.0},
                {"temperature": 1.0, "seed": i, "logit_bias": {EOS_TOKEN_ID: 3.0}},
                {"temperature": 0.7, "seed": i, "top_p": 0.8, "repetition_penalty": 1.3},
                {"temperature": 0.0, "frequency_penalty": 0.8, "ignore_eos": True},
                {"temperature": 1.0, "seed": i, "allowed_token_ids": [5, 6, 7], "stop_token_ids": [6]},
                {"temperature": 1.0, "seed": i, "allowed_token_ids": [5, 6, 7], "bad_words": [[5, 6]]},
            ]
        )
        requests.append(Generate(i, prompt, SamplingParams(max_tokens=draw.randrange(1, 9), **options)))
    return requests


def test_a_step_is_launched_before_the_tokens_of_the_last_one_are_read(directory):
    engine = device_engine(directory)
    engine.add(Generate(1, PROMPT, greedy(3)))
    launched = []
    launch = engine.runner.launch

    def count(step):
        launched.append(len(step))
        return launch(step)

    engine.runner.launch = count
    assert engine.step() == [] and len(launched) == 1
    first = engine.step()
    assert len(launched) == 2 and [output.token_ids for output in first]
    for _ in range(2):
        engine.step()
    assert not engine.has_work
    assert len(launched) == 3  # the end by length is known beforehand: no step is wasted


def test_the_first_token_of_an_engine_waits_for_no_second_step(directory):
    engine = device_engine(directory)
    engine.is_cold = True
    engine.add(Generate(1, PROMPT, greedy(3)))
    assert [len(output.token_ids) for output in engine.step()] == [1]
    assert len(tokens(run(engine, [])[1, 0])) == 2


def test_the_token_behind_a_stop_is_dropped(directory):
    answer = tokens(run(make_engine(directory), [Generate(1, PROMPT, greedy(8))])[1, 0])
    outputs, _ = compare(directory, [Generate(1, PROMPT, greedy(8, stop_token_ids=[answer[3]]))])
    assert said(outputs[1, 0]).finish_reason == "stop"
    assert tokens(outputs[1, 0]) == answer[: answer.index(answer[3]) + 1]


def test_context_length_ends_generation(directory):
    outputs, _ = compare(directory, [Generate(1, PROMPT, greedy(100))], max_model_len=15)
    assert len(tokens(outputs[1, 0])) == 5 and said(outputs[1, 0]).finish_reason == "length"


def test_chunks_and_decodes_share_steps_and_rows_are_used_again(directory):
    _, engine = compare(directory, mixture(12), max_num_batched_tokens=9, max_num_seqs=3)
    assert engine.stats().num_preemptions == 0


def test_preemption_with_tokens_in_flight(directory):
    _, engine = compare(directory, mixture(8, seed=1), num_blocks=6, max_num_batched_tokens=16, max_model_len=48)
    assert engine.stats().num_preemptions > 0


def test_a_cached_prefix_is_read(directory):
    engine = device_engine(directory)
    first = run(engine, [Generate(1, PROMPT * 3, greedy(4))])[1, 0]
    again = run(engine, [Generate(2, PROMPT * 3, greedy(4))])[2, 0]
    assert tokens(again) == tokens(first) and again[0].num_cached_tokens == 24


def test_an_answer_is_published_for_the_next_turn(directory):
    """Pages that fill while their tokens are still unread are found later all the same."""
    engine = device_engine(directory)
    answer = tokens(run(engine, [Generate(1, PROMPT, greedy(16))])[1, 0])
    turn = run(engine, [Generate(2, [*PROMPT, *answer, 9], greedy(2))])[2, 0]
    assert turn[0].num_cached_tokens == 24
    plain = run(make_engine(directory), [Generate(2, [*PROMPT, *answer, 9], greedy(2))])[2, 0]
    assert tokens(turn) == tokens(plain)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_abort_with_a_token_in_flight(directory, steps):
    engine = device_engine(directory, max_num_seqs=2)
    for request_id in (1, 2):
        engine.add(Generate(request_id, PROMPT, greedy(20)))
    for _ in range(steps):
        engine.step()
    engine.abort(1)
    later = Generate(3, PROMPT[::-1], greedy(5))
    outputs = run(engine, [later])
    expected = run(make_engine(directory), [later, Generate(2, PROMPT, greedy(20))])
    assert not outputs.get((1, 0))
    assert tokens(outputs[3, 0]) == tokens(expected[3, 0])
    assert tokens(outputs[2, 0]) == tokens(expected[2, 0])[-len(tokens(outputs[2, 0])) :]
    check_empty(engine)


def test_an_aborted_engine_is_empty_after_the_step_in_flight(directory):
    engine = device_engine(directory)
    engine.add(Generate(1, PROMPT, greedy(20)))
    engine.step()
    engine.abort(1)
    assert engine.has_work  # the step on the device
    assert engine.step() == []
    check_empty(engine)


def test_recorded_steps_say_the_same(directory):
    """Padding changes nothing, and every step that fits a recorded size runs in it."""
    requests = mixture(7, seed=2)
    expected = run(make_engine(directory), requests)
    engine, launched = recorded_engine(directory, max_num_seqs=8, max_num_batched_tokens=64)
    assert engine.runner.decode_graphs.recorded == [1, 2, 4, 8]
    assert engine.runner.mixed_graphs.recorded == [32, 64]
    assert all_said(run(engine, requests)) == all_said(expected)
    assert {unit for unit, _ in launched} == {"rows", "tokens"}
    check_empty(engine)


@pytest.mark.parametrize("budget", [9, 33, 40])
def test_recorded_chunks_say_the_same(directory, budget):
    """Chunks that end a prompt and those that do not, beside decodes and without, with the first tokens in the cache,
    and log probabilities of prompts."""
    requests = [Generate(i, PROMPT * (1 + i), greedy(3 + i)) for i in range(5)]
    requests.append(Generate(5, [*PROMPT * 3, 7, 8], greedy(4, prompt_logprobs=2, logprobs=1)))
    expected = run(make_engine(directory), requests)
    engine, launched = recorded_engine(directory, max_num_seqs=4, max_num_batched_tokens=budget)
    found = run(engine, requests)
    assert all_said(found) == all_said(expected)
    for ours, theirs in zip(found[5, 0][0].prompt_logprobs[1:], expected[5, 0][0].prompt_logprobs[1:], strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    assert sum(unit == "tokens" for unit, _ in launched) >= 4
    check_empty(engine)


def test_a_burst_of_prompts_is_launched_kernel_by_kernel(directory):
    requests = [Generate(i, PROMPT[: 2 + i % 3], greedy(2)) for i in range(MAX_CHUNKS + 3)]
    expected = run(make_engine(directory), requests)
    engine, launched = recorded_engine(directory, max_num_seqs=MAX_CHUNKS + 3, max_num_batched_tokens=128)
    for request in requests:
        engine.add(request)
    engine.step()
    assert launched == []
    assert all_said(run(engine, [])).keys() == all_said(expected).keys()
    assert all_said(run(engine, requests)) == all_said(expected)
    check_empty(engine)


@pytest.mark.parametrize("steps", [1, 3])
def test_recording_between_steps_changes_nothing(directory, steps, monkeypatch):
    """A rehearsal is a step: of no rows, whatever the last one was."""
    monkeypatch.setattr("ember.engine.core.gpu.graphs.STALL_S", 1e9)
    requests = mixture(7, seed=2)
    expected = run(make_engine(directory), requests)
    engine = device_engine(directory, max_num_seqs=8, max_num_batched_tokens=64)
    outputs: dict[tuple[int, int], list[Any]] = {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for _ in range(steps):
            for output in engine.step() if engine.has_work else ():
                outputs.setdefault((output.request_id, output.index), []).append(output)
        engine.do_chore()
    assert all_said(outputs) == all_said(expected)
    assert engine.runner.decode_graphs.recorded
    assert engine.runner.mixed_graphs.recorded or steps > 1
    check_empty(engine)


def test_recording_in_an_idle_moment_leaves_the_cache_alone(directory):
    engine = device_engine(directory, max_num_seqs=4, max_num_batched_tokens=33)
    run(engine, [Generate(1, PROMPT, greedy(5))])
    cache = engine.runner.cache
    before = cache.keys.clone(), cache.values.clone()
    while engine.do_chore():
        pass
    for now, then in zip((cache.keys, cache.values), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)  # pages never written hold anything


def test_enforce_eager_records_nothing(directory):
    engine = device_engine(directory, enforce_eager=True)
    assert not engine.do_chore()
    assert tokens(run(engine, [Generate(1, PROMPT, greedy(3))])[1, 0])
    assert engine.runner.decode_graphs.recorded == engine.runner.mixed_graphs.recorded == []


def test_graphs_come_largest_useful_first(directory):
    engine = device_engine(directory, max_num_seqs=16, max_num_batched_tokens=32)
    graphs = engine.runner.decode_graphs
    assert graphs.size_for(5) is None
    order = []
    while engine.do_chore():
        order += [size for size in graphs.recorded if size not in order]
    order += [size for size in graphs.recorded if size not in order]
    assert order == [8, 4, 2, 1, 16]
    assert (graphs.size_for(3), graphs.size_for(9), graphs.size_for(17)) == (4, 16, None)
    assert max(DECODE.sizes) >= 1024  # more rows than that are launched kernel by kernel


def test_recording_waits_for_an_idle_moment_when_it_would_hold_up_a_stream(directory):
    engine = device_engine(directory, max_num_seqs=2, max_num_batched_tokens=32)
    runner = engine.runner
    engine.add(Generate(1, PROMPT, greedy(4)))
    engine.step()
    runner.decode_graphs.observe_eager(1.0)
    runner.mixed_graphs.observe_eager(1.0)
    assert engine.do_chore() and engine.do_chore()
    assert runner.decode_graphs.recorded == runner.mixed_graphs.recorded == []
    run(engine, [])
    while engine.do_chore():
        pass
    assert engine.runner.decode_graphs.recorded


def test_a_size_that_cannot_be_recorded_costs_no_smaller_one(directory, monkeypatch):
    engine = device_engine(directory, max_num_seqs=16, max_num_batched_tokens=32)
    graphs = engine.runner.decode_graphs
    record = graphs._accelerator.record

    def fail(body):
        if body.args[0] >= 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record(body)

    monkeypatch.setattr(graphs._accelerator, "record", fail)
    run(engine, [Generate(i, PROMPT, greedy(4)) for i in range(12)])
    while engine.do_chore():
        pass
    assert graphs.recorded == [1, 2, 4]


def test_out_of_memory_fails_one_and_the_others_go_on(directory):
    engine = device_engine(directory)
    requests = [Generate(1, PROMPT, greedy(6)), Generate(2, PROMPT * 4, greedy(6)), Generate(3, PROMPT[:4], greedy(6))]
    expected = run(make_engine(directory), requests)
    real_run = engine.runner.model.run
    steps = 0

    def fail_once(step):
        nonlocal steps
        steps += 1
        if steps == 3:
            raise torch.OutOfMemoryError("no memory in a test")
        return real_run(step)

    engine.runner.model.run = fail_once
    outputs = {}

    def step():
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)

    for request in requests:
        engine.add(request)
        step()
    while engine.has_work:
        step()
    failed = [key for key, made in outputs.items() if made[-1].finish_reason == "error"]
    assert failed == [(3, 0)] and "out of memory" in outputs[3, 0][-1].error
    for key in ((1, 0), (2, 0)):
        assert outputs[key][-1].finish_reason == "length"
        assert tokens(outputs[key]) == tokens(expected[key])
    check_empty(engine)


@pytest.mark.parametrize(("place", "at"), [("download", 6), ("mark", 10)])
def test_a_step_that_fails_behind_its_draw_counts_once(directory, place, at):
    """Penalties count what was drawn; a step that is launched again has drawn nothing before."""
    options = {"max_tokens": 8, "temperature": 0.0, "frequency_penalty": 0.9, "repetition_penalty": 1.2}
    requests = [Generate(i, PROMPT[i:], SamplingParams(ignore_eos=True, **options)) for i in range(3)]
    expected = run(make_engine(directory), requests)
    engine = device_engine(directory)
    accelerator = engine.runner.accelerator
    real, calls = getattr(accelerator, place), 0

    def fail_once(*arguments):
        nonlocal calls
        calls += 1
        if calls == at:
            raise torch.OutOfMemoryError("no memory in a test")
        return real(*arguments)

    setattr(accelerator, place, fail_once)
    outputs = run(engine, requests)
    assert calls > at
    failed = [key for key, made in outputs.items() if made[-1].finish_reason == "error"]
    assert len(failed) == 1 and "out of memory" in outputs[failed[0]][-1].error
    for key in set(outputs) - set(failed):
        assert tokens(outputs[key]) == tokens(expected[key])
    check_empty(engine)


def test_a_row_that_cannot_be_filled_is_not_lost(directory):
    engine = device_engine(directory, max_num_seqs=2)
    tables = engine.runner.tables
    place = tables.place

    def fail(sequence, row):
        raise torch.OutOfMemoryError("no memory in a test")

    for _ in range(3):
        tables.place = fail
        assert "out of memory" in run(engine, [Generate(1, PROMPT, greedy(2))])[1, 0][-1].error
        tables.place = place
    compare(directory, [Generate(i, PROMPT, greedy(2)) for i in range(3)], max_num_seqs=2)
    assert len(run(engine, [Generate(i, PROMPT, greedy(2)) for i in range(2)])) == 2
    check_empty(engine)


def test_a_prompt_of_one_token_has_its_log_probability(directory):
    outputs, _ = compare(directory, [Generate(1, PROMPT[:1], greedy(2, prompt_logprobs=2))])
    assert outputs[1, 0][0].prompt_logprobs == [None]


def test_not_a_number_fails_its_request_alone(directory):
    engine = device_engine(directory)
    logits = engine.runner.model.logits

    def break_first(hidden):
        made = logits(hidden)
        if len(made) == 2:
            made[0] = torch.nan
        return made

    engine.runner.model.logits = break_first
    requests = [Generate(1, PROMPT, greedy(4)), Generate(2, PROMPT[:5], greedy(4))]
    outputs = run(engine, requests)
    assert "NaN" in outputs[1, 0][-1].error
    assert tokens(outputs[2, 0]) == tokens(run(make_engine(directory), requests)[2, 0])


def test_more_new_pages_than_the_buffer_takes(directory, monkeypatch):
    monkeypatch.setattr("ember.engine.core.gpu.device_runner.ENTRIES", 3)
    compare(directory, [Generate(i, PROMPT * 3, greedy(3)) for i in range(3)])


@pytest.mark.parametrize("family", ["qwen2_window", "opt", "youtu"])
def test_other_families(family, tmp_path):
    directory = make_tiny(family, tmp_path, num_hidden_layers=2)
    compare(directory, [Generate(i, PROMPT * i, greedy(5)) for i in (1, 2)], max_num_batched_tokens=13)
