"""The few-row linear layer against torch's, in the interpreter or on the GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels import small_gemm as module
from ember_kernels.small_gemm import config, small_gemm, small_gemm_reference, uses_small_gemm

SMALL = [(1, 32, 256), (5, 80, 528), (16, 33, 1040), (3, 8, 16)]
REAL = [(1, 4096, 1024), (16, 1024, 3072), (7, 5120, 8192)]


def _close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-2 if actual.dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_matches_the_reference(device: str, has_gpu: bool, dtype: torch.dtype, bias: bool) -> None:
    for m, n, k in SMALL + REAL * has_gpu:
        x = torch.randn(m, k, device=device).to(dtype)
        w = (torch.randn(n, k, device=device) / k**0.5).to(dtype)
        b = torch.randn(n, device=device).to(dtype) if bias else None
        out = torch.full((m + 1, n), float("nan"), dtype=dtype, device=device)
        result = small_gemm(x, w, b, out[:m])
        assert result.data_ptr() == out.data_ptr()
        assert out[m].isnan().all(), "wrote beyond the last row"
        _close(out[:m], small_gemm_reference(x, w, b))


def test_the_order_of_the_sum_is_fixed(device: str) -> None:
    x = torch.randn(4, 1024, device=device).to(torch.bfloat16)
    w = torch.randn(32, 1024, device=device).to(torch.bfloat16)
    assert config(32, 1024, 90).split_k > 1
    assert torch.equal(small_gemm(x, w), small_gemm(x, w))


def test_unsplit_form_adds_the_bias_itself(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "config", lambda n, k, capability: module.Config(32, 128, 1, 4, 3))
    x, w = torch.randn(2, 272, device=device).half(), torch.randn(40, 272, device=device).half() / 16
    bias = torch.randn(40, device=device).half()
    _close(small_gemm(x, w, bias), small_gemm_reference(x, w, bias))


def test_is_used_only_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEASURED_GAINS", {90: {(1024, 2048): 4}})
    assert uses_small_gemm(4, 1024, 2048, 90)
    assert not uses_small_gemm(5, 1024, 2048, 90)
    assert not uses_small_gemm(1, 1024, 2048, 80)
    assert not uses_small_gemm(1, 1024, 1024, 90)


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (torch.zeros(17, 16), torch.zeros(4, 16), "1 to 16 rows and was given 17"),
        (torch.zeros(1, 24), torch.zeros(4, 24), "multiple of 16"),
        (torch.zeros(1, 16), torch.zeros(4, 16), "takes bfloat16 or float16"),
        (torch.zeros(16, 32).half().T[:16], torch.zeros(4, 16).half(), "contiguous"),
    ],
)
def test_refuses_what_it_cannot_do(x: torch.Tensor, w: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_gemm(x, w)
