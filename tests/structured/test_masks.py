"""From bits to logits, and the masks of a step beside the forward pass."""

import math

import numpy as np
import pytest
import torch

from ember.engine.core.grammars.constraint import Constraint
from ember.engine.core.grammars.masks import MaskFiller, Masks, expand
from ember.engine.core.grammars.workers import GrammarWorkers
from ember.engine.core.sampler import sample
from ember.engine.core.sequence import Sequence
from ember.wire import Grammar, SamplingParams, Thinking
from tests.structured.json_model import END_THINK, EOS, NUM_ROWS, load
from tests.structured.waiting import matcher_of, wait_until


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 300])
def test_bits_are_tokens(vocab_size):
    words = -(-vocab_size // 32)
    bits = torch.randint(-(2**31), 2**31, (3, words), dtype=torch.int64).to(torch.int32)
    expected = np.unpackbits(bits.numpy().view(np.uint8), axis=1, bitorder="little")[:, :vocab_size]
    assert torch.equal(expand(bits, vocab_size), torch.from_numpy(expected).bool())


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_only_constrained_rows_change(device):
    logits = torch.randn(3, 40, device=device)
    before = logits.clone()
    bits = torch.tensor([[1 << 5, 0], [0, 1 << 2]], dtype=torch.int32)  # tokens 5 and 34
    Masks([2, 0], bits).apply(logits)
    assert torch.equal(logits[1], before[1])
    for row, token_id in ((2, 5), (0, 34)):
        assert logits[row].isfinite().nonzero().tolist() == [[token_id]]
        assert logits[row, token_id] == before[row, token_id]


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load(directory)


@pytest.fixture(scope="module")
def workers(directory, tokenizer):
    made = GrammarWorkers(directory, NUM_ROWS, [tokenizer.eos_token_id])
    matcher_of(made, Grammar("regex", "a")).close()  # from now on it is known how wide masks are
    return made


def sequence(workers, tokenizer, regex=None, **params) -> Sequence:
    params = {"max_tokens": 10, "temperature": 0.0, **params}
    grammar = Grammar("regex", regex) if regex is not None else None
    sampling = SamplingParams(grammar=grammar, **params)
    made = Sequence(1, 0, [1], 1, sampling, seed=0, priority=0, arrival=0, salt=b"")
    if regex is not None or "thinking" in params:
        matcher = matcher_of(workers, grammar) if grammar is not None else None
        made.grammar = Constraint(sampling, matcher, [tokenizer.eos_token_id], workers.num_words)
    return made


def tokens_of(masks: Masks, i: int) -> list[int]:
    return expand(masks.bits, NUM_ROWS)[i].nonzero().squeeze(-1).tolist()


def test_a_step_of_many_kinds_of_rows(workers, tokenizer):
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    end = tokenizer.token_id(END_THINK)
    step = [
        sequence(workers, tokenizer),
        sequence(workers, tokenizer, "a"),
        sequence(workers, tokenizer, thinking=Thinking([[end]], is_open=True, budget=0)),
        sequence(workers, tokenizer, thinking=Thinking([[end]], is_open=True, budget=5)),
        sequence(workers, tokenizer, "b", thinking=Thinking([[end]], is_open=True)),
        sequence(workers, tokenizer, "b"),
    ]
    filler = MaskFiller()
    masks = filler.start(step)()
    assert masks is not None and masks.rows == [1, 2, 4, 5] and not masks.errors
    assert [tokens_of(masks, i) for i in (0, 1, 3)] == [[a], [end], [b]]
    assert set(range(NUM_ROWS)) - set(tokens_of(masks, 2)) == {tokenizer.token_id(EOS)}
    assert filler.start([step[0], step[3]])() is None

    sampled = sample(torch.zeros(len(step), NUM_ROWS), step, [tokenizer.eos_token_id], masks)
    assert [sampled.token_ids[row] for row in (1, 2, 5)] == [a, end, b]


def test_masks_of_two_steps_do_not_share_memory(workers, tokenizer):
    filler = MaskFiller()
    steps = [[sequence(workers, tokenizer, text) for text in texts] for texts in ("a", "bb")]
    first, second = (filler.start(step)() for step in steps)
    assert first is not None and second is not None
    assert tokens_of(first, 0) == tokenizer.encode("a") and tokens_of(second, 1) == tokenizer.encode("b")
    third = filler.start([sequence(workers, tokenizer, "c")])()
    assert third is not None and tokens_of(second, 0) == tokenizer.encode("b")


def test_masks_come_before_the_choice_and_after_the_raw_distribution(workers, tokenizer):
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    logits = torch.full((1, NUM_ROWS), 0.0)
    logits[0, a], logits[0, b], logits[0, 7] = 1.0, 2.0, 9.0
    for params in ({}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1.0, "top_p": 0.1}):
        row = [sequence(workers, tokenizer, "a|b", logprobs=1, **params)]
        sampled = sample(logits, row, [tokenizer.eos_token_id], MaskFiller().start(row)())
        assert sampled.token_ids == [b]
        raw = torch.log_softmax(logits[0], dim=-1)
        assert sampled.logprobs[0].top_ids == [7] and sampled.logprobs[0].rank == 2
        assert math.isclose(sampled.logprobs[0].logprob, float(raw[b]), abs_tol=1e-5)


def test_a_row_with_nothing_left_is_an_error_and_leaves_the_others(workers, tokenizer):
    a = tokenizer.encode("a")[0]
    step = [
        sequence(workers, tokenizer, "a", bad_words=[[a]]),
        sequence(workers, tokenizer, "a", allowed_token_ids=[7], temperature=1.0),
        sequence(workers, tokenizer, "a"),
    ]
    sampled = sample(torch.zeros(3, NUM_ROWS), step, [tokenizer.eos_token_id], MaskFiller().start(step)())
    assert set(sampled.errors) == {0, 1} and "other options" in sampled.errors[0]
    assert sampled.token_ids[2] == a


def test_a_matcher_in_trouble_is_an_error_of_its_row(workers, tokenizer):
    step = [sequence(workers, tokenizer, "aa"), sequence(workers, tokenizer, "a")]
    matcher = step[0].grammar.matcher
    matcher.advance(tokenizer.encode("b"))  # from here on it is in an error state
    wait_until(workers, lambda: matcher.error is not None)
    masks = MaskFiller().start(step)()
    assert masks is not None and list(masks.errors) == [0] and "\n" not in masks.errors[0]
    assert tokens_of(masks, 1) == tokenizer.encode("a")
