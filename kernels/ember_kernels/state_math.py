# mypy: disable-error-code="no-untyped-def"
"""What the kernels of recurrent states share, and their specification.

A layer's states are [slots, heads, rows, columns] in float32. The tokens of a step belong to runs: consecutive tokens
of a sequence, which begin with the state in one slot and leave theirs in another. A sequence's tokens are at most
`RUNS` runs in one step, since its state is kept at few places (the checkpoints of a prefix cache). Runs are described
on the device, int32 [3, sequences * RUNS + 1]: the first token of each run in the batch and the end of the last one,
the slot that it reads (-1: there is no state yet, it begins with zeros), and the slot that it writes. Runs without
tokens are padding. Only the first run of a sequence reads a slot: the others go on with what they have.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
RUNS = 3  # of a sequence
# Rows and columns of the state of one head in published models, for which kernels are compiled ahead.
DELTA_SIZES = ((128, 128),)
SSD_SIZES = ((128, 64), (128, 80), (64, 64), (256, 64), (256, 128))
SELECTIVE_SIZES = (16,)  # numbers of a channel
EPS = 1e-6  # below the square of a query's or key's length


@triton.jit
def softplus(x):
    """log(1 + exp(x)); the logarithm of a number near 1 is a series, since the hardware's has an absolute error."""
    u = tl.exp(tl.minimum(x, 20.0))
    series = u * (1.0 - u * (0.5 - u * (0.3333333333 - u * 0.25)))
    return tl.where(x > 20.0, x, tl.where(u < 0.015625, series, tl.log(1.0 + u)))


@triton.jit
def state_place(head, heads, columns, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr):
    """Where some columns of one head's state are in a slot, which of them are there, and the number of elements of a
    slot."""
    rows = tl.arange(0, BLOCK_K)
    mask = (rows < K)[:, None] & (columns < V)[None, :]
    return (head * K + rows)[:, None] * V + columns[None, :], mask, heads.to(tl.int64) * (K * V)


@triton.jit
def load_state(states_ptr, read, size, place, columns, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr):
    """The columns at `place` of the state in slot `read`: zeros where that is negative."""
    rows = tl.arange(0, BLOCK_K)
    has_state = (rows < tl.where(read >= 0, K, 0))[:, None] & (columns < V)[None, :]
    return tl.load(states_ptr + read * size + place, mask=has_state, other=0.0)


@triton.jit
def dot(a, b, HALF: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b in float32, of factors in bfloat16 or in float32."""
    if HALF:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)


def precision(dtype: torch.dtype, interpret: bool = INTERPRET) -> dict[str, Any]:
    """How matrices of a model in `dtype` are multiplied (`dot`). float16 is too narrow for states and for what they are
    made of, so its numbers become tf32. The interpreter's dot of bfloat16 is wrong."""
    is_exact = interpret or dtype == torch.float32
    return {"HALF": dtype == torch.bfloat16 and not interpret, "PRECISION": "ieee" if is_exact else "tf32"}


def scratch_type(dtype: torch.dtype) -> torch.dtype:
    """The type of matrices between two kernels."""
    return torch.bfloat16 if precision(dtype)["HALF"] else torch.float32


def check_state(states: Tensor, heads: int, rows: int, columns: int) -> None:
    """Raise ValueError if these are no states of a layer."""
    if states.dtype != torch.float32 or not states.is_contiguous():
        raise ValueError("states must be contiguous float32")
    if states.shape[1:] != (heads, rows, columns):
        raise ValueError(f"states must be [slots, {heads}, {rows}, {columns}] and are {list(states.shape)}")


def delta_sizes(qkv: Tensor, rates: Tensor, states: Tensor, key_heads: int) -> tuple[int, int, int]:
    """The heads of values, and the sizes of a key and a value, of the gated delta rule. Raise ValueError if the tensors
    do not fit (`state_step.delta_step`)."""
    heads, key_dim, value_dim = states.shape[1:]
    check_state(states, heads, key_dim, value_dim)
    if qkv.shape[1] != 2 * key_heads * key_dim + heads * value_dim or rates.shape[1] != 2 * heads:
        raise ValueError(f"qkv {list(qkv.shape)} and rates {list(rates.shape)} do not fit states {list(states.shape)}")
    return heads, key_dim, value_dim


def ssd_sizes(x: Tensor, dt: Tensor, states: Tensor, groups: int) -> tuple[int, int, int]:
    """The heads, and the sizes of a state and a head, of Mamba 2. Raise ValueError if the tensors do not fit
    (`state_step.ssd_step`)."""
    heads, state_dim, head_dim = states.shape[1:]
    check_state(states, heads, state_dim, head_dim)
    if x.shape[1] != heads * head_dim + 2 * groups * state_dim or dt.shape[1] != heads:
        raise ValueError(f"x {list(x.shape)} and dt {list(dt.shape)} do not fit states {list(states.shape)}")
    return heads, state_dim, head_dim


def check_runs(runs: Tensor) -> int:
    """The number of sequences of these runs. Raise ValueError if they are none."""
    if runs.dtype != torch.int32 or runs.dim() != 2 or len(runs) != 3 or runs.shape[1] % RUNS != 1:
        raise ValueError(f"runs must be int32 [3, sequences * {RUNS} + 1] and are {list(runs.shape)}")
    if runs.stride(1) != 1:
        raise ValueError("the rows of runs must be contiguous")
    return runs.shape[1] // RUNS


def each_run(runs: Tensor) -> list[tuple[int, int, int, int]]:
    """(first token, number of tokens, slot to read, slot to write) of the runs with tokens; -1 where the sequence has
    no state yet."""
    starts, reads, writes = runs.tolist()
    found, slot = [], -1
    for i in range(len(starts) - 1):
        slot = reads[i] if i % RUNS == 0 else slot
        if starts[i + 1] > starts[i]:
            found.append((starts[i], starts[i + 1] - starts[i], slot, writes[i]))
            slot = writes[i]
    return found


def runs_of_steps(reads: Tensor, writes: Tensor) -> list[tuple[int, int, int, int]]:
    """(token, 1, slot to read, slot to write) of steps that have one token of each sequence. A negative slot to write
    marks padding, which is left out."""
    rows = enumerate(zip(reads.tolist(), writes.tolist(), strict=True))
    return [(row, 1, read, write) for row, (read, write) in rows if write >= 0]


def recur(
    runs: list[tuple[int, int, int, int]], states: Tensor, token: Callable[[int, Tensor], tuple[Tensor, Tensor]]
) -> dict[int, Tensor]:
    """Go through the runs token by token. `token` makes the output and the next state [heads, rows, columns] of the
    one before."""
    made = {}
    for first, count, read, write in runs:
        state = torch.zeros_like(states[0]) if read < 0 else states[read].clone()
        for at in range(first, first + count):
            made[at], state = token(at, state)
        states[write] = state
    return made


def delta_reference(
    qkv: Tensor,
    rates: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    states: Tensor,
    runs: list[tuple[int, int, int, int]],
    key_heads: int,
    tiled: bool,
    out: Tensor,
) -> Tensor:
    """The gated delta rule, a token at a time in float32: S <- a S + k (b (v - a S^T k))^T, and the output is S^T q."""
    heads, key_dim, value_dim = states.shape[1:]
    query, key, value = qkv.float().split([key_heads * key_dim, key_heads * key_dim, heads * value_dim], dim=-1)
    query, key = (each.unflatten(1, (key_heads, -1)) for each in (query, key))
    query, key = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS) for x in (query, key))
    of_head = torch.arange(heads, device=qkv.device)
    of_head = of_head % key_heads if tiled else of_head // (heads // key_heads)
    query, key = (x[:, of_head] for x in (query * key_dim**-0.5, key))
    value = value.unflatten(1, (heads, -1))
    beta, alpha = rates.float().chunk(2, dim=-1)
    beta, faded = beta.sigmoid(), (decay * F.softplus(alpha + dt_bias)).exp()

    def token(at: int, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state * faded[at, :, None, None]
        new = (value[at] - torch.einsum("hkv,hk->hv", state, key[at])) * beta[at, :, None]
        state = state + key[at, :, :, None] * new[:, None]
        return torch.einsum("hkv,hk->hv", state, query[at]), state

    for at, made in recur(runs, states, token).items():
        out[at] = made.to(out.dtype)
    return out


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    limits: tuple[float, float],
    states: Tensor,
    runs: list[tuple[int, int, int, int]],
    groups: int,
    out: Tensor,
) -> Tensor:
    """Mamba 2, a token at a time in float32: S <- a S + b (dt x)^T, a = exp(A dt), and the output is S^T c + D x."""
    heads, state_dim, head_dim = states.shape[1:]
    x, b, c = x.float().split([heads * head_dim, groups * state_dim, groups * state_dim], dim=-1)
    b, c = (each.unflatten(1, (groups, -1)).repeat_interleave(heads // groups, 1) for each in (b, c))
    x = x.unflatten(1, (heads, -1))
    dt = F.softplus(dt.float() + dt_bias).clamp(*limits)
    faded = (dt * decay).exp()

    def token(at: int, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state * faded[at, :, None, None] + b[at, :, :, None] * (x[at] * dt[at, :, None])[:, None]
        return torch.einsum("hkv,hk->hv", state, c[at]) + x[at] * skip[:, None], state

    for at, made in recur(runs, states, token).items():
        out[at] = made.to(out.dtype)
    return out
