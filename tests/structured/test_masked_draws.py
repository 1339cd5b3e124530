"""Draws under masks against the same draws from logits in which whatever the masks forbid is -inf."""

import math

import numpy as np
import pytest
import torch

from ember.engine.core.grammars.masks import FEW, MaskFiller, Masks, list_few
from ember.engine.core.sampler import FIRST_CHOICES, sample
from ember.engine.core.sequence import Sequence
from ember.wire import SamplingParams

VOCAB = 5003  # not of whole words
WORDS = 160  # wider than the vocabulary, as with a tokenizer that has more tokens than the logits have rows
EOS = [3]
COUNTS = [1, 2, 7, FEW - 1, FEW, FEW + 1, 2000, 3500, VOCAB - FEW, VOCAB - 1, VOCAB]
OPTIONS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.2, "top_k": FEW + 500},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 30.0, "top_p": 0.999},  # flat: the nucleus is most of what is left
    {"temperature": 0.8, "min_p": 0.1},
    {"temperature": 0.6, "top_p": 0.8, "top_k": 20, "min_p": 0.01},
    {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "logit_bias": {9: 5.0}},
    {"temperature": 0.0, "allowed_token_ids": list(range(0, VOCAB, 2))},
]


def sequence(seed: int, **params) -> Sequence:
    sampling = SamplingParams(max_tokens=10, **params)
    return Sequence(1, 0, [1, 2, 9, 11], 2, sampling, seed=seed, priority=0, arrival=0, salt=b"")


def pack(allowed: np.ndarray) -> np.ndarray:
    """[rows, vocab] bool -> [rows, words] int32; the bits beyond the vocabulary are set."""
    bits = np.ones((len(allowed), WORDS * 32), dtype=np.bool_)
    bits[:, : allowed.shape[1]] = allowed
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


def masks_of(allowed: np.ndarray, rows: list[int], with_lists: bool = True) -> Masks:
    bits = pack(allowed)
    lists = {row: list_few(bits[i], VOCAB) for i, row in enumerate(rows)} if with_lists else {}
    few = {row: found for row, found in lists.items() if found is not None}
    return Masks(rows, torch.from_numpy(bits), few=few)


def random_step(options: dict, with_lists: bool, seed: int = 0):
    """Rows of every count of tokens left, and one without a mask between them."""
    rng = np.random.default_rng(seed)
    rows = [row for row in range(len(COUNTS) + 1) if row != 4]
    allowed = np.zeros((len(rows), VOCAB), dtype=np.bool_)
    for own, count in zip(allowed, COUNTS, strict=True):
        own[rng.choice(VOCAB, count, replace=False)] = True
        own[0] = True  # of those that `allowed_token_ids` lets pass
    logits = torch.from_numpy(rng.normal(size=(len(rows) + 1, VOCAB)).astype(np.float32) * 3)
    sequences = [sequence(seed * 1000 + row, **options) for row in range(len(logits))]
    masked = logits.clone()
    masked[rows] = masked[rows].masked_fill(~torch.from_numpy(allowed), -torch.inf)
    return logits, masked, sequences, masks_of(allowed, rows, with_lists)


@pytest.mark.parametrize("with_lists", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_mask_is_minus_infinity_where_it_forbids(options, with_lists):
    for seed in range(5):
        logits, masked, sequences, masks = random_step(options, with_lists, seed)
        before = logits.clone()
        found = sample(logits, sequences, EOS, masks)
        assert found.token_ids == sample(masked, sequences, EOS).token_ids
        assert not any(found.is_broken) and not found.errors
        assert torch.equal(logits, before)


@pytest.mark.parametrize("options", OPTIONS[:-1], ids=str)
def test_a_seed_says_the_same_alone_and_among_others(options):
    logits, _, sequences, masks = random_step(options, True)
    together = sample(logits, sequences, EOS, masks).token_ids
    for i, row in enumerate(masks.rows):
        few = {0: masks.few[row]} if row in masks.few else {}
        alone = Masks([0], masks.bits[i : i + 1], few=few)
        assert sample(logits[row : row + 1], [sequences[row]], EOS, alone).token_ids == [together[row]]


def test_rows_of_different_options_side_by_side():
    logits, masked, _, masks = random_step({}, True)
    sequences = [sequence(row, **OPTIONS[row % len(OPTIONS)]) for row in range(len(logits))]
    assert sample(logits, sequences, EOS, masks).token_ids == sample(masked, sequences, EOS).token_ids


@pytest.mark.parametrize("num_forbidden", [1, FIRST_CHOICES - 1, FIRST_CHOICES, 3 * FIRST_CHOICES])
@pytest.mark.parametrize("above", [50.0, math.inf, math.nan])
def test_first_choices_that_are_forbidden(num_forbidden, above):
    allowed = np.ones((1, VOCAB), dtype=np.bool_)
    first = np.random.default_rng(num_forbidden).choice(VOCAB, num_forbidden, replace=False)
    allowed[0, first] = False
    logits = torch.randn(1, VOCAB)
    logits[0, torch.from_numpy(first)] = above
    before = logits.clone()
    sampled = sample(logits, [sequence(0, temperature=0.0)], EOS, masks_of(allowed, [0]))
    expected = before[0].masked_fill(~torch.from_numpy(allowed[0]), -math.inf).argmax()
    assert sampled.token_ids == [int(expected)] and sampled.is_broken == [False]
    assert torch.equal(logits.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("count", [5, 3000])
def test_nan_counts_where_it_may_be_drawn(temperature, count):
    allowed = np.zeros((2, VOCAB), dtype=np.bool_)
    allowed[:, :count] = True
    logits = torch.randn(2, VOCAB)
    logits[0, 4], logits[1, VOCAB - 1] = math.nan, math.nan
    sampled = sample(logits, [sequence(i, temperature=temperature) for i in range(2)], EOS, masks_of(allowed, [0, 1]))
    assert sampled.is_broken == [True, False] and not sampled.errors
    assert sampled.token_ids[1] < count


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_allowed_is_an_error_of_its_row(temperature):
    allowed = np.zeros((3, VOCAB), dtype=np.bool_)
    allowed[1, 4], allowed[2, :3000] = True, True
    logits = torch.randn(3, VOCAB)
    logits[2, :3000] = -math.inf
    sequences = [sequence(row, temperature=temperature) for row in range(3)]
    sampled = sample(logits, sequences, EOS, masks_of(allowed, [0, 1, 2]))
    assert set(sampled.errors) == {0, 2} and sampled.token_ids[1] == 4


def test_logits_are_as_they_were_where_only_a_forbidden_token_is_possible():
    allowed = np.ones((1, VOCAB), dtype=np.bool_)
    allowed[0, 0] = False
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, 0] = 2.0
    sampled = sample(logits, [sequence(0, temperature=0.0)], EOS, masks_of(allowed, [0]))
    assert set(sampled.errors) == {0}
    assert float(logits[0, 0]) == 2.0 and int(logits.isfinite().sum()) == 1


@pytest.mark.parametrize("count", [0, 1, FEW, FEW + 1, VOCAB])
def test_a_list_is_of_all_tokens_that_are_left_and_no_others(count):
    allowed = np.zeros((1, VOCAB), dtype=np.bool_)
    chosen = np.sort(np.random.default_rng(count).choice(VOCAB, count, replace=False))
    allowed[0, chosen] = True
    found = list_few(pack(allowed)[0], VOCAB)
    if count > FEW:
        assert found is None
    else:
        assert found is not None and found.tolist() == chosen.tolist()


class Fixed:
    """A constraint whose mask is given."""

    needs_mask = True
    is_ready = True
    matcher = None

    def __init__(self, bits: np.ndarray) -> None:
        self.bits = bits
        self.num_words = len(bits)

    def fill(self, bits: np.ndarray) -> None:
        bits[:] = self.bits

    def prepare(self) -> None:
        pass


def test_lists_outlive_the_buffer_of_their_masks():
    filler = MaskFiller(vocab_size=VOCAB)
    steps = []
    for token_id in (7, 40, 4999):
        allowed = np.zeros((1, VOCAB), dtype=np.bool_)
        allowed[0, token_id] = True
        row = sequence(0, temperature=0.0)
        row.grammar = Fixed(pack(allowed)[0])  # type: ignore[assignment]
        steps.append(filler.start([row])())
    assert [masks.few[0].tolist() for masks in steps if masks is not None] == [[7], [40], [4999]]
    assert MaskFiller().start([row])().few == {}  # type: ignore[union-attr]
