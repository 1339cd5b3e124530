"""Every sampling option says on the GPU's runner what it says on the plain one."""

import pytest

from ember.wire import Generate, SamplingParams
from tests.device_step.engines import compare, device_engine, said
from tests.engine_core.inline import greedy, run, tokens
from tests.engine_models.tiny import EOS_TOKEN_ID, VOCAB_SIZE, make_tiny

PROMPT = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 20, 20]
RANDOM = {"temperature": 0.9, "seed": 5, "ignore_eos": True}
OPTIONS = {
    "greedy": {"temperature": 0.0, "ignore_eos": True},
    "temperature": RANDOM,
    "top_k": {**RANDOM, "top_k": 5},
    "top_p": {**RANDOM, "top_p": 0.7},
    "min_p": {**RANDOM, "min_p": 0.1},
    "filters": {**RANDOM, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3},
    "repetition_penalty": {"temperature": 0.0, "ignore_eos": True, "repetition_penalty": 1.7},
    "presence_penalty": {"temperature": 0.0, "ignore_eos": True, "presence_penalty": 1.5},
    "frequency_penalty": {**RANDOM, "frequency_penalty": 1.2, "temperature": 0.3},
    "logit_bias": {**RANDOM, "logit_bias": {7: 6.0, 8: 5.5, 9: -100.0}},
    "allowed_token_ids": {**RANDOM, "allowed_token_ids": [3, 33, 133, VOCAB_SIZE - 1]},
    "bad_words": {**RANDOM, "allowed_token_ids": [3, 33, 34], "bad_words": [[33], [3, 34], [34, 34, 3]]},
    "min_tokens": {"temperature": 0.0, "logit_bias": {EOS_TOKEN_ID: 1000.0}, "min_tokens": 3},
    "min_tokens_allowed": {**RANDOM, "ignore_eos": False, "allowed_token_ids": [EOS_TOKEN_ID, 50], "min_tokens": 4},
    "stop_token_ids": {**RANDOM, "allowed_token_ids": [3, 33, 34], "stop_token_ids": [34], "min_tokens": 1},
    "all": {
        **RANDOM,
        "top_p": 0.95,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "logit_bias": {7: 3.0},
        "bad_words": [[7, 7], [9]],
        "min_tokens": 2,
    },
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_tiny("qwen3", tmp_path_factory.mktemp("qwen3"), num_hidden_layers=1)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_alone(directory, name):
    compare(directory, [Generate(1, PROMPT, SamplingParams(max_tokens=8, **OPTIONS[name]))])


def test_all_options_in_one_batch(directory):
    requests = [
        Generate(i, PROMPT[: 2 + i % 9], SamplingParams(max_tokens=4 + i % 5, **options))
        for i, options in enumerate(OPTIONS.values())
    ]
    outputs, _ = compare(directory, requests)
    assert said(outputs[list(OPTIONS).index("min_tokens"), 0]).finish_reason == "stop"


def test_the_tokenizers_end_token(directory):
    """Ends an answer, waits for `min_tokens` and is ignored with the others, also in rows that were placed before."""
    engine = device_engine(directory)
    engine.add_end_tokens([7])
    requests = [
        Generate(i, PROMPT, SamplingParams(max_tokens=6, temperature=0.0, logit_bias={7: 1000.0}, **options))
        for i, options in enumerate([{}, {"min_tokens": 3}, {"ignore_eos": True}])
    ]
    outputs = run(engine, requests)
    assert tokens(outputs[0, 0]) == [7]
    assert tokens(outputs[1, 0])[3:] == [7] and 7 not in tokens(outputs[1, 0])[:3]
    assert tokens(outputs[2, 0]) == [7] * 6


def test_a_bias_that_is_longer_than_the_tables(directory):
    bias = {token_id: (token_id * 37 % 50) / 10 for token_id in range(VOCAB_SIZE)}
    import ember.engine.core.gpu.late_rows as late_rows
    import ember.engine.core.gpu.row_limits as row_limits

    with pytest.MonkeyPatch.context() as patch:
        for module in (row_limits, late_rows):
            patch.setattr(module, "BIAS_WIDTH", 64)
        requests = [Generate(i, PROMPT, SamplingParams(max_tokens=5, **RANDOM, logit_bias=bias)) for i in range(2)]
        compare(directory, [*requests, Generate(5, PROMPT, greedy(5))])


def test_samples_differ_by_seed_and_share_the_prompt(directory):
    params = SamplingParams(max_tokens=5, n=3, temperature=1.5, seed=42, ignore_eos=True)
    outputs, _ = compare(directory, [Generate(1, PROMPT * 2, params)])
    assert len({tuple(tokens(outputs[1, i])) for i in range(3)}) == 3
    assert [outputs[1, i][0].num_cached_tokens for i in range(3)] == [0, 16, 16]


def test_log_probabilities(directory):
    """Of draws and of the prompt: few, many, all, and those asked for; late rows among them."""
    common = {"max_tokens": 4, "temperature": 0.8, "seed": 3, "ignore_eos": True}
    variants = [
        {"logprobs": 0},
        {"logprobs": 3, "prompt_logprobs": 2},
        {"logprobs": 30, "logprob_token_ids": [5, 77]},
        {"logprobs": -1, "prompt_logprobs": -1},
        {"logprobs": 2, "logprob_token_ids": [9], "bad_words": [[3, 4]], "presence_penalty": 0.5},
        {"max_tokens": 0, "prompt_logprobs": 1},
    ]
    requests = [Generate(i, PROMPT, SamplingParams(**{**common, **some})) for i, some in enumerate(variants)]
    from tests.engine_core.inline import make_engine

    for configure in ({}, {"max_num_batched_tokens": 7}):
        expected = run(make_engine(directory, **configure), requests)
        found = run(device_engine(directory, **configure), requests)
        for i in range(len(requests)):
            assert tokens(found[i, 0]) == tokens(expected[i, 0])
            for one, other in zip(_entries(found[i, 0]), _entries(expected[i, 0]), strict=True):
                _assert_same(one, other)


def _entries(outputs):
    prompt = outputs[0].prompt_logprobs or []
    return [*prompt, *(entry for output in outputs for entry in output.logprobs or [])]


def _assert_same(one, other):
    if one is None or other is None:
        assert one is other
        return
    assert (one.token_id, one.rank, one.asked_ids) == (other.token_id, other.rank, other.asked_ids)
    assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
    assert one.top_logprobs == pytest.approx(other.top_logprobs, abs=1e-3)
    assert one.asked_logprobs == pytest.approx(other.asked_logprobs, abs=1e-3)
    assert sorted(one.top_ids) == sorted(other.top_ids)
