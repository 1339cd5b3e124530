"""No option of a request is ignored: each path declares what it honours, and shows it."""

from __future__ import annotations

import functools

import pytest

from ember.engine.core import intake, sampler
from ember.engine.core.gpu import row_limits
from ember.engine.core.runner import Runner
from ember.wire import Generate, SamplingParams
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.structured.json_model import make_json_model
from tests.support.options import EFFECTS, run_effects

FIELDS = SamplingParams.__struct_fields__


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_json_model(tmp_path_factory.mktemp("json-model"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def effects(directory):
    return functools.cache(lambda: run_effects(make_engine(directory)))


def test_every_option_is_declared_by_the_plain_runner():
    assert set(FIELDS) == intake.OPTIONS | Runner.options
    assert set(FIELDS) == set(EFFECTS), "tests/support/options.py shows what each option does"


def test_the_tables_of_the_device_take_what_the_sampler_takes():
    """Apart from what depends on the tokens before, or comes back beside the token."""
    others = {"grammar", "thinking", "logprobs", "logprob_token_ids"}
    assert sampler.OPTIONS - others == row_limits.OPTIONS


@pytest.mark.parametrize("option", FIELDS)
def test_every_option_has_an_effect_on_a_cpu(option, effects):
    without, with_option = effects()[option]
    assert EFFECTS[option].shows(without, with_option)


def test_an_option_that_nobody_declared_is_refused_by_name(directory, monkeypatch):
    monkeypatch.setattr(Runner, "options", Runner.options - {"min_p"})
    engine = make_engine(directory)
    outputs = run(engine, [Generate(1, [5, 6], greedy(2, min_p=0.3, n=2)), Generate(2, [5, 6], greedy(2))])
    for index in range(2):
        (refused,) = outputs[1, index]
        assert (
            refused.finish_reason == "error" and refused.error_param == "min_p" and "`min_p`" in (refused.error or "")
        )
    assert len(tokens(outputs[2, 0])) == 2
