# mypy: disable-error-code="no-untyped-def"
"""Mamba 1's selective scan (arXiv 2312.00752): one token of each sequence, and ragged prompts.

A layer's states are [slots, 1, state_dim, inner] in float32. A channel's numbers fade at rates of their own:
S <- exp(A dt) S + b (dt x), and the output is S c + D x. A program takes some channels, whose states stay in registers.

Prompts are taken in chunks of 64 tokens of a run (`state_math`), side by side. One launch makes of each chunk what it
adds to a state of zeros, and the sum of its dt. The next one takes the states from chunk to chunk, and leaves them
where runs end. The third begins each chunk with its own state, and makes the outputs. The numbers are the same in all
dtypes: everything is computed in float32, without matrix products.

Bytes of a step: 8 * rows * state_dim * inner, that of the states read and written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import STARTS_BLOCK, prompt_tile
from ember_kernels.launch import cdiv, direct, next_power_of_2
from ember_kernels.specialisation import Specialisation
from ember_kernels.state_math import (
    RUNS,
    SELECTIVE_SIZES,
    check_runs,
    check_state,
    each_run,
    recur,
    runs_of_steps,
    softplus,
)

CHUNK = 64
MOST_NUMBERS = 1024  # of the states of one program
WARPS = 2


@triton.jit
def _selective_token(state, decay, x_ptr, dt_ptr, b_ptr, c_ptr, columns, inner, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """The output of one token without the part of D, the state after it, x and dt."""
    rows = tl.arange(0, BLOCK_K)
    inside = columns < inner
    x = tl.load(x_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    dt = softplus(tl.load(dt_ptr + columns, mask=inside, other=0.0).to(tl.float32))
    b = tl.load(b_ptr + rows, mask=rows < K, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + rows, mask=rows < K, other=0.0).to(tl.float32)
    state = state * tl.exp(decay * dt[None, :]) + b[:, None] * (dt * x)[None, :]
    return tl.sum(state * c[:, None], 0), state, x, dt


@triton.jit
def _decays(decay_ptr, columns, inner, K: tl.constexpr, BLOCK_K: tl.constexpr):
    rows = tl.arange(0, BLOCK_K)
    mask = (rows < K)[:, None] & (columns < inner)[None, :]
    return tl.load(decay_ptr + rows[:, None] * inner + columns[None, :], mask=mask, other=0.0)


@direct
@triton.jit(do_not_specialize=["b_ptr", "c_ptr", "reads_ptr", "writes_ptr", "dt_stride", "b_stride", "c_stride"])
def selective_step_kernel(
    x_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    decay_ptr,
    skip_ptr,
    states_ptr,
    reads_ptr,
    writes_ptr,
    out_ptr,
    x_stride,
    dt_stride,
    b_stride,
    c_stride,
    inner,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    write = tl.load(writes_ptr + row).to(tl.int64)
    if write < 0:
        return
    read = tl.load(reads_ptr + row).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = columns < inner
    rows = tl.arange(0, BLOCK_K)
    place = rows[:, None] * inner + columns[None, :]
    mask = (rows < K)[:, None] & inside[None, :]
    size = K * inner.to(tl.int64)
    has_state = (rows < tl.where(read >= 0, K, 0))[:, None] & inside[None, :]
    state = tl.load(states_ptr + read * size + place, mask=has_state, other=0.0)
    made, state, x, _ = _selective_token(
        state,
        _decays(decay_ptr, columns, inner, K, BLOCK_K),
        x_ptr + row * x_stride,
        dt_ptr + row * dt_stride,
        b_ptr + row * b_stride,
        c_ptr + row * c_stride,
        columns,
        inner,
        K,
        BLOCK_K,
    )
    tl.store(states_ptr + write * size + place, state, mask=mask)
    made += x * tl.load(skip_ptr + columns, mask=inside, other=0.0)
    tl.store(out_ptr + row * inner + columns, made, mask=inside)


@direct
@triton.jit(do_not_specialize=["b_ptr", "c_ptr", "starts_ptr", "num_runs", "dt_stride", "b_stride", "c_stride"])
def selective_chunks_kernel(
    x_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    decay_ptr,
    skip_ptr,
    starts_ptr,
    parts_ptr,
    totals_ptr,
    out_ptr,
    x_stride,
    dt_stride,
    b_stride,
    c_stride,
    num_runs,
    inner,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    STARTS_BLOCK: tl.constexpr,
    HAS_OUTPUTS: tl.constexpr,
):
    """Some channels of one chunk, whose number is that of `prompt_tile`: what it adds to a state and the sum of its dt,
    or from the state that it begins with, its outputs."""
    tile = tl.program_id(0)
    _, start, count, first = prompt_tile(starts_ptr, num_runs, tile, CHUNK, STARTS_BLOCK)
    if first >= count:
        return
    columns = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = columns < inner
    rows = tl.arange(0, BLOCK_K)
    mask = (rows < K)[:, None] & inside[None, :]
    part_ptr = parts_ptr + tile.to(tl.int64) * K * inner + rows[:, None] * inner + columns[None, :]
    decay = _decays(decay_ptr, columns, inner, K, BLOCK_K)
    state = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    total = tl.zeros((BLOCK_V,), tl.float32)
    skip = tl.load(skip_ptr + columns, mask=inside, other=0.0)
    if HAS_OUTPUTS:
        state = tl.load(part_ptr, mask=mask, other=0.0)
    for at in range(start + first, start + tl.minimum(first + CHUNK, count)):
        token = tl.cast(at, tl.int64)
        made, state, x, dt = _selective_token(
            state,
            decay,
            x_ptr + token * x_stride,
            dt_ptr + token * dt_stride,
            b_ptr + token * b_stride,
            c_ptr + token * c_stride,
            columns,
            inner,
            K,
            BLOCK_K,
        )
        total += dt
        if HAS_OUTPUTS:
            tl.store(out_ptr + token * inner + columns, made + x * skip, mask=inside)
    if not HAS_OUTPUTS:
        tl.store(part_ptr, state, mask=mask)
        tl.store(totals_ptr + tile.to(tl.int64) * inner + columns, total, mask=inside)


@direct
@triton.jit(do_not_specialize=["runs_ptr", "runs_stride"])
def selective_states_kernel(
    decay_ptr,
    parts_ptr,
    totals_ptr,
    states_ptr,
    runs_ptr,
    runs_stride,
    inner,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    RUNS: tl.constexpr,
):
    """Some channels of one sequence's state, through all of its runs: the state that each chunk begins with takes the
    place of what it adds."""
    seq = tl.program_id(1)
    origin = tl.load(runs_ptr)
    own_ptr = runs_ptr + seq * RUNS
    if tl.load(own_ptr) == tl.load(own_ptr + RUNS):
        return
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = columns < inner
    rows = tl.arange(0, BLOCK_K)
    place = rows[:, None] * inner + columns[None, :]
    mask = (rows < K)[:, None] & inside[None, :]
    size = K * inner.to(tl.int64)
    decay = _decays(decay_ptr, columns, inner, K, BLOCK_K)
    read = tl.load(own_ptr + runs_stride).to(tl.int64)
    has_state = (rows < tl.where(read >= 0, K, 0))[:, None] & inside[None, :]
    state = tl.load(states_ptr + read * size + place, mask=has_state, other=0.0)
    for run in range(RUNS):
        start = tl.load(own_ptr + run)
        count = tl.load(own_ptr + run + 1) - start
        first = ((start - origin) // CHUNK + seq * RUNS + run).to(tl.int64)
        for chunk in range(tl.cdiv(count, CHUNK)):
            part_ptr = parts_ptr + (first + chunk) * size + place
            added = tl.load(part_ptr, mask=mask, other=0.0)
            total = tl.load(totals_ptr + (first + chunk) * inner + columns, mask=inside, other=0.0)
            tl.debug_barrier()  # what was loaded is overwritten
            tl.store(part_ptr, state, mask=mask)
            state = state * tl.exp(decay * total[None, :]) + added
        if count > 0:
            write = tl.load(own_ptr + 2 * runs_stride + run).to(tl.int64)
            tl.store(states_ptr + write * size + place, state, mask=mask)


def selective_step(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    decay: Tensor,
    skip: Tensor,
    states: Tensor,
    reads: Tensor,
    writes: Tensor,
    *,
    out: Tensor,
) -> Tensor:
    """The recurrence of one token of each sequence.

    x, dt          [seqs, inner], rows contiguous: after the convolution, and before the softplus
    b, c           [seqs, state_dim], rows contiguous
    decay, skip    float32 [state_dim, inner] and [inner]
    states         float32 [slots, 1, state_dim, inner]
    reads, writes  int32 [seqs]: slots; -1: there is no state yet, and padding, whose row of out is not written
    out            float32 [seqs, inner] contiguous
    """
    inner, state_dim = _check(x, dt, b, c, states)
    if len(writes):
        sizes = _sizes(state_dim)
        strides = (each.stride(0) for each in (x, dt, b, c))
        selective_step_kernel[(cdiv(inner, sizes["BLOCK_V"]), len(writes))](
            *(x, dt, b, c, decay, skip, states, reads, writes, out, *strides, inner),
            **sizes,
            num_warps=WARPS,
            num_stages=1,
        )
    return out


def selective_chunks(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    decay: Tensor,
    skip: Tensor,
    states: Tensor,
    runs: Tensor,
    *,
    out: Tensor,
) -> Tensor:
    """The recurrence of ragged prompts. runs: those of the sequences (`state_math`). The other arguments as in
    `selective_step`; rows of no sequence are not written."""
    inner, state_dim = _check(x, dt, b, c, states)
    num_seqs, tokens = check_runs(runs), len(x)
    if not num_seqs or not tokens:
        return out
    tiles, sizes = tokens // CHUNK + num_seqs * RUNS, _sizes(state_dim)
    blocks = cdiv(inner, sizes["BLOCK_V"])
    parts = x.new_empty((tiles, state_dim, inner), dtype=torch.float32)
    totals = x.new_empty((tiles, inner), dtype=torch.float32)
    strides = tuple(each.stride(0) for each in (x, dt, b, c))
    options: dict[str, Any] = {"num_warps": WARPS, "num_stages": 1}

    def launch(has_outputs: bool) -> None:
        selective_chunks_kernel[(tiles, blocks)](
            *(x, dt, b, c, decay, skip, runs, parts, totals, out, *strides, num_seqs * RUNS, inner),
            **sizes,
            CHUNK=CHUNK,
            STARTS_BLOCK=STARTS_BLOCK,
            HAS_OUTPUTS=has_outputs,
            **options,
        )

    launch(False)
    selective_states_kernel[(blocks, num_seqs)](
        *(decay, parts, totals, states, runs, runs.stride(0), inner),
        **sizes,
        CHUNK=CHUNK,
        RUNS=RUNS,
        **options,
    )
    launch(True)
    return out


def _sizes(state_dim: int) -> dict[str, int]:
    rows = next_power_of_2(state_dim)
    return {"K": state_dim, "BLOCK_K": rows, "BLOCK_V": max(16, MOST_NUMBERS // rows)}


def _check(x: Tensor, dt: Tensor, b: Tensor, c: Tensor, states: Tensor) -> tuple[int, int]:
    """The numbers of channels, and of a channel's state. Raise ValueError if the tensors do not fit."""
    state_dim, inner = states.shape[2:]
    check_state(states, 1, state_dim, inner)
    if x.shape[1] != inner or dt.shape != x.shape or b.shape != (len(x), state_dim) or c.shape != b.shape:
        shapes = ", ".join(str(list(each.shape)) for each in (x, dt, b, c))
        raise ValueError(f"x, dt, b and c {shapes} do not fit states {list(states.shape)}")
    return inner, state_dim


def selective_step_reference(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    decay: Tensor,
    skip: Tensor,
    states: Tensor,
    reads: Tensor,
    writes: Tensor,
    *,
    out: Tensor,
) -> Tensor:
    """The specification of `selective_step`."""
    return _reference(x, dt, b, c, decay, skip, states, runs_of_steps(reads, writes), out)


def selective_chunks_reference(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    decay: Tensor,
    skip: Tensor,
    states: Tensor,
    runs: Tensor,
    *,
    out: Tensor,
) -> Tensor:
    """The specification of `selective_chunks`."""
    return _reference(x, dt, b, c, decay, skip, states, each_run(runs), out)


def _reference(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    decay: Tensor,
    skip: Tensor,
    states: Tensor,
    runs: list[tuple[int, int, int, int]],
    out: Tensor,
) -> Tensor:
    x, dt, b, c = x.float(), F.softplus(dt.float()), b.float(), c.float()

    def token(at: int, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state * (decay * dt[at]).exp() + b[at][:, None] * (dt[at] * x[at])
        return c[at] @ state[0] + x[at] * skip, state

    for at, made in recur(runs, states, token).items():
        out[at] = made
    return out


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Published states have 16 numbers a channel, and channels in multiples of 16."""
    for dtype in ("bf16", "fp16", "fp32"):
        for state_dim in SELECTIVE_SIZES:
            given = {f"{name}_ptr": f"*{dtype}" for name in ("x", "dt")} | {"out_ptr": "*fp32", "decay_ptr": "*fp32"}
            given |= {"skip_ptr": "*fp32", "x_stride": "i32", "inner": "i32"}
            others = {f"{name}_ptr": f"*{dtype}" for name in ("b", "c")}
            others |= dict.fromkeys(("dt_stride", "b_stride", "c_stride"), "i32")
            sizes, name = _sizes(state_dim), f"[{dtype} {state_dim}]"
            slots = {"reads_ptr": "*i32", "writes_ptr": "*i32"}
            typical = dtype == "bf16"
            yield Specialisation(
                f"selective_step{name}",
                selective_step_kernel,
                given | others | slots | {"states_ptr": "*fp32"},
                sizes,
                WARPS,
                1,
                (*given, "states_ptr"),
                False,
            )
            scratch = {"parts_ptr": "*fp32", "totals_ptr": "*fp32"}
            for has_outputs in (False, True):
                yield Specialisation(
                    f"selective_chunks{name[:-1]}{' outputs' if has_outputs else ''}]",
                    selective_chunks_kernel,
                    given | scratch | others | {"starts_ptr": "*i32", "num_runs": "i32"},
                    {**sizes, "CHUNK": CHUNK, "STARTS_BLOCK": STARTS_BLOCK, "HAS_OUTPUTS": has_outputs},
                    WARPS,
                    1,
                    (*given, *scratch),
                    typical and has_outputs,
                )
            if dtype == "fp32":  # it sees no number of the model's dtype
                passed = scratch | {"decay_ptr": "*fp32", "states_ptr": "*fp32", "inner": "i32"}
                yield Specialisation(
                    f"selective_states[{state_dim}]",
                    selective_states_kernel,
                    passed | {"runs_ptr": "*i32", "runs_stride": "i32"},
                    {**sizes, "CHUNK": CHUNK, "RUNS": RUNS},
                    WARPS,
                    1,
                    tuple(passed),
                    False,
                )
