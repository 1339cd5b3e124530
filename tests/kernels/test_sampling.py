"""Sampling against the reference: kept sets, draws, penalties, masks, ties, independence of the batch."""

from __future__ import annotations

import math
import random

import pytest
import torch
import triton
import triton.language as tl

from ember_kernels import sampling_reference as reference
from ember_kernels.sampling import Constraints, Workspace, pack_bitmask, sample, unpack_bitmask
from ember_kernels.sampling_keys import gumbel
from ember_kernels.sampling_reference import sample_reference
from ember_kernels.step_update import sampling_words

OFF = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "seed": 0}
FILTERS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 600},
    {"top_p": 0.0},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 900, "top_p": 0.5, "min_p": 0.01},
    {"top_p": 0.7, "min_p": 0.2},
]


def table(rows, device):
    """Parameters of the rows, with columns beyond the batch as a step's buffer has."""
    words = torch.tensor([sampling_words(**(OFF | row)) for row in rows], dtype=torch.int32).t().contiguous()
    return torch.nn.functional.pad(words, (0, 3)).to(device)


def places(count, device, first=0):
    return torch.arange(first, first + count, dtype=torch.int32, device=device)


def kept_by_kernel(workspace, row, vocab, min_p=0.0):
    """The set that the kernels kept: what passes min-p, and has a key that reaches the threshold."""
    collected = workspace.candidates[row, : int(workspace.num_candidates[row])]
    assert len(collected.unique()) == len(collected)
    x = workspace.scaled[row, :vocab]
    lowest = x.max() + math.log(max(min_p, 1e-30)) if min_p > 0.0 else -math.inf
    candidates = ((x >= lowest) & (x > -math.inf)).nonzero().squeeze(-1)
    bits = x[candidates].clone()
    bits = torch.where(bits == 0, 0.0, bits).view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) + (1 << 31)
    keys = (ordered << 20) | ((1 << 20) - 1 - candidates)
    kept = torch.zeros(vocab, dtype=torch.bool, device=candidates.device)
    return kept.index_fill_(0, candidates[keys >= workspace.threshold[row]], True)


def check_kept(workspace, rows, logits):
    """The same sets as the reference's, but for a boundary that the last bits of exp decide."""
    for row, options in enumerate(rows):
        values = OFF | options
        if values["top_k"] >= logits.shape[1] and values["top_p"] == 1.0 and values["min_p"] == 0.0:
            continue  # no filter: nothing is collected
        values |= {name: float(torch.tensor(values[name])) for name in ("top_p", "min_p")}  # as float32
        x = logits[row].float() / torch.tensor(values["temperature"], device=logits.device)
        expected = reference.kept_tokens(x, values)
        actual = kept_by_kernel(workspace, row, logits.shape[1], values["min_p"])
        difference = (actual != expected).nonzero().squeeze(-1)
        if len(difference) == 0:
            continue
        assert len(difference) <= 1, (options, len(difference))
        assert values["top_p"] < 1.0
        mass = x[expected | actual].softmax(-1).double().sum()
        assert abs(float(mass) - 1) < 1e-4


@pytest.mark.parametrize(
    ("dtype", "vocabularies"), [(torch.float32, [1, 1600]), (torch.bfloat16, [37, 1000]), (torch.float16, [1025])]
)
def test_kept_sets_and_tokens_are_the_references(device, has_gpu, dtype, vocabularies):
    for vocab in vocabularies + ([50257, 151936, 262144] if has_gpu else []):
        rows = [options | {"seed": i, "temperature": 0.5 + 0.2 * i} for i, options in enumerate(FILTERS)]
        logits = (3 * torch.randn(len(rows), vocab, device=device)).to(dtype)
        workspace = Workspace.create(len(rows) + 2, vocab, device)
        workspace.scaled.fill_(math.nan)
        workspace.candidates.fill_(-1)
        workspace.best.fill_(1 << 60)
        workspace.histogram.fill_(9)
        arguments = (logits, table(rows, device), places(len(rows), device))
        tokens, is_broken = sample(*arguments, workspace=workspace)
        assert not is_broken.any()
        check_kept(workspace, rows, logits)
        assert torch.equal(tokens, sample_reference(*arguments)[0])


def test_flat_distributions_and_ties_are_cut_by_the_lower_id(device):
    vocab = 3000
    flat = torch.zeros(vocab)
    steps = torch.arange(vocab) // 100 * -0.5
    coarse = torch.randn(vocab).mul(2).round()
    tail = torch.linspace(0, -60, vocab)
    rows = [{"top_k": 10}, {"top_p": 0.5}, {"top_k": 150}, {"top_p": 0.95}, {"top_k": 50, "top_p": 0.5}, {"top_p": 0.9}]
    logits = torch.stack([flat, flat, steps, steps, coarse, tail]).to(device)
    workspace = Workspace.create(len(rows), vocab, device)
    sample(logits, table(rows, device), places(len(rows), device), workspace=workspace)
    kept = [kept_by_kernel(workspace, row, vocab) for row in range(len(rows))]
    assert kept[0].nonzero().squeeze(-1).tolist() == list(range(10))
    assert kept[1].nonzero().squeeze(-1).tolist() == list(range(vocab // 2))
    assert kept[2].nonzero().squeeze(-1).tolist() == list(range(150))
    check_kept(workspace, rows, logits)


def test_of_a_flat_distribution_one_program_sees_a_few_bins(device):
    vocab = 6000
    rows = [
        {"top_p": 0.99, "temperature": 2.0},
        {"top_p": 0.5, "temperature": 2.0},
        {"top_k": 5000, "top_p": 0.95, "temperature": 1.5},
        {"top_k": 5990, "temperature": 3.0},
        {"min_p": 1e-4},
        {"top_k": 5000, "top_p": 0.2, "min_p": 1e-3},
    ]
    arguments = (3 * torch.randn(len(rows), vocab, device=device), table(rows, device), places(len(rows), device))
    workspace = Workspace.create(len(rows), vocab, device)
    tokens, _ = sample(*arguments, workspace=workspace)
    check_kept(workspace, rows, arguments[0])
    assert torch.equal(tokens, sample_reference(*arguments)[0])
    assert int(workspace.num_candidates.max()) < vocab // 5
    assert int(workspace.num_candidates[4]) == 0  # min-p needs no threshold


@pytest.mark.parametrize("seed", range(4))
def test_any_filters_of_any_distribution(device, seed):
    draw = random.Random(seed)
    vocab = draw.choice((50, 700, 1500))
    rows = [
        {
            "temperature": draw.choice((0.3, 1.0, 3.0)),
            "top_k": draw.choice((0, 1, draw.randrange(1, vocab + 5))),
            "top_p": draw.choice((1.0, 0.0, draw.random(), 1 - 10 ** -draw.uniform(1, 7))),
            "min_p": draw.choice((0.0, 0.0, 10 ** -draw.uniform(0, 6))),
            "seed": draw.randrange(1 << 40),
        }
        for _ in range(24)
    ]
    shapes = (lambda x: x, lambda x: x.round(), lambda x: 20 * x, lambda x: x.clamp(max=0), lambda x: 0 * x)
    logits = torch.stack([draw.choice(shapes)(torch.randn(vocab)) for _ in rows]).to(device)
    arguments = (logits, table(rows, device), places(len(rows), device))
    workspace = Workspace.create(len(rows), vocab, device)
    sample(*arguments, workspace=workspace)
    filtered = [i for i, row in enumerate(rows) if row["top_p"] < 1.0 or row["min_p"] > 0.0 or 0 < row["top_k"] < vocab]
    for row in filtered:
        values = OFF | rows[row]
        values |= {name: float(torch.tensor(values[name])) for name in ("top_p", "min_p")}
        x = logits[row] / torch.tensor(values["temperature"], device=device)
        difference = kept_by_kernel(workspace, row, vocab, values["min_p"]) != reference.kept_tokens(x, values)
        assert int(difference.sum()) <= 1, rows[row]  # a boundary that the last bits of exp decide


@pytest.mark.parametrize("num_entries", [1, 511, 512])
def test_every_entry_of_a_bias_is_added_once(device, num_entries):
    vocab = 3000
    ids = torch.cat((torch.tensor([0, 1023, 1024, 2047, 2048, 2999]), 1 + torch.randperm(1000))).unique()
    ids = ids[torch.randperm(len(ids))[:num_entries]].sort().values
    limits = Constraints(
        bias_ids=torch.nn.functional.pad(ids, (0, 512 - num_entries), value=5)[None].int().to(device),
        bias_values=torch.randn(1, 512, device=device),
        bias_counts=torch.tensor([num_entries], dtype=torch.int32, device=device),
    )
    logits = torch.randn(1, vocab, device=device)
    workspace = Workspace.create(1, vocab, device)
    slots = torch.zeros(1, dtype=torch.int32, device=device)
    sample(logits, table([{"top_k": 9}], device), slots, slots=slots, constraints=limits, workspace=workspace)
    logits[0, ids.to(device)] += limits.bias_values[0, :num_entries]
    torch.testing.assert_close(workspace.scaled[:, :vocab], logits)


def test_greedy_takes_the_lowest_id_of_ties(device):
    logits = torch.zeros(4, 2500, device=device)
    logits[0, [2001, 700, 1300]] = 3.0
    logits[1, 5:] = -0.0
    logits[2] = -7.0
    logits[3, 2499] = 1.0
    tokens, _ = sample(logits, table([{"temperature": 0.0}] * 4, device), places(4, device), has_filters=False)
    assert tokens.tolist() == [700, 0, 0, 2499]


def test_nan_and_rows_without_an_allowed_token_are_reported(device):
    logits = torch.randn(6, 1200, device=device)
    logits[1, 1100] = math.nan
    logits[2] = -math.inf
    logits[3] = -math.inf
    logits[4] = -math.inf
    logits[4, 77] = 0.0
    rows = [{}, {}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.5}, {"top_p": 0.5}, {"top_k": 3}]
    arguments = (logits, table(rows, device), places(6, device))
    tokens, is_broken = sample(*arguments)
    assert is_broken.tolist() == [False, True, True, True, False, False]
    assert tokens[2:5].tolist() == [0, 0, 77]
    expected_tokens, expected_broken = sample_reference(*arguments)
    assert torch.equal(is_broken, expected_broken)
    assert torch.equal(tokens, expected_tokens)


def constraints(vocab, slots, device):
    counts = torch.randint(0, 4, (slots, vocab)) * (torch.rand(slots, vocab) < 0.1)
    return Constraints(
        mask=pack_bitmask(torch.rand(3, vocab) < 0.5).to(device),
        mask_rows=torch.tensor([0, -1, 2, 1, -1, 0], dtype=torch.int32, device=device),
        bias_ids=torch.stack([torch.randperm(vocab)[:9].sort().values for _ in range(slots)]).int().to(device),
        bias_values=(20 * torch.randn(slots, 9)).to(device),
        bias_counts=torch.tensor([9, 0, 3, 9, 1, 5, 9][:slots], dtype=torch.int32, device=device),
        prompt_mask=pack_bitmask(torch.rand(slots, vocab) < 0.2).to(device),
        output_counts=counts.to(torch.int16).to(device),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [999, 2080])
def test_penalties_masks_and_bias(device, dtype, vocab):
    limits = constraints(vocab, 7, device)
    slots = torch.tensor([4, 0, 6, -1, 2, 3], dtype=torch.int32, device=device)
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": -0.25}
    rows = [
        {"temperature": 0.0} | penalties,
        {"temperature": 0.8} | penalties,
        {"top_k": 20, "temperature": 0.7, "repetition_penalty": 0.8},
        {"top_p": 0.9} | penalties,
        {"temperature": 0.0, "frequency_penalty": 2.0},
        {"min_p": 0.1, "presence_penalty": 1.5},
    ]
    logits = (4 * torch.randn(6, vocab, device=device)).to(dtype)
    counts = limits.output_counts.clone()
    arguments = (logits, table(rows, device), places(6, device, first=9))
    workspace = Workspace.create(6, vocab, device)
    tokens, _ = sample(*arguments, slots=slots, constraints=limits, workspace=workspace)
    counted = limits.output_counts.clone()
    limits.output_counts.copy_(counts)
    expected, _ = sample_reference(*arguments, slots=slots, constraints=limits)
    assert torch.equal(tokens, expected)
    assert torch.equal(counted, limits.output_counts)
    assert int((counted - counts).sum()) == 5  # every row with a slot
    limits.output_counts.copy_(counts)
    for row in (2, 3, 5):
        values = reference.row_parameters(arguments[1][:, row])
        x = reference.process_row(logits[row].float(), values, int(slots[row]), int(limits.mask_rows[row]), limits)
        torch.testing.assert_close(workspace.scaled[row, :vocab], x / values["temperature"])


def test_counts_saturate(device):
    limits = Constraints(
        prompt_mask=torch.zeros(1, 2, dtype=torch.int32, device=device),
        output_counts=torch.full((1, 40), 32767, dtype=torch.int16, device=device),
    )
    slots = torch.zeros(1, dtype=torch.int32, device=device)
    sample(torch.randn(1, 40, device=device), table([{}], device), slots, slots=slots, constraints=limits)
    assert int(limits.output_counts.min()) == 32767


def test_a_token_does_not_depend_on_the_batch(device):
    vocab = 2500
    logits = torch.randn(9, vocab, device=device)
    rows = [FILTERS[i % len(FILTERS)] | {"seed": 10**15 + i} for i in range(8)] + [{"seed": -3}]
    together, _ = sample(logits, table(rows, device), places(9, device, first=4))
    for row in (0, 4, 8):
        alone, _ = sample(logits[row : row + 1], table(rows[row : row + 1], device), places(1, device, first=4 + row))
        assert int(alone) == int(together[row])
    reversed_rows, _ = sample(logits.flip(0), table(rows[::-1], device), places(9, device, first=4).flip(0))
    assert torch.equal(reversed_rows.flip(0), together)


@triton.jit
def noise_kernel(out_ptr, stream, size, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + index, gumbel(stream.to(tl.uint64), index), mask=index < size)


def test_the_noise_of_the_kernels_is_the_references(device):
    """Within 3e-6, also where it is largest: over 40,000 draws the series and the logarithm are both in use."""
    for seed, position in ((3, 7), (1 << 63, 100_000)):
        out = torch.full((40_000,), math.nan, device=device)
        stream = reference._splitmix64(reference._splitmix64(seed) ^ position)
        noise_kernel[(40,)](out, stream, len(out), BLOCK=1024)
        expected = reference.gumbel(seed, position, len(out))
        assert expected.max() > 9 and expected.min() < -2
        torch.testing.assert_close(out.cpu(), expected, rtol=1e-6, atol=3e-6)


def test_the_noise_has_the_right_distribution():
    noise = torch.cat([reference.gumbel(seed, position, 5000) for seed in range(3) for position in range(10)])
    assert abs(float(noise.mean()) - 0.5772) < 0.01
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.03
    first, second = reference.gumbel(1, 5, 5000), reference.gumbel(1, 6, 5000)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.05


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_the_distribution(device, has_gpu, options):
    """Chi-squared over draws at many positions and two seeds. Without a GPU the reference draws, and the kernels the
    same for the first few."""
    vocab, draws, compared = 12, 20_000 if has_gpu else 2_000, 4
    logits = torch.randn(vocab, device=device) * 1.5
    words = table([options | {"seed": 3}, options | {"seed": 4}], device)[:, :2].repeat(1, draws // 2)
    batch = logits.expand(draws, vocab).contiguous()
    drawing = sample if has_gpu else sample_reference
    tokens, _ = drawing(batch, words, places(draws, device))
    few, _ = sample(batch[:compared], words, places(compared, device))
    assert torch.equal(few, tokens[:compared])
    values = OFF | options
    x = logits / values["temperature"]
    probabilities = torch.where(reference.kept_tokens(x, values), x, -math.inf).softmax(-1)
    counts = torch.bincount(tokens, minlength=vocab)
    assert not counts[probabilities == 0].any()
    expected = draws * probabilities
    likely = expected > 5
    freedom = int(likely.sum())
    assert float(((counts - expected) ** 2 / expected)[likely].sum()) < freedom + 5 * math.sqrt(2 * freedom)


def test_strided_logits_and_refusals(device):
    wide = torch.randn(3, 1100, device=device)
    arguments = (wide[:, :1000], table([{"top_k": 5}] * 3, device), places(3, device))
    assert torch.equal(sample(*arguments)[0], sample_reference(*arguments)[0])
    with pytest.raises(ValueError, match="the batch 3"):
        sample(*arguments, workspace=Workspace.create(2, 1000, device))
    with pytest.raises(ValueError, match="together"):
        sample(*arguments, constraints=Constraints(prompt_mask=torch.zeros(1, 32, dtype=torch.int32, device=device)))


def test_bitmask_round_trip():
    allowed = torch.rand(3, 77) < 0.5
    mask = pack_bitmask(allowed)
    assert mask.shape == (3, 3)
    assert mask.dtype == torch.int32
    assert torch.equal(unpack_bitmask(mask, 77), allowed)
