"""Products with codes of 4 bits against their specification, in the interpreter or on the GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.table_gemm import (
    TableWeight,
    can_multiply,
    table_gemm,
    table_gemm_reference,
    table_restore,
    table_restore_reference,
)

FORMS = ["nvfp4", "mxfp4", "nf4", "a table for each row", "small blocks"]
SMALL = [(1, 40, 256), (5, 136, 576), (33, 8, 64)]
REAL = [(1, 4096, 4096), (64, 1024, 3072), (7, 5120, 8192)]


def weight(form: str, n: int, k: int, device: str) -> TableWeight:
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=device)
    if form == "nvfp4":
        scales = (torch.rand(n, k // 16, device=device) * 100 + 1).to(torch.float8_e4m3fn)
        return TableWeight(codes, scales, None, torch.rand(n, device=device) * 1e-3 + 1e-4)
    if form == "mxfp4":
        scales = torch.randint(119, 123, (n, k // 32), dtype=torch.uint8, device=device)
        return TableWeight(codes, scales.view(torch.float8_e8m0fnu), None)
    table = torch.randn(n, 16, device=device) if "row" in form else torch.linspace(-1, 1, 16, device=device)
    block = 8 if "small" in form else 64
    return TableWeight(codes, torch.rand(n, k // block, device=device) * 0.1, table.contiguous())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_matches_the_reference(device: str, has_gpu: bool, form: str, dtype: torch.dtype) -> None:
    for m, n, k in SMALL + REAL * has_gpu:
        x, made = torch.randn(m, k, device=device).to(dtype), weight(form, n, k, device)
        bias = torch.randn(n, device=device).to(dtype) if m > 1 else None
        found, expected = table_gemm(x, made, bias).float(), table_gemm_reference(x, made, bias).float()
        assert (found - expected).norm() < (1e-2 if dtype == torch.bfloat16 else 2e-3) * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_restores_every_number(device: str, form: str, dtype: torch.dtype) -> None:
    made = weight(form, 70, 576, device)
    made.codes[0, :256] = torch.arange(256, dtype=torch.uint8, device=device)
    found, expected = (torch.empty(70, 576, dtype=dtype, device=device) for _ in range(2))
    table_restore(made, found), table_restore_reference(made, expected)
    # The factor is multiplied with the scale here, with the number there, which may round differently.
    torch.testing.assert_close(found, expected, rtol=0.0 if made.factors is None else 8e-3, atol=0.0)


def test_refuses_what_it_cannot_do(device: str) -> None:
    assert not can_multiply(24, 8) and not can_multiply(32, 1) and not can_multiply(48, 32)
    made, x = weight("mxfp4", 8, 64, device), torch.zeros(1, 64, device=device, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="1 to 64 contiguous rows"):
        table_gemm(x.expand(65, -1).contiguous(), made)
    with pytest.raises(ValueError, match="take bfloat16 or float16"):
        table_gemm(x.float(), made)
