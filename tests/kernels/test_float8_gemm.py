"""Products with float8 weights against their specification, in the interpreter or on the GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.float8_gemm import (
    can_multiply,
    float8_gemm,
    float8_gemm_reference,
    float8_restore,
    float8_restore_reference,
    quantise_rows,
    quantise_rows_reference,
)

FORMS = [(1, 1 << 20), (128, 128), (1, 128), (32, 64), (48, 32)]
SMALL = [(1, 40, 256), (5, 136, 528), (17, 72, 640), (33, 8, 48)]
REAL = [(1, 4096, 4096), (64, 1024, 3072), (7, 5120, 8192)]


def weight(n: int, k: int, block: tuple[int, int], device: str) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    codes = (torch.randn(n, k, device=device) * 100).to(torch.float8_e4m3fn)
    block = block[0], min(block[1], k)
    scales = torch.rand(-(-n // block[0]), -(-k // block[1]), device=device) * 1e-3 + 1e-4
    return codes, scales, block


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-2 if found.dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", FORMS)
def test_matches_the_reference(device: str, has_gpu: bool, block: tuple[int, int], dtype: torch.dtype) -> None:
    for m, n, k in SMALL + REAL * has_gpu:
        x = torch.randn(m, k, device=device).to(dtype)
        codes, scales, size = weight(n, k, block, device)
        bias = torch.randn(n, device=device).to(dtype) if m > 1 else None
        close(float8_gemm(x, codes, scales, size, bias), float8_gemm_reference(x, codes, scales, size, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", FORMS)
def test_restores_every_number(device: str, block: tuple[int, int], dtype: torch.dtype) -> None:
    codes, scales, size = weight(70, 528, block, device)
    every = torch.arange(256, device=device, dtype=torch.uint8)
    codes.view(torch.uint8)[0, :256] = torch.where(every & 127 == 127, 0, every)  # all but NaN
    made = [torch.empty(codes.shape, dtype=dtype, device=device) for _ in range(2)]
    assert torch.equal(
        float8_restore(codes, scales, size, made[0]), float8_restore_reference(codes, scales, size, made[1])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounds_rows(device: str, dtype: torch.dtype) -> None:
    x = torch.randn(5, 2100, device=device).to(dtype)[:, :2080] * torch.tensor([[1.0], [30.0], [1e-3], [0.0], [7.0]])
    x = x.to(dtype).to(device)
    (codes, scales), (expected, largest) = quantise_rows(x), quantise_rows_reference(x)
    torch.testing.assert_close(scales, largest)
    assert torch.equal(codes, expected)


def test_refuses_what_it_cannot_do(device: str) -> None:
    assert not can_multiply(8, 40, (1, 40)) and not can_multiply(8, 64, (8, 40))
    codes, scales, block = weight(8, 64, (1, 64), device)
    x = torch.zeros(1, 64, device=device, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="1 to 64 contiguous rows"):
        float8_gemm(x.expand(65, -1).contiguous(), codes, scales, block)
    with pytest.raises(ValueError, match="take bfloat16 or float16"):
        float8_gemm(x.float(), codes, scales, block)
    with pytest.raises(ValueError, match="scales must be float32"):
        float8_gemm(x, codes, scales[:4], block)
