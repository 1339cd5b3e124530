"""Grammars made to cost much: each ends with its own request, and whoever is beside it does not notice."""

import os
import signal
import time
from pathlib import Path

import pytest

from ember.engine.core.grammars import workers as grammar_workers
from ember.engine.core.grammars.worker import State
from ember.wire import Generate, Grammar, SamplingParams
from tests.engine_core.inline import make_engine, run, tokens
from tests.structured.hostile import ENDLESS, LARGE, ambiguous
from tests.structured.waiting import DEADLINE_S, wait_until

PROMPT = list(range(40, 60))
MANY = 256


def plain(max_tokens: int = 12) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=5)


def under(grammar: Grammar, **options) -> SamplingParams:
    return SamplingParams(grammar=grammar, **{"max_tokens": 40, "temperature": 1.0, "seed": 3, **options})


@pytest.fixture
def quick_limits(monkeypatch):
    """What would take long ends soon."""
    monkeypatch.setattr(grammar_workers, "COMPILE_SECONDS", 0.4)
    monkeypatch.setattr(grammar_workers, "MASK_SECONDS", 0.2)
    monkeypatch.setattr(grammar_workers, "TOTAL_SLOW_SECONDS", 1.0)


def run_out(engine, requests, outputs=None):
    """Step until nothing is left, with a deadline. Returns the outputs of each (request id, sample)."""
    outputs = {} if outputs is None else outputs
    until = time.monotonic() + DEADLINE_S
    for request in requests:
        engine.add(request)
    while engine.has_work:
        assert time.monotonic() < until, "it did not come to an end"
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
    return outputs


@pytest.mark.parametrize("name", ENDLESS)
def test_a_grammar_without_end_ends_its_own_request_with_an_error(engine, quick_limits, name):
    grammar = ENDLESS[name]
    alone = tokens(run(engine, [Generate(1, PROMPT, plain())])[1, 0])
    outputs = run_out(engine, [Generate(2, PROMPT, under(grammar, n=MANY)), Generate(1, PROMPT, plain())])
    assert tokens(outputs[1, 0]) == alone
    assert len(outputs) == MANY + 1
    for index in range(MANY):
        last = outputs[2, index][-1]
        assert (last.finish_reason, last.error_param) == ("error", grammar.param)
        assert f"`{grammar.param}`" in last.error and len(last.error) < 600 and "<" not in last.error


@pytest.mark.parametrize("name", LARGE)
def test_a_large_grammar_is_followed_or_an_error(engine, quick_limits, name):
    grammar = LARGE[name]
    alone = tokens(run(engine, [Generate(1, PROMPT, plain())])[1, 0])
    outputs = run_out(engine, [Generate(2, PROMPT, under(grammar, n=4)), Generate(1, PROMPT, plain())])
    assert tokens(outputs[1, 0]) == alone
    for index in range(4):
        last = outputs[2, index][-1]
        assert last.finish_reason in ("stop", "length") or last.error_param == grammar.param


def test_several_at_once_and_a_good_grammar_beside_them(engine, quick_limits):
    good = Grammar("regex", "[a-c]{20}")
    alone = tokens(run(engine, [Generate(1, PROMPT, under(good))])[1, 0])
    hostile = [Generate(i, PROMPT, under(grammar, n=8)) for i, grammar in enumerate(ENDLESS.values(), 2)]
    outputs = run_out(engine, [*hostile, Generate(1, PROMPT, under(good))])
    assert tokens(outputs[1, 0]) == alone and outputs[1, 0][-1].finish_reason == "stop"
    assert all(made[-1].error_param for (request_id, _), made in outputs.items() if request_id != 1)


def test_a_grammar_that_took_too_long_is_not_tried_again(engine, quick_limits):
    grammar = Grammar("lark", ambiguous(141))
    run_out(engine, [Generate(1, PROMPT, under(grammar))])
    worker = engine.grammars.submit(grammar)
    assert worker.state is State.ENDED and "less ambiguous" in worker.error
    engine.grammars.release(worker)


def test_nothing_is_computed_for_a_request_that_is_over(engine, monkeypatch):
    """The process that computes for nobody is ended, far sooner than by its deadline."""
    monkeypatch.setattr(grammar_workers, "COMPILE_SECONDS", 1000.0)
    grammar = Grammar("lark", ambiguous(150))
    engine.add(Generate(1, PROMPT, under(grammar, n=32)))
    workers = engine.grammars
    wait_until(workers, lambda: any(worker.grammar == grammar for worker in workers._running.values()))
    (worker,) = [worker for worker in workers._running.values() if worker.grammar == grammar]
    wait_until(workers, lambda: worker.pid is not None)
    engine.abort(1)
    assert run_out(engine, []) == {}
    wait_until(workers, lambda: worker not in workers._running.values())
    assert worker.error == grammar_workers._UNWANTED and not os.path.exists(f"/proc/{worker.pid}/fd/0")


@pytest.mark.parametrize("max_tokens", [30, 9])
def test_a_late_grammar_changes_nothing_but_the_time(directory, engine, max_tokens):
    """Its process is stopped again and again; steps go on without it, and what it says is the same."""
    regex = Grammar("regex", "([ab]{3}c){3,5}x")
    requests = [Generate(i, PROMPT[: 10 + i], under(regex, seed=i, max_tokens=max_tokens)) for i in range(1, 4)]
    requests.append(Generate(9, PROMPT, plain(40)))
    expected = {key: tokens(made) for key, made in run_out(engine, requests).items()}
    stopping = make_engine(directory, num_blocks=24, max_num_batched_tokens=32)
    for request in requests:
        stopping.add(request)
    outputs: dict = {}
    until = time.monotonic() + DEADLINE_S
    steps = num_held = 0
    while stopping.has_work:
        assert time.monotonic() < until
        for worker in stopping.grammars._running.values():
            if worker.pid is not None and worker.state is State.READY:
                os.kill(worker.pid, signal.SIGSTOP if steps % 3 < 2 else signal.SIGCONT)
        for output in stopping.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
        num_held += len(stopping._held)
        steps += 1
    assert num_held > 0
    assert {key: tokens(made) for key, made in outputs.items()} == expected
    assert {made[-1].finish_reason for made in outputs.values()} <= {"stop", "length"}
    assert stopping.stats().num_free_blocks == stopping.stats().num_blocks


def test_the_host_is_killed(directory):
    engine = make_engine(directory)
    assert run_out(engine, [Generate(1, PROMPT, under(Grammar("regex", "ab")))])[1, 0][-1].finish_reason == "stop"
    engine.add(Generate(2, PROMPT, under(Grammar("regex", "[a-c]{30}"))))
    engine.step()
    engine.grammars._host.process.kill()
    outputs = run_out(engine, [])
    assert outputs[2, 0][-1].error_param == "structured_outputs"
    assert run_out(engine, [Generate(3, PROMPT, under(Grammar("regex", "ab")))])[3, 0][-1].finish_reason == "stop"


def test_processes_end_with_their_engine(directory):
    engine = make_engine(directory)
    run_out(engine, [Generate(1, PROMPT, under(Grammar("regex", "ab")))])
    process = engine.grammars._host.process
    pids = [worker.pid for worker in engine.grammars._running.values()]
    assert len(pids) == 1
    del engine
    process.wait(timeout=DEADLINE_S)
    until = time.monotonic() + DEADLINE_S
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_worker_that_ended_leaves_no_zombie(directory, quick_limits):
    """Also where no other grammar comes afterwards."""
    engine = make_engine(directory)
    run_out(engine, [Generate(1, PROMPT, under(next(iter(ENDLESS.values()))))])
    listed = Path(f"/proc/{engine.grammars._host.process.pid}/task/{engine.grammars._host.process.pid}/children")
    until = time.monotonic() + DEADLINE_S
    while listed.read_text():
        assert time.monotonic() < until, listed.read_text()
        time.sleep(0.01)


def test_requests_are_served_while_late_grammars_have_all_rows(directory):
    """Samples that wait for a mask give their rows to requests that can go on, and lose nothing but time."""
    regex = Grammar("regex", "([ab]{3}c){3,5}x")
    late = Generate(1, PROMPT, under(regex, n=4, max_tokens=30))
    expected = {key: tokens(made) for key, made in run_out(make_engine(directory), [late]).items()}
    engine = make_engine(directory, max_num_seqs=4)
    engine.add(late)
    outputs: dict = {}
    until = time.monotonic() + DEADLINE_S
    stopped: set[int] = set()
    while (9, 0) not in outputs or outputs[9, 0][-1].finish_reason is None:
        assert time.monotonic() < until, "it waited for the late grammar"
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
        for worker in engine.grammars._running.values():
            if worker.pid is not None and worker.state is State.READY and worker.pid not in stopped:
                os.kill(worker.pid, signal.SIGSTOP)
                stopped.add(worker.pid)
                engine.add(Generate(9, PROMPT, plain()))
    assert any(made[-1].finish_reason is None for key, made in outputs.items() if key[0] == 1) or len(outputs) == 1
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    run_out(engine, [], outputs)
    assert {key: tokens(made) for key, made in outputs.items() if key[0] == 1} == expected
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
