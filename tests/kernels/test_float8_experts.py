"""Products of experts in float8 against their specification, in the interpreter or on the GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.expert_blocks import expert_blocks
from ember_kernels.float8_experts import float8_experts_reference, gather_float8, grouped_float8
from tests.kernels.test_float8_gemm import weight

EXPERTS = 5


@pytest.mark.parametrize("block", [(1, 1 << 20), (128, 128), (32, 64)])
def test_experts(device: str, block: tuple[int, int]) -> None:
    """Blocks of scales that two experts share, inputs that end within a tile, and a pair without an expert."""
    tokens, top_k, n, k = 19, 2, 48, 208
    made = weight(EXPERTS * n, k, block, device)
    a = torch.randn(tokens, k, device=device).bfloat16()
    ids = torch.rand(tokens, EXPERTS, device=device).argsort(1)[:, :top_k].contiguous()
    expected = float8_experts_reference(a, made, EXPERTS, ids, top_k).float()
    for block_m in (16, 64):
        found = grouped_float8(a, made, EXPERTS, expert_blocks(ids, EXPERTS, block_m), top_k).float()
        assert (found - expected).norm() < 1e-2 * expected.norm()
    ids[0, 1] = EXPERTS
    found = gather_float8(a[:3].contiguous(), made, EXPERTS, ids[:3], top_k).float()
    assert not found[1].any()
    found[1] = expected[1]
    assert (found - expected[:6]).norm() < 1e-2 * expected[:6].norm()


def test_sizes_that_do_not_fit(device: str) -> None:
    made = weight(EXPERTS * 8, 64, (128, 128), device)
    with pytest.raises(ValueError, match="does not fit weights of 3 experts, 40 rows of 64 inputs"):
        gather_float8(torch.zeros(1, 64, device=device).half(), made, 3, torch.zeros(1, dtype=torch.int64))
