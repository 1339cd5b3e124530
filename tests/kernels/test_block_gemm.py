"""Products with GGUF's blocks beside the `gguf` package's numbers, in the interpreter or on the GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember.gguf.types import BLOCKS
from ember_kernels.block_experts import gather_blocks, grouped_blocks
from ember_kernels.block_gemm import block_gemm, block_restore, config
from ember_kernels.block_types import BLOCK_TYPES
from ember_kernels.expert_blocks import expert_blocks
from tests.support.gguf_blocks import dequantized, random_blocks

EXPERTS = 3


def weight(name: str, n: int, k: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks, and their numbers in float32."""
    blocks = random_blocks(name, n, k)
    return blocks.to(device), dequantized(blocks, name).to(device)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    limit = 1e-2 if found.dtype == torch.bfloat16 else 2e-3
    return bool((found.float() - expected).norm() < limit * expected.norm())


def test_the_types_are_those_that_are_read() -> None:
    assert {name: (kind.size, kind.elements) for name, kind in BLOCK_TYPES.items()} == {
        name: (kind.size, kind.elements) for name, kind in BLOCKS.items()
    }


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_every_number_is_restored_and_multiplied(device: str, has_gpu: bool, name: str) -> None:
    """Rows that end within a tile, columns that do not fill one, a split of K, and a bias."""
    small = BLOCK_TYPES[name].elements
    cases = [(3, 72, 3 * small, torch.bfloat16), (17, 24, 2 * small + 512, torch.float16)]
    cases += [(1, 4096, 4096, torch.bfloat16), (64, 2048, 2560, torch.bfloat16)] * has_gpu
    for m, n, k, dtype in cases:
        blocks, numbers = weight(name, n, k, device)
        found = torch.full((n + 1, k), torch.nan, dtype=dtype, device=device)
        block_restore(blocks, name, found[:n])
        # A GPU may round a product and a sum once where the package rounds twice, which can move the last bit.
        torch.testing.assert_close(found[:n], numbers.to(dtype), rtol=2 * torch.finfo(dtype).eps * has_gpu, atol=1e-6)
        assert found[n].isnan().all()
        x = torch.randn(m, k, device=device).to(dtype)
        bias = torch.randn(n, device=device).to(dtype) if m > 1 else None
        expected = torch.nn.functional.linear(x.float(), numbers, None if bias is None else bias.float())
        assert close(block_gemm(x, blocks, name, bias), expected)


def test_a_product_without_splits_has_a_bias_too(device: str) -> None:
    assert config("Q4_0", 32, 64, 90).split_k == 1
    blocks, numbers = weight("Q4_0", 32, 64, device)
    x, bias = torch.randn(2, 64, device=device).bfloat16(), torch.randn(32, device=device).bfloat16()
    assert close(block_gemm(x, blocks, "Q4_0", bias), torch.nn.functional.linear(x.float(), numbers, bias.float()))


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "MXFP4"])
def test_experts(device: str, name: str) -> None:
    """Pairs sorted by expert in small and large blocks, and gathered, one of them without an expert."""
    tokens, top_k, n, k = 19, 2, 40, 256
    blocks, numbers = weight(name, EXPERTS * n, k, device)
    each = numbers.view(EXPERTS, n, k)
    a = torch.randn(tokens, k, device=device).bfloat16()
    ids = torch.rand(tokens, EXPERTS, device=device).argsort(1)[:, :top_k].contiguous()
    expected = torch.einsum("pk,pnk->pn", a.float().repeat_interleave(top_k, 0), each[ids.flatten()])
    for block_m in (16, 64):
        sorted_pairs = expert_blocks(ids, EXPERTS, block_m)
        assert close(grouped_blocks(a, blocks, name, EXPERTS, sorted_pairs, top_k), expected)
    some = ids[:2].clone()
    some[1, 0] = EXPERTS
    found = gather_blocks(a[:2].contiguous(), blocks, name, EXPERTS, some, top_k)
    assert close(found[[0, 1, 3]], expected[[0, 1, 3]]) and not found[2].any()


def test_refuses_what_it_cannot_do(device: str) -> None:
    blocks, _ = weight("Q4_K", 8, 512, device)
    x = torch.zeros(1, 512, device=device, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="1 to 64 contiguous rows"):
        block_gemm(x.expand(65, -1).contiguous(), blocks, "Q4_K")
    with pytest.raises(ValueError, match="take bfloat16 or float16"):
        block_gemm(x.float(), blocks, "Q4_K")
    with pytest.raises(ValueError, match=r"512 inputs in Q6_K do not fit torch.uint8 \(8, 288\)"):
        block_gemm(x, blocks, "Q6_K")
    with pytest.raises(ValueError, match="no type 'IQ1_S', but Q4_0, "):
        block_gemm(x, blocks, "IQ1_S")
    with pytest.raises(ValueError, match="weights of 3 experts, 8 rows"):
        gather_blocks(x, blocks, "Q4_K", 3, torch.zeros(1, dtype=torch.int64, device=device))
