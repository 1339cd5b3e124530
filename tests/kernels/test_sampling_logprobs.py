"""Log probabilities, ranks and most likely tokens against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from ember_kernels.sampling_logprobs import logprobs, logprobs_reference


def check(logits, token_ids, num_top):
    actual = logprobs(logits, token_ids, num_top)
    expected = logprobs_reference(logits, token_ids, num_top)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-4)
    assert torch.equal(actual[1], expected[1])
    assert torch.equal(actual[2], expected[2])
    torch.testing.assert_close(actual[3], expected[3], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logprobs(device, has_gpu, dtype):
    for vocab in [1, 50, 4096, 9001] + ([50257, 151936, 262144] if has_gpu else []):
        logits = (3 * torch.randn(3, vocab, device=device)).to(dtype)
        token_ids = torch.randint(0, vocab, (3,), device=device)
        token_ids[0] = logits[0].argmax()
        for num_top in {0, 1, 5, 20}:
            if num_top <= vocab:
                check(logits, token_ids, num_top)


def test_ties_and_masked_logits(device):
    logits = torch.randn(3, 9000, device=device).mul(2).round()
    logits[1] = 0.0
    logits[2] = -math.inf
    logits[2, [17, 8500]] = 1.0
    token_ids = torch.tensor([5, 8999, 8500], device=device)
    check(logits[:2], token_ids[:2], 20)
    drawn, rank, top_ids, top = logprobs(logits, token_ids, 4)
    assert rank.tolist()[1:] == [1, 1]
    assert top_ids[1].tolist() == [0, 1, 2, 3]
    assert top_ids[2, :2].tolist() == [17, 8500]
    assert top[2].tolist() == pytest.approx([-math.log(2)] * 2 + [-math.inf] * 2)
    assert float(drawn[2]) == pytest.approx(-math.log(2))


def test_strided_rows_and_refusals(device):
    logits = torch.randn(2, 300, device=device)[:, :200]
    check(logits, torch.tensor([3, 9], device=device), 20)
    with pytest.raises(ValueError, match="between 0 and 20"):
        logprobs(logits, torch.tensor([3, 9], device=device), 21)
