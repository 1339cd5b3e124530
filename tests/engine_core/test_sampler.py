"""The sampler against transformers' own logits processors and against the distribution it claims to draw from."""

import math
import random

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ember.engine.core import sampler
from ember.engine.core.bad_words import completed_words
from ember.engine.core.sampler import sample, uniform
from ember.engine.core.sequence import Sequence
from ember.wire import SamplingParams

VOCAB = 50
EOS = [3]


def sequence(prompt=(1, 2), output=(), seed=0, **params) -> Sequence:
    return Sequence(
        request_id=1,
        index=0,
        token_ids=[*prompt, *output],
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(max_tokens=10, **params),
        seed=seed,
        priority=0,
        arrival=0,
        salt=b"",
    )


def logits_row(seed: int = 0, vocab: int = VOCAB, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def draw_many(logits: torch.Tensor, count: int, **params) -> torch.Tensor:
    """Empirical frequencies of `count` draws with different seeds, made in one batch."""
    rows = [sequence(seed=seed, **params) for seed in range(count)]
    tokens = sample(logits.expand(count, -1), rows, EOS).token_ids
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[-1]).float() / count


def test_greedy_takes_the_largest_logit():
    logits = torch.cat([logits_row(i) for i in range(5)])
    rows = [sequence(temperature=0.0) for _ in range(5)]
    assert sample(logits, rows, EOS).token_ids == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.5, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 0.8, "top_k": 8, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    ],
    ids=str,
)
def test_draws_follow_the_distribution_of_transformers_warpers(params):
    logits = logits_row(1)
    expected = TemperatureLogitsWarper(params["temperature"])(None, logits)
    if "min_p" in params:
        expected = MinPLogitsWarper(params["min_p"])(None, expected)
    if "top_k" in params:
        expected = TopKLogitsWarper(params["top_k"])(None, expected)
    if "top_p" in params:
        expected = TopPLogitsWarper(params["top_p"])(None, expected)
    expected = expected.softmax(-1)[0]
    count = 20_000
    observed = draw_many(logits, count, **params)
    assert not observed[expected == 0].any()
    deviation = 5 * (expected * (1 - expected) / count).sqrt() + 1e-6
    assert ((observed - expected).abs() <= deviation).all()


@pytest.mark.parametrize("candidates", [2, 16])
def test_wide_nucleus_falls_back_to_the_whole_vocabulary(monkeypatch, candidates):
    logits = logits_row(2, spread=0.1)
    narrow = draw_many(logits, 2000, top_p=0.9)
    monkeypatch.setattr(sampler, "NUCLEUS_CANDIDATES", candidates)
    assert torch.equal(draw_many(logits, 2000, top_p=0.9), narrow)


def test_a_seeded_row_draws_the_same_alone_and_among_others():
    logits = torch.cat([logits_row(i, vocab=3000) for i in range(6)])
    rows = [
        sequence(seed=11, temperature=0.9),
        sequence(seed=11, top_p=0.5),
        sequence(seed=5, top_k=4),
        sequence(temperature=0.0),
        sequence(seed=7, top_p=0.99),
        sequence(seed=9, min_p=0.2, repetition_penalty=1.3),
    ]
    together = sample(logits, rows, EOS).token_ids
    alone = [sample(logits[i : i + 1], rows[i : i + 1], EOS).token_ids[0] for i in range(6)]
    assert together == alone


def test_noise_depends_on_seed_and_position_and_is_uniform():
    values = torch.tensor([uniform(seed, position) for seed in range(100) for position in range(100)])
    assert values.min() >= 0 and values.max() < 1
    assert len(values.unique()) > 9990
    assert abs(values.mean() - 0.5) < 0.02 and abs(values.var() - 1 / 12) < 0.005
    assert uniform(-1, 3) == uniform(2**64 - 1, 3)
    grid = values.reshape(100, 100)
    assert abs(torch.corrcoef(torch.stack([grid[:-1].flatten(), grid[1:].flatten()]))[0, 1]) < 0.05


def test_repetition_penalty_equals_transformers():
    logits = logits_row(3)
    row = sequence(prompt=(1, 2, 2), output=(40, 7), temperature=0.0, repetition_penalty=1.7, logprobs=0)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([row.token_ids]), logits.clone())
    processed = logits[0].clone()
    sampler._process_row(processed, row, EOS)
    assert torch.allclose(processed, expected[0])


def test_presence_and_frequency_count_the_output_only():
    logits = torch.zeros(VOCAB)
    row = sequence(prompt=(9, 9), output=(4, 4, 4, 5), presence_penalty=0.5, frequency_penalty=0.25)
    sampler._process_row(logits, row, EOS)
    assert logits[4] == pytest.approx(-1.25) and logits[5] == pytest.approx(-0.75) and logits[9] == 0


def test_logit_bias_allowed_ids_and_bad_words():
    logits = torch.zeros(VOCAB)
    sampler._process_row(logits, sequence(logit_bias={4: 2.5, 6: -100.0}), EOS)
    assert logits[4] == 2.5 and logits[6] == -100 and logits.abs().sum() == 102.5

    logits = torch.zeros(VOCAB)
    sampler._process_row(logits, sequence(allowed_token_ids=[2, 8]), EOS)
    assert logits.isfinite().nonzero().flatten().tolist() == [2, 8]

    words = [[5], [6, 7], [6, 7, 8]]
    for output, banned in (((), [5]), ((6,), [5, 7]), ((6, 7), [5, 8]), ((7,), [5])):
        logits = torch.zeros(VOCAB)
        sampler._process_row(logits, sequence(output=output, bad_words=words), EOS)
        assert logits.isinf().nonzero().flatten().tolist() == banned, output


def test_end_and_stop_tokens_are_masked_until_min_tokens():
    for output, masked in (((), [3, 20]), ((1,), [3, 20]), ((1, 1), [])):
        logits = torch.zeros(VOCAB)
        sampler._process_row(logits, sequence(output=output, min_tokens=2, stop_token_ids=[20]), EOS)
        assert logits.isinf().nonzero().flatten().tolist() == masked


def test_logprobs_are_raw_and_ranked():
    logits = logits_row(4)
    row = sequence(temperature=0.0, logit_bias={17: 100.0}, logprobs=3)
    result = sample(logits, [row], EOS)
    raw = logits.log_softmax(-1)[0]
    got = result.logprobs[0]
    assert result.token_ids == [17] and got.token_id == 17
    assert got.logprob == pytest.approx(raw[17].item(), abs=1e-5)
    assert got.rank == 1 + int((raw > raw[17]).sum())
    assert got.top_ids == raw.topk(3).indices.tolist()
    assert got.top_logprobs == pytest.approx(raw.topk(3).values.tolist(), abs=1e-5)
    everything = sample(logits, [sequence(temperature=0.0, logprobs=-1)], EOS).logprobs[0]
    assert len(everything.top_ids) == VOCAB
    assert sample(logits, [sequence(temperature=0.0, logprobs=0)], EOS).logprobs[0].top_ids == []


def test_asked_logprobs_come_in_their_order():
    logits = logits_row()
    raw = torch.log_softmax(logits[0], dim=-1)
    row = sequence(temperature=0.0, logprobs=1, logprob_token_ids=[9, 3, 9], logit_bias={3: -5.0})
    got = sample(logits, [row], EOS).logprobs[0]
    assert got.asked_ids == [9, 3, 9]
    assert got.asked_logprobs == pytest.approx(raw[[9, 3, 9]].tolist(), abs=1e-5)
    assert len(got.top_ids) == 1
    assert sample(logits, [sequence(temperature=0.0, logprobs=1)], EOS).logprobs[0].asked_ids == []


def test_minus_infinity_becomes_a_finite_number():
    logits = torch.zeros(1, VOCAB)
    logits[0, 5] = -math.inf
    top = sample(logits, [sequence(temperature=0.0, logprobs=-1)], EOS).logprobs[0]
    assert min(top.top_logprobs) == -9999.0


def test_nan_is_reported_for_its_row_alone():
    logits = torch.cat([logits_row(5), logits_row(6)])
    logits[0, 7] = math.nan
    for temperature in (0.0, 1.0):
        result = sample(logits, [sequence(temperature=temperature), sequence(temperature=temperature)], EOS)
        assert result.is_broken == [True, False]


def test_input_logits_are_left_as_they_are():
    logits = logits_row(8)
    before = logits.clone()
    sample(logits, [sequence(temperature=0.7, repetition_penalty=2.0, logprobs=2)], EOS)
    assert torch.equal(logits, before)


def test_bad_words_of_several_tokens_are_completed_where_the_output_ends_with_their_beginning() -> None:
    choose = random.Random(0)
    for _ in range(2000):
        output = choose.choices((1, 2), k=choose.randrange(6))
        words = [choose.choices((1, 2, 3), k=choose.randrange(1, 6)) for _ in range(4)]
        longer = [word for word in words if len(word) > 1]
        expected = [word[-1] for word in longer if output[max(len(output) - len(word) + 1, 0) :] == word[:-1]]
        assert completed_words(sequence(output=output, bad_words=words)) == expected
