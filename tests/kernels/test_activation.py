"""Activations against their references."""

from __future__ import annotations

import pytest
import torch

from ember_kernels import activation as kernels
from ember_kernels.rounding import new_rounded
from tests.kernels.test_norm import DTYPES, check


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", kernels.KINDS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_activation(device, has_gpu, dtype, kind, gated, is_rounded):
    for tokens, size in [(1, 40), (3, 1001)] + ([(7, 5000), (300, 14336), (2, 25600)] if has_gpu else []):
        x = (2 * torch.randn(tokens, 2 * size if gated else size, device=device)).to(dtype)
        rounded = new_rounded(x, tokens, size) if is_rounded else None
        actual = kernels.activation(x, kind, gated=gated, rounded_to=rounded)
        check(actual, kernels.activation_reference(x, kind, gated=gated), dtype, rounded)


def test_float8_rows_longer_than_a_block(device):
    x = torch.randn(2, 2 * 5000, device=device).bfloat16()
    rounded = new_rounded(x, 2, 5000)
    actual = kernels.activation(x, "silu", rounded_to=rounded)
    check(actual, kernels.activation_reference(x, "silu"), torch.bfloat16, rounded)


def test_large_inputs_do_not_overflow(device):
    x = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], device=device)
    for kind in kernels.KINDS:
        actual = kernels.activation(x, kind, gated=False)
        expected = kernels.activation_reference(x, kind, gated=False)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamped(device, dtype):
    x = (6 * torch.randn(3, 2 * 1001, device=device)).to(dtype)
    x[0, :3], x[0, 1001:1004] = torch.tensor([-30.0, 30.0, torch.inf]), torch.tensor([-30.0, 30.0, 1.0])
    clamp = {"limit": 7.0, "alpha": 1.702}
    actual = kernels.activation(x, "silu", **clamp)
    gate, up = x.float().chunk(2, dim=-1)
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    exact = (up + 1) * gate * torch.sigmoid(1.702 * gate)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual.float(), exact, rtol=tolerance, atol=tolerance)
    check(kernels.activation(x, "silu", **clamp), kernels.activation_reference(x, "silu", **clamp), dtype)
    with pytest.raises(ValueError, match="only gated silu"):
        kernels.activation(x, "gelu", **clamp)


def test_strided_rows(device):
    x = torch.randn(3, 100, device=device)[:, 20:60]
    actual = kernels.activation(x, "silu")
    torch.testing.assert_close(actual, kernels.activation_reference(x, "silu"))


def test_unknown_kind_and_odd_width_are_refused(device):
    with pytest.raises(ValueError, match="not one of silu"):
        kernels.activation(torch.empty(1, 2, device=device), "swish")
    with pytest.raises(ValueError, match="even length"):
        kernels.activation(torch.empty(1, 3, device=device), "silu")
