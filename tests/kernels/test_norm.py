"""RMSNorm and LayerNorm against their references, and float8 conversion against torch's."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from ember_kernels import norm, rounding
from ember_kernels.float8_gemm import quantise_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# A float32 sum in another order may round to the neighbouring half-precision number, and the product of that number
# may be rounded the other way again: two units in the last place, relative.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


@triton.jit
def _convert_kernel(x_ptr, out_ptr, n, HARDWARE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, rounding.e4m3_bits(tl.load(x_ptr + i, mask=i < n), HARDWARE), mask=i < n)


def test_float8_conversion_is_that_of_torch_bit_by_bit(device):
    exact = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    exact = exact[~exact.isnan()].sort().values
    middles = (exact[1:] + exact[:-1]) / 2
    beside = torch.cat([middles.nextafter(exact[1:]), middles.nextafter(exact[:-1])])
    x = torch.cat([exact, middles, beside, torch.randn(1000) * 100, torch.tensor([1e4, -1e4, 448.5, 1e-9])]).to(device)
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    for hardware in {False, rounding.has_conversion()} if device == "cuda" else {False}:
        out = torch.empty_like(expected)
        _convert_kernel[(triton.cdiv(x.numel(), 512),)](x, out, x.numel(), HARDWARE=hardware, BLOCK=512)
        # +0 and -0 are the same number: a tie that rounds to zero keeps its sign in both.
        assert torch.equal(out, expected)


def test_float8_conversion_keeps_nan(device):
    x = torch.tensor([float("nan"), 1.0], device=device)
    out = torch.zeros(2, dtype=torch.uint8, device=device)
    _convert_kernel[(1,)](x, out, 2, HARDWARE=rounding.has_conversion() if device == "cuda" else False, BLOCK=16)
    assert out.view(torch.float8_e4m3fn).float().isnan().tolist() == [True, False]


def check(actual, expected, dtype, rounded=None):
    """Values within a unit in the last place of the dtype. In float8 they are those of `quantise_rows`, bit by bit."""
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=1e-5)
    if rounded is not None:
        for found, alone in zip(rounded, quantise_rows(actual), strict=True):
            assert torch.equal(found, alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize("is_wide", [False, True])
def test_rms_norm(device, has_gpu, dtype, has_residual, is_rounded, is_wide):
    for tokens, hidden in [(1, 64), (5, 1000), (3, 5120)] + ([(17, 16384), (513, 4096)] if has_gpu else []):
        x = torch.randn(tokens, hidden, device=device).to(dtype)
        weight = torch.randn(hidden, device=device).to(torch.float32 if is_wide else dtype)
        residual = (3 * torch.randn(tokens, hidden, device=device)).to(dtype) if has_residual else None
        kept = None if residual is None else residual.clone()
        rounded = rounding.new_rounded(x, tokens, hidden) if is_rounded else None
        actual = norm.rms_norm(x, weight, 1e-6, residual=residual, rounded_to=rounded)
        check(actual, norm.rms_norm_reference(x, weight, 1e-6, residual=kept), dtype, rounded)
        if residual is not None:
            assert torch.equal(residual, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_layer_norm(device, dtype, has_bias, is_rounded):
    for tokens, hidden in [(1, 17), (4, 768), (2, 2049)]:
        x = (torch.randn(tokens, hidden, device=device) + 2).to(dtype)
        weight = torch.randn(hidden, device=device).to(dtype)
        bias = torch.randn(hidden, device=device).to(dtype) if has_bias else None
        residual = torch.randn(tokens, hidden, device=device).to(dtype)
        kept = residual.clone()
        rounded = rounding.new_rounded(x, tokens, hidden) if is_rounded else None
        actual = norm.layer_norm(x, weight, bias, 1e-5, residual=residual, rounded_to=rounded)
        expected = norm.layer_norm_reference(x, weight, bias, 1e-5, residual=kept)
        # The mean is taken away, so results near zero carry the rounding of larger numbers.
        torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=2e-5)
        check(actual, actual, dtype, rounded)
        assert torch.equal(residual, kept)


def test_strided_rows_and_no_weight(device):
    wide = torch.randn(4, 200, device=device)
    x = wide[:, 30:130]
    actual = norm.rms_norm(x, None, 1e-6)
    expected = norm.rms_norm_reference(x, None, 1e-6)
    torch.testing.assert_close(actual, expected)


def test_no_rows_and_too_long_rows(device):
    assert norm.rms_norm(torch.empty(0, 64, device=device), None, 1e-6).shape == (0, 64)
    with pytest.raises(ValueError, match="at most 16384"):
        norm.rms_norm(torch.empty(1, 16385, device=device), None, 1e-6)
