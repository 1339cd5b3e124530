# mypy: disable-error-code="no-untyped-def"
"""Ragged prompts through recurrent states, a token at a time: the gated delta rule and Mamba 2 of models in float32.

Each token takes the step of `state_step`. The matrix products of `state_chunks` would be without tensor cores in
float32, and their factors do not fit in registers.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation
from ember_kernels.state_math import EPS, RUNS, check_runs, delta_sizes, load_state, ssd_sizes, state_place
from ember_kernels.state_step import BLOCK_V, WARPS, delta_token, recurrences, ssd_token, tile


@direct
@triton.jit(
    do_not_specialize=[
        "rates_ptr",
        "decay_ptr",
        "bias_ptr",
        "runs_ptr",
        "out_ptr",
        "rates_stride",
        "runs_stride",
        "heads",
        "divisor",
        "key_heads",
    ]
)
def delta_tokens_kernel(
    qkv_ptr,
    rates_ptr,
    decay_ptr,
    bias_ptr,
    states_ptr,
    runs_ptr,
    out_ptr,
    qkv_stride,
    rates_stride,
    runs_stride,
    heads,
    divisor,
    key_heads,
    scale,
    eps,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    RUNS: tl.constexpr,
):
    """Some columns of the state of one head of one sequence, through all of its runs, a token at a time."""
    head = tl.program_id(1)
    runs_ptr += tl.program_id(2) * RUNS
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = columns < V
    place, mask, size = state_place(head, heads, columns, K, V, BLOCK_K)
    read = tl.load(runs_ptr + runs_stride).to(tl.int64)
    state = load_state(states_ptr, read, size, place, columns, K, V, BLOCK_K)
    decay = tl.load(decay_ptr + head)
    bias = tl.load(bias_ptr + head)
    for run in range(RUNS):
        start = tl.load(runs_ptr + run)
        stop = tl.load(runs_ptr + run + 1)
        for token in range(start, stop):
            row = tl.cast(token, tl.int64)
            made, state = delta_token(
                state,
                qkv_ptr + row * qkv_stride,
                rates_ptr + row * rates_stride,
                decay,
                bias,
                head,
                heads,
                divisor,
                key_heads,
                columns,
                scale,
                eps,
                K,
                V,
                BLOCK_K,
            )
            made = rounded(made, out_ptr.dtype.element_ty)
            tl.store(out_ptr + (row * heads + head) * V + columns, made, mask=inside)
        if stop > start:
            write = tl.load(runs_ptr + 2 * runs_stride + run).to(tl.int64)
            tl.store(states_ptr + write * size + place, state, mask=mask)


@direct
@triton.jit(
    do_not_specialize=[
        "dt_ptr",
        "decay_ptr",
        "bias_ptr",
        "skip_ptr",
        "runs_ptr",
        "out_ptr",
        "dt_stride",
        "runs_stride",
        "heads",
        "shared",
    ]
)
def ssd_tokens_kernel(
    x_ptr,
    dt_ptr,
    decay_ptr,
    bias_ptr,
    skip_ptr,
    states_ptr,
    runs_ptr,
    out_ptr,
    x_stride,
    dt_stride,
    runs_stride,
    heads,
    shared,
    least_dt,
    most_dt,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    RUNS: tl.constexpr,
):
    """Some columns of the state of one head of one sequence, through all of its runs, a token at a time."""
    head = tl.program_id(1)
    runs_ptr += tl.program_id(2) * RUNS
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = columns < V
    place, mask, size = state_place(head, heads, columns, K, V, BLOCK_K)
    read = tl.load(runs_ptr + runs_stride).to(tl.int64)
    state = load_state(states_ptr, read, size, place, columns, K, V, BLOCK_K)
    decay = tl.load(decay_ptr + head)
    bias = tl.load(bias_ptr + head)
    skip = tl.load(skip_ptr + head)
    for run in range(RUNS):
        start = tl.load(runs_ptr + run)
        stop = tl.load(runs_ptr + run + 1)
        for token in range(start, stop):
            row = tl.cast(token, tl.int64)
            made, state = ssd_token(
                state,
                x_ptr + row * x_stride,
                dt_ptr + row * dt_stride,
                decay,
                bias,
                skip,
                head,
                heads,
                shared,
                columns,
                least_dt,
                most_dt,
                K,
                V,
                BLOCK_K,
            )
            made = rounded(made, out_ptr.dtype.element_ty)
            tl.store(out_ptr + (row * heads + head) * V + columns, made, mask=inside)
        if stop > start:
            write = tl.load(runs_ptr + 2 * runs_stride + run).to(tl.int64)
            tl.store(states_ptr + write * size + place, state, mask=mask)


def delta_tokens(
    qkv: Tensor,
    rates: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    states: Tensor,
    runs: Tensor,
    *,
    key_heads: int,
    tiled: bool = False,
    out: Tensor,
) -> Tensor:
    """The gated delta rule for ragged prompts, in float32 throughout and a step for each token. The arguments are those
    of `delta_chunks.delta_chunks`."""
    heads, key_dim, value_dim = delta_sizes(qkv, rates, states, key_heads)
    delta_tokens_kernel[(cdiv(value_dim, BLOCK_V), heads, check_runs(runs))](
        qkv,
        rates,
        decay,
        dt_bias,
        states,
        runs,
        out,
        qkv.stride(0),
        rates.stride(0),
        runs.stride(0),
        heads,
        1 if tiled else heads // key_heads,
        key_heads,
        key_dim**-0.5,
        EPS,
        **tile(key_dim, value_dim),
        RUNS=RUNS,
        num_warps=WARPS,
        num_stages=1,
    )
    return out


def ssd_tokens(
    x: Tensor,
    dt: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    skip: Tensor,
    states: Tensor,
    runs: Tensor,
    *,
    groups: int,
    limits: tuple[float, float],
    out: Tensor,
) -> Tensor:
    """Mamba 2's recurrence for ragged prompts, in float32 throughout and a step for each token. The arguments are those
    of `ssd_chunks.ssd_chunks`."""
    heads, state_dim, head_dim = ssd_sizes(x, dt, states, groups)
    ssd_tokens_kernel[(cdiv(head_dim, BLOCK_V), heads, check_runs(runs))](
        x,
        dt,
        decay,
        dt_bias,
        skip,
        states,
        runs,
        out,
        x.stride(0),
        dt.stride(0),
        runs.stride(0),
        heads,
        heads // groups,
        *limits,
        **tile(state_dim, head_dim),
        RUNS=RUNS,
        num_warps=WARPS,
        num_stages=1,
    )
    return out


def specialisations(capability: int) -> Iterator[Specialisation]:
    for rule, dtype, sizes, signature, divisible in recurrences():
        if dtype == "fp32":
            yield Specialisation(
                f"{rule}_tokens[{dtype} {sizes[0]}x{sizes[1]}]",
                delta_tokens_kernel if rule == "delta" else ssd_tokens_kernel,
                signature | {"runs_ptr": "*i32", "runs_stride": "i32"},
                tile(*sizes) | {"RUNS": RUNS},
                WARPS,
                1,
                divisible,
                False,
            )
