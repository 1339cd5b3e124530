"""Products of experts with integers against their specification, in the interpreter or on the GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.expert_blocks import expert_blocks
from ember_kernels.int_experts import gather_ints, grouped_ints, int_experts_reference
from tests.kernels.test_int_gemm import weight

EXPERTS = 5


@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize(("bits", "zeros"), [(4, True), (4, False), (8, True)])
def test_grouped(device: str, bits: int, zeros: bool, block_m: int) -> None:
    tokens, top_k, n, k = 19, 2, 40, 192
    made = (*weight(EXPERTS * n, k, 64, bits, zeros, torch.float16, device), bits)
    a = torch.randn(tokens, k, device=device).to(torch.bfloat16)
    ids = torch.rand(tokens, EXPERTS, device=device).argsort(1)[:, :top_k].contiguous()
    found = grouped_ints(a, made, EXPERTS, expert_blocks(ids, EXPERTS, block_m), top_k).float()
    expected = int_experts_reference(a, made, EXPERTS, ids, top_k).float()
    assert (found - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "zeros"), [(4, True), (8, False)])
def test_gathered(device: str, bits: int, zeros: bool, dtype: torch.dtype) -> None:
    """More inputs than a tile has, and a pair without an expert."""
    n, k = 24, 256
    made = (*weight(EXPERTS * n, k, 128, bits, zeros, torch.bfloat16, device), bits)
    a = torch.randn(6, k, device=device).to(dtype)
    ids = torch.tensor([0, 4, 2, EXPERTS, 1, 4], device=device)
    found, expected = gather_ints(a, made, EXPERTS, ids), int_experts_reference(a, made, EXPERTS, ids)
    assert not found[3].any()
    assert (found.float() - expected.float()).norm() < 1e-2 * expected.float().norm()


def test_sizes_that_do_not_fit(device: str) -> None:
    made = (*weight(EXPERTS * 8, 64, 64, 4, False, torch.float16, device), 4)
    with pytest.raises(ValueError, match="does not fit weights of 3 experts, 40 rows of 64 inputs"):
        gather_ints(torch.zeros(1, 64, device=device).half(), made, 3, torch.zeros(1, dtype=torch.int64))
