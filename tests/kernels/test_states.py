"""The kernels of recurrent states against their references and against torch's operators, in the interpreter or on the
GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from torch import Tensor

from ember.engine.core.memory import MOST_RUNS
from ember_kernels import convolution as convolutions
from ember_kernels import delta_chunks, selective_scan, ssd_chunks, state_step, state_tokens
from ember_kernels import gated_norm as norms
from ember_kernels.state_math import RUNS, each_run

TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# Of the first sequence: a kept state in the middle, one at the end of its tokens. The second continues its own state.
# The third is padding. The fourth is longer than a chunk, with two kept states.
STARTS = [2, 23, 28, 28, 103]
RUN_STARTS = [2, 18, 23, 23, 28, 28, 28, 28, 28, 28, 44, 92, 103]
READS = [-1, 5, 5, 3, 3, 3, -1, -1, -1, 7, 6, 8, 0]
WRITES = [5, 9, -1, 3, -1, -1, -1, -1, -1, 6, 8, 1, 0]
SLOTS = 10
SINGLE_READS = [4, -1, -1, 2]
SINGLE_WRITES = [4, 0, -1, 9]


def integers(rows: list[Any], device: str) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device=device)


def runs_on(device: str) -> Tensor:
    """The runs, as a part of a longer buffer."""
    buffer = torch.full((3, 40), -7, dtype=torch.int32, device=device)
    buffer[:, : len(RUN_STARTS)] = integers([RUN_STARTS, READS, WRITES], device)
    return buffer[:, : len(RUN_STARTS)]


def check(
    results: list[tuple[Tensor, Tensor]], rows: list[int], dtype: torch.dtype, states_factor: float = 1.0
) -> None:
    """Outputs of `rows` and all states of the two are alike; other rows were not written."""
    (made, states), (expected, expected_states) = results
    others = [row for row in range(len(made)) if row not in rows]
    assert made[others].isnan().all()
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(made[rows].float(), expected[rows].float(), rtol=tolerance, atol=tolerance)
    tolerance *= states_factor
    torch.testing.assert_close(states, expected_states, rtol=tolerance, atol=tolerance, equal_nan=True)


def states_of(*shape: int) -> Tensor:
    """States of the slots, NaN in those that nothing may read."""
    states = torch.randn(SLOTS, *shape)
    states[[slot for slot in range(SLOTS) if slot not in (2, 3, 4, 7)]] = torch.nan
    return states


@pytest.mark.parametrize(("kernel", "silu", "bias"), [(4, True, False), (3, False, True), (2, True, True)])
def test_convolutions(device: str, kernel: int, silu: bool, bias: bool) -> None:
    channels, tokens = 150, STARTS[-1] + 3
    x = torch.randn(tokens, channels + 21).to(device)[:, 7 : 7 + channels]
    weight = torch.randn(kernel, channels).to(device)
    given = x, weight, torch.randn(channels).to(device) if bias else None
    windows = states_of(kernel - 1, channels).to(device)
    results = []
    for name in ("", "_reference"):
        own, out = windows.clone(), torch.full((tokens, channels), torch.nan, device=device)
        where = integers(STARTS, device), runs_on(device)
        getattr(convolutions, f"convolution{name}")(*given, own, *where, silu=silu, out=out)
        results.append((out, own))
    check(results, list(range(2, 103)), torch.float32)
    results = []
    for name in ("", "_reference"):
        own, out = windows.clone(), torch.full((4, channels), torch.nan, device=device)
        slots = integers(SINGLE_READS, device), integers(SINGLE_WRITES, device)
        step = getattr(convolutions, f"convolution_step{name}")
        step(x[:4], *given[1:], own, *slots, silu=silu, out=out)
        results.append((out, own))
    check(results, [0, 1, 3], torch.float32)


def delta_problem(tokens: int, heads: int, key_heads: int, key_dim: int, value_dim: int) -> list[Tensor]:
    """Keys that are nearly the same, whose chunks are hard to solve, and decays of all kinds."""
    qkv = torch.randn(tokens, 2 * key_heads * key_dim + heads * value_dim)
    keys = qkv[:, key_heads * key_dim : 2 * key_heads * key_dim]
    keys[tokens // 2 :] = keys[tokens // 2 :] * 0.05 + 1.0
    rates = torch.randn(tokens, 2 * heads) * 2
    return [qkv, rates, -torch.rand(heads) - 0.05, torch.randn(heads) - 2]


DELTAS = [
    # heads, key heads, key_dim, value_dim, dtype
    (4, 2, 32, 48, torch.float32),
    (2, 1, 20, 70, torch.bfloat16),
    (1, 1, 128, 32, torch.float16),
]


@pytest.mark.parametrize(("heads", "key_heads", "key_dim", "value_dim", "dtype"), DELTAS)
def test_the_delta_rule(
    device: str, heads: int, key_heads: int, key_dim: int, value_dim: int, dtype: torch.dtype
) -> None:
    tokens = STARTS[-1] + 3
    qkv, rates, decay, dt_bias = (x.to(device) for x in delta_problem(tokens, heads, key_heads, key_dim, value_dim))
    qkv, rates = qkv.to(dtype), rates.to(dtype)
    states = states_of(heads, key_dim, value_dim).to(device)
    results, singles = [], []
    for name in ("", "_reference"):
        own = states.clone()
        out = torch.full((tokens, heads, value_dim), torch.nan, device=device, dtype=dtype)
        options: dict[str, Any] = {"key_heads": key_heads, "tiled": dtype == torch.float32}
        chunks = getattr(delta_chunks, f"delta_chunks{name}")
        chunks(qkv, rates, decay, dt_bias, own, runs_on(device), out=out, **options)
        results.append((out, own))
        own, out = states.clone(), out[:4].clone().fill_(torch.nan)
        slots = integers(SINGLE_READS, device), integers(SINGLE_WRITES, device)
        step = getattr(state_step, f"delta_step{name}")
        step(qkv[:4], rates[:4], decay, dt_bias, own, *slots, out=out, **options)
        singles.append((out, own))
    check(results, list(range(2, 103)), dtype)
    check(singles, [0, 1, 3], dtype)
    if heads == 1:  # as for models in float32 on a GPU, token by token
        own, out = states.clone(), torch.full_like(results[0][0], torch.nan)
        state_tokens.delta_tokens(qkv, rates, decay, dt_bias, own, runs_on(device), key_heads=key_heads, out=out)
        check([(out, own), results[1]], list(range(2, 103)), dtype)


SSDS = [
    # heads, groups, state_dim, head_dim, dtype
    (4, 2, 12, 40, torch.float32),
    (3, 1, 64, 20, torch.bfloat16),
]


@pytest.mark.parametrize(("heads", "groups", "state_dim", "head_dim", "dtype"), SSDS)
def test_mamba_2(device: str, heads: int, groups: int, state_dim: int, head_dim: int, dtype: torch.dtype) -> None:
    tokens = STARTS[-1] + 3
    x = (torch.randn(tokens, heads * head_dim + 2 * groups * state_dim) / 2).to(device).to(dtype)
    dt = torch.randn(tokens, heads + 5).to(device).to(dtype)[:, 3 : 3 + heads]
    decay, dt_bias, skip = -torch.rand(heads, device=device) * 2, *torch.randn(2, heads, device=device)
    states = states_of(heads, state_dim, head_dim).to(device)
    results, singles = [], []
    for name in ("", "_reference"):
        own = states.clone()
        out = torch.full((tokens, heads, head_dim), torch.nan, device=device)
        options: dict[str, Any] = {"groups": groups, "limits": (0.01, 2.5)}
        chunks = getattr(ssd_chunks, f"ssd_chunks{name}")
        chunks(x, dt, decay, dt_bias, skip, own, runs_on(device), out=out, **options)
        results.append((out, own))
        own, out = states.clone(), out[:4].clone().fill_(torch.nan)
        slots = integers(SINGLE_READS, device), integers(SINGLE_WRITES, device)
        step = getattr(state_step, f"ssd_step{name}")
        step(x[:4], dt[:4], decay, dt_bias, skip, own, *slots, out=out, **options)
        singles.append((out, own))
    check(results, list(range(2, 103)), dtype)
    check(singles, [0, 1, 3], dtype)
    if groups == 1:
        given = x, dt, decay, dt_bias, skip
        own, out = states.clone(), torch.full_like(results[0][0], torch.nan)
        state_tokens.ssd_tokens(*given, own, runs_on(device), groups=1, limits=(0.01, 2.5), out=out)
        check([(out, own), results[1]], list(range(2, 103)), dtype)


@pytest.mark.parametrize(("state_dim", "inner", "dtype"), [(16, 70, torch.float32), (12, 40, torch.bfloat16)])
def test_mamba_1(device: str, state_dim: int, inner: int, dtype: torch.dtype) -> None:
    tokens = STARTS[-1] + 3
    x, dt = (torch.randn(tokens, inner + 8).to(device).to(dtype)[:, 8:] for _ in range(2))
    b, c = torch.randn(tokens, 5 + 2 * state_dim).to(device).to(dtype)[:, 5:].chunk(2, dim=1)
    given = x, dt, b, c, -torch.rand(state_dim, inner, device=device) * 2, torch.randn(inner, device=device)
    states = states_of(1, state_dim, inner).to(device)
    results, singles = [], []
    for name in ("", "_reference"):
        own, out = states.clone(), torch.full((tokens, inner), torch.nan, device=device)
        getattr(selective_scan, f"selective_chunks{name}")(*given, own, runs_on(device), out=out)
        results.append((out, own))
        own, out = states.clone(), out[:4].clone().fill_(torch.nan)
        slots = integers(SINGLE_READS, device), integers(SINGLE_WRITES, device)
        rows = (each[:4] for each in given[:4])
        getattr(selective_scan, f"selective_step{name}")(*rows, *given[4:], own, *slots, out=out)
        singles.append((out, own))
    check(results, list(range(2, 103)), torch.float32)
    check(singles, [0, 1, 3], torch.float32)


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_norms(device: str, gate_first: bool, dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 70, device=device)
    gate = torch.randn(5, 300, device=device).to(dtype)[:, 20:230].unflatten(1, (3, 70))
    for weight in (torch.rand(3, 70, device=device), torch.rand(70, device=device).to(dtype)):
        given = x.to(dtype) if weight.dim() == 1 else x
        found = norms.gated_norm(given, gate, weight, 1e-5, gate_first=gate_first)
        expected = norms.gated_norm_reference(given, gate, weight, 1e-5, gate_first=gate_first)
        torch.testing.assert_close(found, expected, rtol=TOLERANCES[dtype] / 2, atol=TOLERANCES[dtype] / 2)


def test_what_does_not_fit_is_refused(device: str) -> None:
    states = states_of(2, 16, 16).to(device)
    qkv, rates, *others = (x.to(device) for x in delta_problem(4, 2, 1, 16, 16))
    out = torch.empty(4, 2, 16, device=device)

    def call(states: Tensor, runs: Tensor, key_heads: int) -> None:
        delta_chunks.delta_chunks(qkv, rates, others[0], others[1], states, runs, key_heads=key_heads, out=out)

    assert len(each_run(runs_on(device))) == 6 and MOST_RUNS == RUNS
    with pytest.raises(ValueError, match="runs must be"):
        call(states, runs_on(device)[:, :-1], 1)
    with pytest.raises(ValueError, match="do not fit states"):
        call(states, runs_on(device), 2)
    with pytest.raises(ValueError, match="float32"):
        call(states.half(), runs_on(device), 1)
