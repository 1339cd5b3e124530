"""Sorting of (token, expert) pairs into blocks of one expert, against the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.expert_blocks import CHUNK, expert_blocks, expert_blocks_reference, max_expert_blocks

# (tokens, top_k, experts, block_m): one chunk and several, one block an expert and several, experts no power of two
CASES = [
    (1, 1, 8, 16),
    (1, 8, 128, 16),
    (13, 2, 8, 4),
    (CHUNK // 2 + 5, 2, 6, 16),
    (300, 3, 40, 32),
    (2 * CHUNK, 1, 3, 64),
]


def _check(expert_ids: torch.Tensor, num_experts: int, block_m: int) -> None:
    ours = expert_blocks(expert_ids, num_experts, block_m)
    expected = expert_blocks_reference(expert_ids, num_experts, block_m)
    assert torch.equal(ours.block_experts, expected.block_experts)
    assert torch.equal(ours.block_rows, expected.block_rows)
    used = expected.sorted_pairs >= 0
    assert torch.equal(ours.sorted_pairs[used], expected.sorted_pairs[used])
    assert ours.max_blocks == max_expert_blocks(expert_ids.numel(), num_experts, block_m)


@pytest.mark.parametrize(("tokens", "top_k", "num_experts", "block_m"), CASES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_random_routing(
    device: str, tokens: int, top_k: int, num_experts: int, block_m: int, dtype: torch.dtype
) -> None:
    scores = torch.rand(tokens, num_experts, device=device)
    _check(scores.topk(top_k, dim=-1).indices.to(dtype), num_experts, block_m)


def test_all_tokens_to_one_expert(device: str) -> None:
    _check(torch.full((70, 1), 5, dtype=torch.int32, device=device), 8, 16)
    _check(torch.zeros((CHUNK + 1, 1), dtype=torch.int32, device=device), 1, 16)


def test_the_worst_case_of_blocks_is_reached_and_not_passed(device: str) -> None:
    """Every expert has one pair more than whole blocks: the most blocks that there can be."""
    ids = torch.arange(8, dtype=torch.int32, device=device).repeat(5).reshape(-1, 1)
    blocks = expert_blocks(ids, 8, 4)
    assert (blocks.block_rows > 0).all()
    _check(ids, 8, 4)


def test_pairs_of_nobody_are_left_out(device: str) -> None:
    ids = torch.randint(-1, 12, (90, 4), dtype=torch.int32, device=device)
    _check(ids, 8, 16)  # experts 8 to 11 live on another rank
    _check(torch.full((3, 2), -1, dtype=torch.int32, device=device), 8, 16)


def test_refuses_what_it_cannot_do(device: str) -> None:
    with pytest.raises(ValueError, match="not empty"):
        expert_blocks(torch.zeros((0, 2), dtype=torch.int32, device=device), 8, 16)
    with pytest.raises(ValueError, match="<= 1024"):
        expert_blocks(torch.zeros((1, 2), dtype=torch.int32, device=device), 2000, 16)


@pytest.mark.parametrize("num_experts", [128, 512])
def test_a_long_prompt(device: str, has_gpu: bool, num_experts: int) -> None:
    if not has_gpu:
        pytest.skip("65,536 pairs take minutes in the interpreter")
    _check(torch.rand(8192, num_experts, device=device).topk(8).indices, num_experts, 64)
