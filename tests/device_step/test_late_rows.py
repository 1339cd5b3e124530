"""Grammars and thinking budgets on the GPU's runner: drawn late, and the rows beside them as they were."""

from __future__ import annotations

import re

import pytest
import torch

from ember.engine.core.gpu import late_rows
from ember.wire import Generate, Grammar, SamplingParams, Thinking
from tests.device_step.engines import check_empty, compare, device_engine, said
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.structured.json_model import END_THINK, THINK, load, make_json_model

WORD = "[a-c]{2,4}x"
PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_json_model(tmp_path_factory.mktemp("json-model"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load(directory)


def word(**options) -> SamplingParams:
    return SamplingParams(
        grammar=Grammar("regex", WORD), **{"max_tokens": 12, "temperature": 1.0, "seed": 3, **options}
    )


def test_grammars_beside_plain_rows(directory, tokenizer):
    requests = [
        Generate(1, PROMPT, word()),
        Generate(2, PROMPT[:7], greedy(6)),
        Generate(3, PROMPT, word(n=2, temperature=0.7, repetition_penalty=1.3, top_p=0.9)),
        Generate(4, PROMPT, word(logprobs=2, ignore_eos=True)),
        Generate(5, PROMPT[:9], SamplingParams(max_tokens=6, seed=1, presence_penalty=0.7)),
    ]
    outputs, _ = compare(directory, requests)
    for key in ((1, 0), (3, 0), (3, 1), (4, 0)):
        assert re.fullmatch(WORD, tokenizer.decode(tokens(outputs[key])))
        assert said(outputs[key]).finish_reason == "stop"
    assert all(output.logprobs for output in outputs[4, 0])


def test_a_grammar_that_is_preempted_goes_on(directory):
    regex = Grammar("regex", r"\[(true,|[0-9]{1,3},){3}\]")
    requests = [
        Generate(i, [i + 40] * 12, SamplingParams(max_tokens=16, seed=i, grammar=regex, min_tokens=2)) for i in range(3)
    ]
    _, engine = compare(directory, requests, num_blocks=7, max_num_batched_tokens=16, max_model_len=56)
    assert engine.stats().num_preemptions > 0


def test_a_thinking_budget_is_enforced(directory, tokenizer):
    start, end = tokenizer.encode(THINK), tokenizer.encode(END_THINK)
    thinking = Thinking(end_token_ids=[end], start_token_ids=start, is_open=True, budget=3)
    options = {"max_tokens": 9, "temperature": 1.0, "seed": 4, "ignore_eos": True}
    requests = [
        Generate(1, PROMPT, SamplingParams(thinking=thinking, **options)),
        Generate(2, PROMPT, SamplingParams(thinking=thinking, grammar=Grammar("regex", WORD), **options)),
    ]
    outputs, _ = compare(directory, requests)
    assert tokens(outputs[1, 0])[3] == end[0] and tokens(outputs[2, 0])[3] == end[0]


def test_options_that_leave_nothing_are_an_error_that_names_the_field(directory, tokenizer):
    banned = [[token_id] for token_id in range(300) if token_id != tokenizer.encode("z")[0]][:128]
    requests = [Generate(1, PROMPT, word(allowed_token_ids=[299])), Generate(2, PROMPT, word(bad_words=banned))]
    outputs, _ = compare(directory, requests)
    assert said(outputs[1, 0]).param == "structured_outputs"


def test_out_of_memory_in_a_late_draw_fails_one(directory, tokenizer, monkeypatch):
    """The longest late row is given up; the draw of the others happens once, penalties included."""
    options = {"repetition_penalty": 1.4, "temperature": 0.7}
    requests = [Generate(i, PROMPT[: 5 + i], word(**options)) for i in range(3)]
    requests.append(Generate(3, PROMPT, greedy(6)))
    expected = run(make_engine(directory), requests)
    engine = device_engine(directory)
    real, calls = late_rows.store_tokens, 0

    def fail_once(*arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("no memory in a test")
        real(*arguments)

    monkeypatch.setattr(late_rows, "store_tokens", fail_once)
    outputs = run(engine, requests)
    assert "out of memory" in said(outputs[2, 0]).error
    for key in ((0, 0), (1, 0), (3, 0)):
        assert tokens(outputs[key]) == tokens(expected[key])
    check_empty(engine)
