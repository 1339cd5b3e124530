"""Products with integers of 4 and 8 bits against their definition, in the interpreter or on the GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels import int_gemm as module
from ember_kernels.int_gemm import can_multiply, config, int_gemm, int_gemm_reference, int_restore

# m, n, k, group
SMALL = [(1, 64, 256, 128), (5, 80, 512, 32), (17, 33, 288, 96), (64, 24, 128, 128), (3, 16, 64, 64)]
REAL = [(1, 4096, 4096, 128), (16, 28672, 4096, 128), (33, 4096, 14336, 32), (64, 6144, 4096, 4096)]


def weight(
    n: int, k: int, group: int, bits: int, zeros: bool, scales: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    codes = torch.randint(0, 256, (n, k * bits // 8), dtype=torch.uint8, device=device)
    scale = (torch.rand(n, k // group, device=device) + 0.5) / (2**bits * k**0.5)
    zero = torch.randint(0, 2**bits, scale.shape, dtype=torch.uint8, device=device)
    return codes, scale.to(scales), zero if zeros else None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matches_the_reference(device: str, has_gpu: bool, dtype: torch.dtype, zeros: bool, bits: int) -> None:
    for number, (m, n, k, group) in enumerate(SMALL + REAL * has_gpu):
        scales = (torch.float16, torch.bfloat16, torch.float32)[number % 3]
        held = weight(n, k, group, bits, zeros, scales, device)
        x = torch.randn(m, k, device=device).to(dtype)
        bias = torch.randn(n, device=device).to(dtype) if number % 2 else None
        found, expected = int_gemm(x, *held, bits, bias), int_gemm_reference(x, *held, bits, bias)
        tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-3
        torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_restores_exactly(device: str, has_gpu: bool, zeros: bool, bits: int) -> None:
    for _, n, k, group in SMALL + REAL * has_gpu:
        held = weight(n, k, group, bits, zeros, torch.float16, device)
        found = torch.full((n + 1, k), torch.nan, dtype=torch.bfloat16, device=device)
        int_restore(*held, bits, found[:n])
        expected = module.int_restore_reference(*held, bits, torch.empty_like(found[:n]))
        assert torch.equal(found[:n], expected) and found[n].isnan().all()


def test_the_order_of_the_sum_is_fixed_and_one_split_adds_the_bias_itself(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = weight(32, 1024, 128, 4, True, torch.float16, device)
    x, bias = torch.randn(4, 1024, device=device).bfloat16(), torch.randn(32, device=device).bfloat16()
    assert config(32, 1024, 128, 90).split_k > 1
    split = int_gemm(x, *held, 4, bias)
    assert torch.equal(split, int_gemm(x, *held, 4, bias))
    monkeypatch.setattr(module, "config", lambda n, k, group, capability: module.Config(64, 128, 1, 4, 3))
    torch.testing.assert_close(int_gemm(x, *held, 4, bias), split, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("k", "group", "fits"), [(4096, 128, True), (4096, 4096, True), (96, 48, False), (80, 80, False), (96, 96, True)]
)
def test_sizes(k: int, group: int, fits: bool) -> None:
    assert can_multiply(k, group) == fits


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(65, 64).half()}, "1 to 64 contiguous rows"),
        ({"x": torch.zeros(1, 64)}, "take bfloat16 or float16"),
        ({"bits": 8}, "codes must be uint8"),
        ({"scales": torch.zeros(4, 3).half()}, "codes must|groups do not fit"),
        ({"zeros": torch.zeros(4, 1, dtype=torch.uint8)}, "zeros must be contiguous uint8"),
    ],
)
def test_refuses_what_it_cannot_do(changed: dict[str, object], message: str) -> None:
    arguments = {
        "x": torch.zeros(1, 64).half(),
        "codes": torch.zeros(4, 32, dtype=torch.uint8),
        "scales": torch.zeros(4, 2).half(),
        "zeros": None,
        "bits": 4,
    }
    with pytest.raises(ValueError, match=message):
        int_gemm(**{**arguments, **changed})  # type: ignore[arg-type]


def test_numbers_have_integers_in_their_lowest_bits() -> None:
    """The conversions that a GPU makes, which the interpreter cannot compute in bfloat16."""
    codes, zeros = torch.arange(256)[:, None], torch.arange(256)[None]
    expected = codes - zeros
    half = (codes.short() | 0x6400).view(torch.float16) - (1024 + zeros).half()
    single = (codes.int() | 0x4B000000).view(torch.float32) - (8388608 + zeros).float()
    assert torch.equal(half.long(), expected) and torch.equal(single.bfloat16().long(), expected)
    brain = (codes[:16].short() | 0x4300).view(torch.bfloat16) - (128 + zeros[:, :16]).bfloat16()
    assert torch.equal(brain.long(), expected[:16, :16])
