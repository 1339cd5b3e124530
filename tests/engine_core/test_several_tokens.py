"""Steps that give a sequence several tokens: what they end, what is dropped, and that everything stays aligned."""

from __future__ import annotations

from typing import Any

import pytest

from ember.engine.core.engine import Engine
from ember.engine.core.runner import Runner, StepResult
from ember.engine.core.scheduler import Scheduled
from ember.wire import Generate, SequenceOutput
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_core.several import SeveralTokens
from tests.engine_models.tiny import EOS_TOKEN_ID, make_tiny

PROMPT = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_tiny("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def engine(directory) -> Engine:
    return make_engine(directory)


def say(engine: Engine, script: list[int], count: int = 3, **params: Any) -> list[SequenceOutput]:
    """The outputs of one request to which the runner says `script`, so many tokens at a time."""
    assert isinstance(engine.runner, Runner)
    engine.runner = SeveralTokens(engine.runner, {1: script}, count)
    outputs = run(engine, [Generate(1, PROMPT, greedy(**{"max_tokens": 20, **params}))])[1, 0]
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks and stats.generation_tokens == len(tokens(outputs))
    return outputs


SCRIPT = list(range(110, 140))


def test_each_output_has_what_its_step_gave(engine):
    outputs = say(engine, SCRIPT, max_tokens=9)
    assert [output.token_ids for output in outputs] == [SCRIPT[:3], SCRIPT[3:6], SCRIPT[6:9]]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]


@pytest.mark.parametrize("max_tokens", range(1, 8))
@pytest.mark.parametrize("count", [2, 3])
def test_the_maximum_cuts_the_rest(engine, max_tokens, count):
    outputs = say(engine, SCRIPT, count, max_tokens=max_tokens)
    assert tokens(outputs) == SCRIPT[:max_tokens] and outputs[-1].finish_reason == "length"


def test_the_longest_context_cuts_the_rest(directory):
    outputs = say(make_engine(directory, max_model_len=15), SCRIPT)
    assert tokens(outputs) == SCRIPT[:5] and outputs[-1].finish_reason == "length"


@pytest.mark.parametrize("at", range(7))
def test_a_stop_token_cuts_the_rest(engine, at):
    outputs = say(engine, SCRIPT, stop_token_ids=[SCRIPT[at]])
    assert tokens(outputs) == SCRIPT[: at + 1]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", SCRIPT[at])


@pytest.mark.parametrize("at", range(4))
def test_the_end_token_cuts_the_rest_unless_it_is_ignored(directory, at):
    script = [*SCRIPT[:at], EOS_TOKEN_ID, *SCRIPT[at:]]
    outputs = say(make_engine(directory), script, ignore_eos=False)
    assert tokens(outputs) == script[: at + 1] and outputs[-1].stop_reason == EOS_TOKEN_ID
    outputs = say(make_engine(directory), script, max_tokens=8)
    assert tokens(outputs) == script[:8] and outputs[-1].finish_reason == "length"


def test_a_stop_at_the_maximum_is_a_stop(engine):
    outputs = say(engine, SCRIPT, max_tokens=5, stop_token_ids=[SCRIPT[4]])
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", SCRIPT[4])


@pytest.mark.parametrize("max_tokens", [4, 5, 6])
def test_log_probabilities_stay_with_their_tokens(engine, max_tokens):
    outputs = say(engine, SCRIPT, max_tokens=max_tokens, logprobs=0)
    for output in outputs:
        assert [entry.token_id for entry in output.logprobs] == output.token_ids
    described = [entry.logprob for output in outputs for entry in output.logprobs]
    assert described == [-float(i) for i in range(max_tokens)]


def test_scoring_a_prompt_gives_no_tokens(engine):
    (output,) = say(engine, SCRIPT, max_tokens=0, prompt_logprobs=0)
    assert output.token_ids == [] and output.logprobs is None and len(output.prompt_logprobs) == len(PROMPT)


@pytest.mark.parametrize("configure", [{}, {"max_num_batched_tokens": 7}, {"num_blocks": 8, "max_model_len": 48}])
def test_the_tokens_of_a_step_are_all_computed_by_the_next_one(directory, configure):
    """The model goes on behind several tokens as behind one: every K and V is in its place, also after preemption."""
    requests = [Generate(i, PROMPT[i:] * (1 + i % 2), greedy(16)) for i in range(4)]
    expected = {key: tokens(made) for key, made in run(make_engine(directory), requests).items()}
    engine = make_engine(directory, **configure)
    assert isinstance(engine.runner, Runner)
    truth = {request_id: answer for (request_id, _), answer in expected.items()}
    checked = []
    several = SeveralTokens(engine.runner, truth)
    engine.runner = several
    real = several.runner.run

    def check(step: list[Scheduled]) -> StepResult:
        result = real(step)
        for row, sequence in enumerate(result.sequences):
            checked.append(result.token_ids[row][0])
            assert result.token_ids[row] == [truth[sequence.request_id][sequence.num_output_tokens]]
        return result

    several.runner.run = check
    outputs = run(engine, requests)
    assert {key: tokens(made) for key, made in outputs.items()} == expected
    assert len(checked) < 4 * 16 and set(several.counts) == {1, 2, 3}
    if "num_blocks" in configure:
        assert engine.stats().num_preemptions
