"""The products of a mixture-of-experts layer against their references, and a whole layer against plain torch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.expert_blocks import expert_blocks
from ember_kernels.grouped_gemm import (
    block_rows,
    combine_experts,
    combine_experts_reference,
    gather_gemm,
    gather_gemm_reference,
    grouped_gemm,
    grouped_gemm_reference,
    uses_gather,
)

DTYPES = [torch.bfloat16, torch.float16]


def _random(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (torch.randn(shape, device=device) / shape[-1] ** 0.25).to(dtype)


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-2 if actual.dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "n", "k", "block_m"),
    [(5, 2, 4, 40, 48, 16), (40, 2, 3, 72, 128, 32), (70, 1, 2, 130, 80, 64), (129, 1, 1, 16, 64, 128)],
)
def test_grouped(
    device: str, dtype: torch.dtype, tokens: int, top_k: int, experts: int, n: int, k: int, block_m: int
) -> None:
    ids = torch.rand(tokens, experts, device=device).topk(top_k).indices.int()
    blocks = expert_blocks(ids, experts, block_m)
    w = _random(device, dtype, experts, n, k)
    router = torch.rand(tokens, top_k, device=device)
    for a, divisor, weights in (
        (_random(device, dtype, tokens, k), top_k, None),
        (_random(device, dtype, tokens * top_k, k), 1, router),
        (_random(device, dtype, tokens * top_k, k), 1, router.to(dtype)),
    ):
        out = torch.full((tokens * top_k, n), float("nan"), dtype=dtype, device=device)
        grouped_gemm(a, w, blocks, divisor, weights, out)
        _close(out, grouped_gemm_reference(a, w, blocks, divisor, weights))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_of_nobody_are_not_written(device: str, dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, 5], [-1, 1], [7, -1]], dtype=torch.int32, device=device)
    a, w = _random(device, dtype, 3, 32), _random(device, dtype, 2, 24, 32)
    blocks = expert_blocks(ids, 2, 16)
    out = torch.full((6, 24), 9.0, dtype=dtype, device=device)
    grouped_gemm(a, w, blocks, 2, out=out)
    here = torch.tensor([True, False, False, True, False, False], device=device)
    assert (out[~here] == 9).all()
    _close(out[here], gather_gemm_reference(a, w, ids, 2)[here])
    out[~here] = float("nan")
    router = torch.rand(3, 2, device=device)
    _close(combine_experts(out, ids, router, 2), combine_experts_reference(out, ids, router, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(40, 48), (33, 512), (16, 1024), (24, 272)])
def test_gather(device: str, dtype: torch.dtype, n: int, k: int) -> None:
    ids = torch.tensor([[3, 0], [-1, 3]], dtype=torch.int64, device=device)
    w = _random(device, dtype, 4, n, k)
    router = torch.rand(2, 2, device=device)
    for a, top_k, weights in (
        (_random(device, dtype, 2, k), 2, None),
        (_random(device, dtype, 4, k), 1, router),
    ):
        _close(gather_gemm(a, w, ids, top_k, weights), gather_gemm_reference(a, w, ids, top_k, weights))


@pytest.mark.parametrize("router", [False, True])
def test_combine(device: str, router: bool) -> None:
    x = torch.randn(7 * 3, 1030, device=device).bfloat16()
    ids = torch.randint(-1, 5, (7, 3), dtype=torch.int32, device=device)
    weights = torch.rand(7, 3, device=device) if router else None
    _close(combine_experts(x, ids, weights, 4), combine_experts_reference(x, ids, weights, 4))


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_layer_of_experts(device: str, has_gpu: bool, tokens: int) -> None:
    """The recipe of the module's docstring against every expert on every token."""
    experts, top_k, hidden, intermediate = (64, 8, 2048, 768) if has_gpu else (6, 3, 64, 48)
    x = _random(device, torch.float16, tokens, hidden)
    gate_up = _random(device, torch.float16, experts, 2 * intermediate, hidden) / hidden**0.25
    down = _random(device, torch.float16, experts, hidden, intermediate) / intermediate**0.25
    weights, ids = torch.rand(tokens, experts, device=device).softmax(-1).topk(top_k)
    ids = ids.int()
    gather = uses_gather(tokens)
    blocks = expert_blocks(ids, experts, block_rows(ids.numel(), experts))
    up = gather_gemm(x, gate_up, ids, top_k) if gather else grouped_gemm(x, gate_up, blocks, top_k)
    act = torch.nn.functional.silu(up[:, :intermediate]) * up[:, intermediate:]
    out = gather_gemm(act, down, ids) if gather else grouped_gemm(act, down, blocks)
    out = combine_experts(out, ids, weights, experts)

    expected = torch.zeros(tokens, hidden, device=device)
    for token in range(tokens):
        for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
            gate, value = (gate_up[expert].float() @ x[token].float()).chunk(2)
            expected[token] += weight * (down[expert].float() @ (torch.nn.functional.silu(gate) * value))
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)


def test_block_rows_grow_with_the_load() -> None:
    assert [block_rows(pairs, 8) for pairs in (8, 128, 129, 300, 513)] == [16, 16, 32, 64, 128]


def test_refuses_what_it_cannot_do(device: str) -> None:
    ids = torch.zeros((1, 1), dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="multiple of 16"):
        gather_gemm(torch.zeros(1, 24, device=device).half(), torch.zeros(1, 4, 24, device=device).half(), ids)
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        gather_gemm(torch.zeros(1, 16, device=device), torch.zeros(1, 4, 16, device=device), ids)
    with pytest.raises(ValueError, match="contiguous"):
        w = torch.zeros(1, 16, 4, device=device).half().transpose(1, 2)
        gather_gemm(torch.zeros(1, 16, device=device).half(), w, ids)
