"""Products of experts with codes of 4 bits against their specification, in the interpreter or on the GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.expert_blocks import expert_blocks
from ember_kernels.table_experts import gather_table, grouped_table, table_experts_reference
from tests.kernels.test_table_gemm import weight

EXPERTS = 5


@pytest.mark.parametrize("block_m", [16, 64])
@pytest.mark.parametrize("form", ["mxfp4", "nvfp4", "nf4", "a table for each row"])
def test_grouped(device: str, form: str, block_m: int) -> None:
    tokens, top_k, n, k = 19, 2, 40, 192
    made = weight(form, EXPERTS * n, k, device)
    a = torch.randn(tokens, k, device=device).to(torch.bfloat16)
    ids = torch.rand(tokens, EXPERTS, device=device).argsort(1)[:, :top_k].contiguous()
    found = grouped_table(a, made, EXPERTS, expert_blocks(ids, EXPERTS, block_m), top_k).float()
    expected = table_experts_reference(a, made, EXPERTS, ids, top_k).float()
    assert (found - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["mxfp4", "nvfp4", "nf4", "a table for each row"])
def test_gathered(device: str, form: str, dtype: torch.dtype) -> None:
    """More inputs than a tile has, and a pair without an expert."""
    n, k = 24, 576
    made = weight(form, EXPERTS * n, k, device)
    a = torch.randn(6, k, device=device).to(dtype)
    ids = torch.tensor([0, 4, 2, EXPERTS, 1, 4], device=device)
    found, expected = gather_table(a, made, EXPERTS, ids), table_experts_reference(a, made, EXPERTS, ids)
    assert not found[3].any()
    assert (found.float() - expected.float()).norm() < 1e-2 * expected.float().norm()


def test_sizes_that_do_not_fit(device: str) -> None:
    made = weight("mxfp4", EXPERTS * 8, 64, device)
    with pytest.raises(ValueError, match="does not fit weights of 3 experts, 40 rows of 64 inputs"):
        gather_table(torch.zeros(1, 64, device=device).half(), made, 3, torch.zeros(1, dtype=torch.int64))
