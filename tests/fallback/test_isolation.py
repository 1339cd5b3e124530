"""A fault in the code of a model ends the requests that it belongs to, and no others."""

import pytest

from ember.wire import Generate
from tests.engine_core.inline import NUM_OUTPUT, greedy, make_engine, run, tokens
from tests.engine_models.tiny import make_tiny
from tests.fallback.models import make_model

FAULT = 177  # a token that the model's code fails for
PROMPTS = [[9, 81, 33, 20, 77], [9, 12, FAULT, 4, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52], [30, 31, 32, 33]]


def requests():
    return [Generate(i, prompt, greedy(NUM_OUTPUT)) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture
def engine(tmp_path):
    return make_engine(make_model("BitNetForCausalLM", tmp_path), max_num_batched_tokens=12)


def test_code_that_would_end_the_process_ends_its_request(engine, monkeypatch):
    base = engine.runner.model.base
    forward = base.forward

    def leaving(input_ids, **options):
        if FAULT in input_ids:
            raise SystemExit(1)
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(base, "forward", leaving)
    found = run(engine, requests()[:2])
    message = "the model's code failed: RuntimeError: the code would have ended the process: SystemExit(1)"
    assert found[1, 0][-1].error == message and found[0, 0][-1].finish_reason == "length"


def break_for(engine, monkeypatch, is_at_fault, error):
    """Let the model raise the error in the steps whose batch is at fault."""
    forward = engine.runner.model.forward

    def failing(batch, cache):
        if is_at_fault(batch):
            raise error
        return forward(batch, cache)

    monkeypatch.setattr(engine.runner.model, "forward", failing)


def test_the_request_at_fault_fails_and_the_others_go_on(engine, tmp_path, monkeypatch):
    fresh = make_engine(tmp_path)
    expected = [tokens(run(fresh, [each])[each.request_id, 0]) for each in requests()]
    with monkeypatch.context() as patch:
        break_for(engine, patch, lambda batch: FAULT in batch.token_ids.tolist(), IndexError("no such\nrow"))
        found = run(engine, requests())
        alone = run(engine, requests()[1:2])
    assert found[1, 0][-1].error == alone[1, 0][-1].error == "the model's code failed: IndexError: no such row"
    assert found[1, 0][-1].finish_reason == "error" and not tokens(found[1, 0])
    assert [tokens(found[i, 0]) for i in (0, 2)] == [expected[i] for i in (0, 2)]
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks and not engine.has_work
    assert [
        tokens(run(engine, [each])[each.request_id, 0]) for each in requests()
    ] == expected  # nothing wrong is cached


def test_a_fault_of_no_single_request_ends_none(engine, monkeypatch, caplog):
    expected = [tokens(run(engine, [each])[each.request_id, 0]) for each in requests()]
    break_for(engine, monkeypatch, lambda batch: len(batch.context_lens) > 1, TypeError("two"))
    found = run(engine, requests())
    assert [tokens(found[i, 0]) for i in range(3)] == expected
    assert "for none of them alone, so all go on: TypeError: two" in caplog.text


@pytest.mark.parametrize("known", [False, True])
def test_other_faults_end_the_engine(engine, monkeypatch, tmp_path, known):
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    if known:  # a model of Ember's own code, whose step may have changed states
        engine, error = make_engine(make_tiny("llama", tmp_path / "llama")), IndexError("own")
    break_for(engine, monkeypatch, lambda batch: True, error)
    with pytest.raises(type(error), match=str(error)):
        run(engine, requests())
