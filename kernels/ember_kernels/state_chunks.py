# mypy: disable-error-code="no-untyped-def"
"""Ragged prompts through recurrent states: the gated delta rule (arXiv 2412.06464) and Mamba 2 (arXiv 2405.21060).

A run's tokens are taken in chunks of 64 (`state_math` has runs and specification). What a chunk computes by itself is
computed for all chunks of all runs at once, by one kernel for each of the two rules: the scores of its queries with its
keys, and factors of its rows. The delta rule's values depend on each other. With L = beta * (k k^T) * decay below the
diagonal, what the tokens add to the state is (I + L)^-1 beta (v - decay k S): the part of v ("values") and that of S
("keys") are made here.

Then one kernel takes the state from chunk to chunk, for both rules: a program has some columns of one head's state of
one sequence, and writes it at the end of each run. It also makes the outputs.

FLOPs of a chunk and head, C tokens: 2 C (C + 2 key_dim) value_dim + 2 C^2 key_dim, and for the delta rule 2 C (C +
key_dim) value_dim + 4 C^2 key_dim more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import STARTS_BLOCK, prompt_tile
from ember_kernels.compile import DTYPES as TYPES
from ember_kernels.compile import Specialisation, device_capability
from ember_kernels.launch import cdiv, direct, next_power_of_2
from ember_kernels.rounding import rounded
from ember_kernels.state_math import (
    DELTA_SIZES,
    EPS,
    INTERPRET,
    RUNS,
    SSD_SIZES,
    check_runs,
    delta_reference,
    delta_sizes,
    dot,
    each_run,
    load_state,
    precision,
    scratch_type,
    softplus,
    ssd_reference,
    ssd_sizes,
    state_place,
)
from ember_kernels.state_tokens import delta_tokens, ssd_tokens

DTYPES = {name: TYPES[name] for name in ("bf16", "fp16")}
CHUNK = 64
DELTA_WARPS, SSD_WARPS = 8, 8  # of the kernels of chunks by themselves
MOST_COLUMNS = 64  # of keys and values in one product of the delta rule's chunks
BLOCK = 16  # rows and columns of the blocks that are inverted


@dataclass(frozen=True)
class Config:
    block_v: int  # columns of a state, or values, in one program
    num_warps: int
    num_stages: int


def config(key_dim: int, dtype: torch.dtype, capability: int) -> Config:
    """The tiles of `chunk_states`. Not measured yet. A stage holds a chunk's queries, keys, scores and values: 60 KiB
    for keys of 128 elements in 16 bits, of which two fit where shared memory has 160 KiB."""
    is_small = key_dim <= 128
    stages = 2 if capability in (80, 90, 100) and is_small else 1
    return Config(32, 4 if is_small and dtype == torch.bfloat16 else 8, stages)


@triton.jit
def _block(matrix_ptr, stride, count, row, column, BLOCK: tl.constexpr):
    """Pointers to a block of a matrix with `count` rows, and which of them are there."""
    offsets = tl.arange(0, BLOCK)
    rows = row * BLOCK + offsets
    return matrix_ptr + rows[:, None] * stride + column * BLOCK + offsets[None, :], (rows < count)[:, None]


@triton.jit
def _load_block(matrix_ptr, stride, count, row, column, BLOCK: tl.constexpr):
    block_ptr, mask = _block(matrix_ptr, stride, count, row, column, BLOCK)
    return tl.load(block_ptr, mask=mask, other=0.0)


@triton.jit
def _store_block(matrix_ptr, stride, count, row, column, block, BLOCK: tl.constexpr):
    block_ptr, mask = _block(matrix_ptr, stride, count, row, column, BLOCK)
    tl.store(block_ptr, block, mask=mask)


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _invert(matrix_ptr, stride, count, BLOCK: tl.constexpr):
    """Replace a matrix of 4 x 4 blocks that has zeros on and above its diagonal by (I + matrix)^-1.

    The blocks on the diagonal are inverted row by row, all at a time, and the others follow from them. This goes
    through memory, since a matrix of 64 x 64 and its factors fill the registers, and blocks cannot be cut out of it.
    """
    numbers = tl.arange(0, 4)
    within = tl.arange(0, BLOCK)
    rows = (numbers[:, None] * BLOCK + within[None, :])[:, :, None]
    diagonal_ptr = matrix_ptr + rows * stride + (numbers[:, None] * BLOCK)[:, :, None] + within[None, None, :]
    solved = -tl.load(diagonal_ptr, mask=rows < count, other=0.0)
    for i in range(1, BLOCK):
        is_row = (within == i)[None, :, None]
        row = tl.sum(tl.where(is_row, solved, 0.0), 1)  # [blocks, columns]
        row += tl.sum(row[:, :, None] * solved, 1)
        solved = tl.where(is_row, row[:, None, :], solved)
    solved += (within[:, None] == within[None, :]).to(tl.float32)[None, :, :]
    tl.store(diagonal_ptr, solved, mask=rows < count)
    tl.debug_barrier()
    d0 = _load_block(matrix_ptr, stride, count, 0, 0, BLOCK)
    d1 = _load_block(matrix_ptr, stride, count, 1, 1, BLOCK)
    d2 = _load_block(matrix_ptr, stride, count, 2, 2, BLOCK)
    d3 = _load_block(matrix_ptr, stride, count, 3, 3, BLOCK)
    b10 = _load_block(matrix_ptr, stride, count, 1, 0, BLOCK)
    b20 = _load_block(matrix_ptr, stride, count, 2, 0, BLOCK)
    b21 = _load_block(matrix_ptr, stride, count, 2, 1, BLOCK)
    b30 = _load_block(matrix_ptr, stride, count, 3, 0, BLOCK)
    b31 = _load_block(matrix_ptr, stride, count, 3, 1, BLOCK)
    b32 = _load_block(matrix_ptr, stride, count, 3, 2, BLOCK)
    tl.debug_barrier()  # every thread has read what others write
    r10 = -_dot(d1, _dot(b10, d0))
    r21 = -_dot(d2, _dot(b21, d1))
    r32 = -_dot(d3, _dot(b32, d2))
    r20 = -_dot(d2, _dot(b20, d0) + _dot(b21, r10))
    r31 = -_dot(d3, _dot(b31, d1) + _dot(b32, r21))
    r30 = -_dot(d3, _dot(b30, d0) + _dot(b31, r10) + _dot(b32, r20))
    _store_block(matrix_ptr, stride, count, 1, 0, r10, BLOCK)
    _store_block(matrix_ptr, stride, count, 2, 0, r20, BLOCK)
    _store_block(matrix_ptr, stride, count, 2, 1, r21, BLOCK)
    _store_block(matrix_ptr, stride, count, 3, 0, r30, BLOCK)
    _store_block(matrix_ptr, stride, count, 3, 1, r31, BLOCK)
    _store_block(matrix_ptr, stride, count, 3, 2, r32, BLOCK)
    tl.debug_barrier()


@triton.jit
def _store_factors(factors_ptr, stride, head, heads, token, valid, of_query, of_key, kept):
    """Three numbers for each token and head: factors of its row of queries and of keys, and the state's decay by the
    whole chunk."""
    row_ptr = factors_ptr + head.to(tl.int64) * stride + token
    size = heads.to(tl.int64) * stride
    tl.store(row_ptr, of_query, mask=valid)
    tl.store(row_ptr + size, of_key, mask=valid)
    tl.store(row_ptr + 2 * size, tl.zeros_like(of_query) + kept, mask=valid)


@direct
@triton.jit(
    do_not_specialize=[
        *(
            "rates_ptr",
            "decay_ptr",
            "bias_ptr",
            "starts_ptr",
            "num_runs",
            "rates_stride",
            "heads",
            "divisor",
            "key_heads",
        ),
        "factors_stride",
    ]
)
def delta_chunks_kernel(
    qkv_ptr,
    rates_ptr,
    decay_ptr,
    bias_ptr,
    starts_ptr,
    scores_ptr,
    factors_ptr,
    inverses_ptr,
    values_ptr,
    keys_ptr,
    qkv_stride,
    rates_stride,
    factors_stride,
    num_runs,
    heads,
    divisor,
    key_heads,
    scale,
    eps,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    STARTS_BLOCK: tl.constexpr,
):
    """One chunk and head of the delta rule: scores, factors, and what it adds to the state."""
    head = tl.program_id(1)
    _, start, count, first = prompt_tile(starts_ptr, num_runs, tl.program_id(0), CHUNK, STARTS_BLOCK)
    if first >= count:
        return
    rows = tl.arange(0, CHUNK)
    valid = first + rows < count
    token = (start + first + rows).to(tl.int64)
    beta = tl.sigmoid(tl.load(rates_ptr + token * rates_stride + head, mask=valid, other=0.0).to(tl.float32))
    alpha = tl.load(rates_ptr + token * rates_stride + heads + head, mask=valid, other=0.0).to(tl.float32)
    decays = tl.load(decay_ptr + head) * softplus(alpha + tl.load(bias_ptr + head))
    decays = tl.where(valid, decays, 0.0)
    total = tl.cumsum(decays, 0)
    whole = tl.sum(decays, 0)

    key_size = key_heads * K
    token_ptr = qkv_ptr + token[:, None] * qkv_stride
    query_ptr = token_ptr + head // divisor % key_heads * K
    lower = tl.zeros((CHUNK, CHUNK), tl.float32)
    scores = tl.zeros((CHUNK, CHUNK), tl.float32)
    of_query = tl.zeros((CHUNK,), tl.float32)
    of_key = tl.zeros((CHUNK,), tl.float32)
    for begin in range(0, K, BLOCK_K):
        columns = begin + tl.arange(0, BLOCK_K)
        mask = valid[:, None] & (columns < K)[None, :]
        query = tl.load(query_ptr + columns[None, :], mask=mask, other=0.0)
        key = tl.load(query_ptr + key_size + columns[None, :], mask=mask, other=0.0)
        lower += dot(key, tl.trans(key), HALF, PRECISION)
        scores += dot(query, tl.trans(key), HALF, PRECISION)
        query = query.to(tl.float32)
        of_query += tl.sum(query * query, 1)
        key = key.to(tl.float32)
        of_key += tl.sum(key * key, 1)
    of_query = tl.rsqrt(of_query + eps) * scale
    of_key = tl.rsqrt(of_key + eps)
    faded = tl.exp(total)
    visible = rows[:, None] >= rows[None, :]
    between = tl.exp(tl.where(visible, total[:, None] - total[None, :], float("-inf"))) * of_key[None, :]
    scores *= between * of_query[:, None]
    scores_at = (token * heads + head)[:, None] * CHUNK + rows[None, :]
    tl.store(scores_ptr + scores_at, rounded(scores, scores_ptr.dtype.element_ty), mask=valid[:, None])
    _store_factors(
        factors_ptr,
        factors_stride,
        head,
        heads,
        token,
        valid,
        of_query * faded,
        of_key * tl.exp(whole - total),
        tl.exp(whole),
    )

    lower = tl.where(rows[:, None] > rows[None, :], lower * between * (beta * of_key)[:, None], 0.0)
    matrix_ptr = inverses_ptr + ((start + first).to(tl.int64) * heads + head) * CHUNK
    inverse_ptr = matrix_ptr + rows[:, None] * (heads * CHUNK) + rows[None, :]
    tl.store(inverse_ptr, lower, mask=valid[:, None])
    tl.debug_barrier()
    _invert(matrix_ptr, heads * CHUNK, count - first, BLOCK)
    inverse = tl.load(inverse_ptr, mask=valid[:, None], other=0.0)
    of_keys = inverse * (beta * of_key * faded)[None, :]
    for begin in range(0, K, BLOCK_K):
        columns = begin + tl.arange(0, BLOCK_K)
        mask = valid[:, None] & (columns < K)[None, :]
        key = tl.load(query_ptr + key_size + columns[None, :], mask=mask, other=0.0)
        made = dot(of_keys, key, HALF, PRECISION)
        keys_at = (token * heads + head)[:, None] * K + columns[None, :]
        tl.store(keys_ptr + keys_at, rounded(made, keys_ptr.dtype.element_ty), mask=mask)
    of_values = inverse * beta[None, :]
    for begin in range(0, V, BLOCK_V):
        at = begin + tl.arange(0, BLOCK_V)
        inside = valid[:, None] & (at < V)[None, :]
        value = tl.load(token_ptr + 2 * key_size + head * V + at[None, :], mask=inside, other=0.0)
        part = dot(of_values, value, HALF, PRECISION)
        values_at = (token * heads + head)[:, None] * V + at[None, :]
        tl.store(values_ptr + values_at, rounded(part, values_ptr.dtype.element_ty), mask=inside)


@direct
@triton.jit(
    do_not_specialize=[
        *("dt_ptr", "decay_ptr", "bias_ptr", "starts_ptr", "num_runs", "dt_stride", "heads", "shared"),
        "factors_stride",
    ]
)
def ssd_chunks_kernel(
    x_ptr,
    dt_ptr,
    decay_ptr,
    bias_ptr,
    starts_ptr,
    scores_ptr,
    factors_ptr,
    x_stride,
    dt_stride,
    factors_stride,
    num_runs,
    heads,
    shared,
    least_dt,
    most_dt,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    STARTS_BLOCK: tl.constexpr,
):
    """One chunk and head of Mamba 2: scores and factors, which have dt, the factor of the values."""
    head = tl.program_id(1)
    _, start, count, first = prompt_tile(starts_ptr, num_runs, tl.program_id(0), CHUNK, STARTS_BLOCK)
    if first >= count:
        return
    rows = tl.arange(0, CHUNK)
    columns = tl.arange(0, BLOCK_K)
    valid = first + rows < count
    token = (start + first + rows).to(tl.int64)
    dt = tl.load(dt_ptr + token * dt_stride + head, mask=valid, other=0.0).to(tl.float32)
    dt = softplus(dt + tl.load(bias_ptr + head))
    dt = tl.where(valid, tl.minimum(tl.maximum(dt, least_dt), most_dt), 0.0)
    decays = dt * tl.load(decay_ptr + head)
    total = tl.cumsum(decays, 0)
    whole = tl.sum(decays, 0)

    mask = valid[:, None] & (columns < K)[None, :]
    b_ptr = x_ptr + token[:, None] * x_stride + heads * V + head // shared * K + columns[None, :]
    b = tl.load(b_ptr, mask=mask, other=0.0)
    c = tl.load(b_ptr + heads // shared * K, mask=mask, other=0.0)
    visible = rows[:, None] >= rows[None, :]
    between = tl.exp(tl.where(visible, total[:, None] - total[None, :], float("-inf"))) * dt[None, :]
    scores = dot(c, tl.trans(b), HALF, PRECISION) * between
    scores_at = (token * heads + head)[:, None] * CHUNK + rows[None, :]
    tl.store(scores_ptr + scores_at, rounded(scores, scores_ptr.dtype.element_ty), mask=valid[:, None])
    _store_factors(
        factors_ptr,
        factors_stride,
        head,
        heads,
        token,
        valid,
        tl.exp(total),
        dt * tl.exp(whole - total),
        tl.exp(whole),
    )


@direct
@triton.jit(
    do_not_specialize=["skip_ptr", "runs_ptr", "heads", "divisor", "key_heads", "runs_stride", "factors_stride"]
)
def chunk_states_kernel(
    query_ptr,
    key_ptr,
    values_ptr,
    keys_ptr,
    scores_ptr,
    factors_ptr,
    skip_ptr,
    states_ptr,
    runs_ptr,
    out_ptr,
    query_stride,
    values_stride,
    factors_stride,
    runs_stride,
    heads,
    divisor,
    key_heads,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    RUNS: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some columns of the state of one head of one sequence, through all of its runs."""
    head = tl.program_id(1)
    runs_ptr += tl.program_id(2) * RUNS
    if tl.load(runs_ptr) == tl.load(runs_ptr + RUNS):
        return
    offsets = tl.arange(0, CHUNK)
    rows = tl.arange(0, BLOCK_K)
    columns = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    within = rows < K
    inside = columns < V
    place, mask, size = state_place(head, heads, columns, K, V, BLOCK_K)
    read = tl.load(runs_ptr + runs_stride).to(tl.int64)
    state = load_state(states_ptr, read, size, place, columns, K, V, BLOCK_K)
    skip = 0.0
    if skip_ptr is not None:
        skip = tl.load(skip_ptr + head)
    factors_ptr += head.to(tl.int64) * factors_stride
    factors_size = heads.to(tl.int64) * factors_stride
    query_ptr += head // divisor % key_heads * K
    key_ptr += head // divisor % key_heads * K
    for run in range(RUNS):
        start = tl.load(runs_ptr + run)
        stop = tl.load(runs_ptr + run + 1)
        for first in range(start, stop, CHUNK):
            valid = first + offsets < stop
            token = (first + offsets).to(tl.int64)
            value_at = token[:, None] * values_stride + head * V + columns[None, :]
            value = tl.load(values_ptr + value_at, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
            of_query = tl.load(factors_ptr + token, mask=valid, other=0.0)
            of_key = tl.load(factors_ptr + factors_size + token, mask=valid, other=0.0)
            kept = tl.load(factors_ptr + 2 * factors_size + first)
            row_mask = valid[:, None] & within[None, :]
            new = value
            if keys_ptr is not None:
                keys_at = (token * heads + head)[:, None] * K + rows[None, :]
                new -= dot(tl.load(keys_ptr + keys_at, mask=row_mask, other=0.0), state, HALF, PRECISION)
            query = tl.load(query_ptr + token[:, None] * query_stride + rows[None, :], mask=row_mask, other=0.0)
            made = dot(query, state, HALF, PRECISION) * of_query[:, None]
            scores_at = (token * heads + head)[:, None] * CHUNK + offsets[None, :]
            scores = tl.load(scores_ptr + scores_at, mask=valid[:, None], other=0.0)
            made += dot(scores, new, HALF, PRECISION)
            if skip_ptr is not None:
                made += value * skip
            out_at = (token * heads + head)[:, None] * V + columns[None, :]
            tl.store(out_ptr + out_at, rounded(made, out_ptr.dtype.element_ty), mask=valid[:, None] & inside[None, :])
            key = tl.load(key_ptr + token[:, None] * query_stride + rows[None, :], mask=row_mask, other=0.0)
            state = state * kept + dot(tl.trans(key), new * of_key[:, None], HALF, PRECISION)
        if stop > start:
            write = tl.load(runs_ptr + 2 * runs_stride + run).to(tl.int64)
            tl.store(states_ptr + write * size + place, state, mask=mask)


def delta_chunks(
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
    """The gated delta rule for ragged prompts.

    qkv             [tokens, (2 * key_heads * key_dim + heads * value_dim)], rows contiguous: after the convolution
    rates           [tokens, 2 * heads], rows contiguous: beta and alpha
    decay, dt_bias  float32 [heads]
    states          float32 [slots, heads, key_dim, value_dim]
    runs            those of the sequences (`state_math`)
    tiled           whether head i has key head i % key_heads, in place of consecutive heads for each
    out             [tokens, heads, value_dim] contiguous; rows of no sequence are not written
    """
    heads, key_dim, value_dim = delta_sizes(qkv, rates, states, key_heads)
    num_seqs, tokens = check_runs(runs), len(qkv)
    if not num_seqs or not tokens:
        return out
    if qkv.dtype == torch.float32 and not INTERPRET:
        return delta_tokens(qkv, rates, decay, dt_bias, states, runs, key_heads=key_heads, tiled=tiled, out=out)
    made = scratch_type(qkv.dtype)
    scores = qkv.new_empty((tokens, heads, CHUNK), dtype=made)
    values = qkv.new_empty((tokens, heads, value_dim), dtype=made)
    keys = qkv.new_empty((tokens, heads, key_dim), dtype=made)
    numbers = qkv.new_empty((3, heads, tokens), dtype=torch.float32)
    delta_chunks_kernel[(tokens // CHUNK + num_seqs * RUNS, heads)](
        qkv,
        rates,
        decay,
        dt_bias,
        runs,
        scores,
        numbers,
        qkv.new_empty((tokens, heads, CHUNK), dtype=torch.float32),
        values,
        keys,
        qkv.stride(0),
        rates.stride(0),
        tokens,
        num_seqs * RUNS,
        heads,
        1 if tiled else heads // key_heads,
        key_heads,
        key_dim**-0.5,
        EPS,
        **_delta_tiles(key_dim, value_dim),
        **precision(qkv.dtype),
        num_warps=DELTA_WARPS,
        num_stages=1,
    )
    first = qkv[:, key_heads * key_dim :]
    of_keys = 1 if tiled else heads // key_heads, key_heads
    _pass_states(qkv, first, values, keys, scores, numbers, None, states, runs, of_keys, value_dim * heads, out)
    return out


def delta_chunks_reference(
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
    """The specification of `delta_chunks`."""
    return delta_reference(qkv, rates, decay, dt_bias, states, each_run(runs), key_heads, tiled, out)


def ssd_chunks(
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
    """Mamba 2's recurrence for ragged prompts.

    x                     [tokens, heads * head_dim + 2 * groups * state_dim], rows contiguous: after the convolution
    dt                    [tokens, heads], rows contiguous; it is clamped to `limits` after the softplus
    decay, dt_bias, skip  float32 [heads]
    states                float32 [slots, heads, state_dim, head_dim]
    runs, out             as those of `delta_chunks`
    """
    heads, state_dim, head_dim = ssd_sizes(x, dt, states, groups)
    num_seqs, tokens = check_runs(runs), len(x)
    if not num_seqs or not tokens:
        return out
    if x.dtype == torch.float32 and not INTERPRET:
        return ssd_tokens(x, dt, decay, dt_bias, skip, states, runs, groups=groups, limits=limits, out=out)
    scores = x.new_empty((tokens, heads, CHUNK), dtype=scratch_type(x.dtype))
    numbers = x.new_empty((3, heads, tokens), dtype=torch.float32)
    ssd_chunks_kernel[(tokens // CHUNK + num_seqs * RUNS, heads)](
        x,
        dt,
        decay,
        dt_bias,
        runs,
        scores,
        numbers,
        x.stride(0),
        dt.stride(0),
        tokens,
        num_seqs * RUNS,
        heads,
        heads // groups,
        *limits,
        **_ssd_tiles(state_dim, head_dim),
        **precision(x.dtype),
        num_warps=SSD_WARPS,
        num_stages=1,
    )
    b = x[:, heads * head_dim :]
    c = b[:, groups * state_dim :]
    _pass_states(c, b, x, None, scores, numbers, skip, states, runs, (heads // groups, groups), x.stride(0), out)
    return out


def ssd_chunks_reference(
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
    """The specification of `ssd_chunks`."""
    return ssd_reference(x, dt, decay, dt_bias, skip, limits, states, each_run(runs), groups, out)


def _pass_states(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    keys: Tensor | None,
    scores: Tensor,
    numbers: Tensor,
    skip: Tensor | None,
    states: Tensor,
    runs: Tensor,
    of_keys: tuple[int, int],
    values_stride: int,
    out: Tensor,
) -> None:
    heads, key_dim, value_dim = states.shape[1:]
    c = config(key_dim, query.dtype, device_capability(query.device))
    chunk_states_kernel[(cdiv(value_dim, c.block_v), heads, check_runs(runs))](
        query,
        key,
        values,
        keys,
        scores,
        numbers,
        skip,
        states,
        runs,
        out,
        query.stride(0),
        values_stride,
        numbers.shape[2],
        runs.stride(0),
        heads,
        *of_keys,
        **_pass_tiles(key_dim, value_dim, c),
        **precision(query.dtype),
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )


def _delta_tiles(key_dim: int, value_dim: int) -> dict[str, Any]:
    blocks = {"BLOCK_K": min(MOST_COLUMNS, max(16, next_power_of_2(key_dim))), "BLOCK_V": MOST_COLUMNS}
    sizes = {"K": key_dim, "V": value_dim, **blocks}
    return sizes | {"CHUNK": CHUNK, "BLOCK": BLOCK, "STARTS_BLOCK": STARTS_BLOCK}


def _ssd_tiles(state_dim: int, head_dim: int) -> dict[str, Any]:
    sizes = {"K": state_dim, "V": head_dim, "BLOCK_K": max(16, next_power_of_2(state_dim))}
    return sizes | {"CHUNK": CHUNK, "STARTS_BLOCK": STARTS_BLOCK}


def _pass_tiles(key_dim: int, value_dim: int, c: Config) -> dict[str, Any]:
    sizes = {"K": key_dim, "V": value_dim, "BLOCK_K": max(16, next_power_of_2(key_dim)), "BLOCK_V": c.block_v}
    return sizes | {"CHUNK": CHUNK, "RUNS": RUNS}


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Strides are multiples of 16, as published sizes have it."""
    for dtype, of in DTYPES.items():
        made = "bf16" if of == torch.bfloat16 else "fp32"
        numbers = {"decay_ptr": "*fp32", "bias_ptr": "*fp32", "scores_ptr": f"*{made}", "factors_ptr": "*fp32"}
        sizes = dict.fromkeys(("factors_stride", "num_runs", "heads"), "i32")
        multiplied = precision(of, interpret=False)
        for key_dim, value_dim in DELTA_SIZES:
            pointers = {"qkv_ptr": f"*{dtype}", "values_ptr": f"*{made}", "keys_ptr": f"*{made}"}
            pointers["inverses_ptr"] = "*fp32"
            divisible = (*pointers, "scores_ptr", "factors_ptr", "qkv_stride")
            signature = numbers | sizes | pointers | {"rates_ptr": f"*{dtype}", "starts_ptr": "*i32"}
            yield Specialisation(
                f"delta_chunks[{dtype} {key_dim}x{value_dim}]",
                delta_chunks_kernel,
                signature
                | dict.fromkeys(("qkv_stride", "rates_stride", "divisor", "key_heads"), "i32")
                | {"scale": "fp32", "eps": "fp32"},
                _delta_tiles(key_dim, value_dim) | multiplied,
                DELTA_WARPS,
                1,
                divisible,
                dtype == "bf16",
            )
            yield from _passes(capability, dtype, made, key_dim, value_dim, True)
        for state_dim, head_dim in SSD_SIZES:
            signature = numbers | sizes | {"x_ptr": f"*{dtype}", "dt_ptr": f"*{dtype}", "starts_ptr": "*i32"}
            yield Specialisation(
                f"ssd_chunks[{dtype} {state_dim}x{head_dim}]",
                ssd_chunks_kernel,
                signature
                | dict.fromkeys(("x_stride", "dt_stride", "shared"), "i32")
                | {"least_dt": "fp32", "most_dt": "fp32"},
                _ssd_tiles(state_dim, head_dim) | multiplied,
                SSD_WARPS,
                1,
                ("x_ptr", "scores_ptr", "factors_ptr", "x_stride"),
                (dtype, state_dim, head_dim) == ("bf16", *SSD_SIZES[0]),
            )
            yield from _passes(capability, dtype, made, state_dim, head_dim, False)


def _passes(
    capability: int, dtype: str, made: str, key_dim: int, value_dim: int, is_delta: bool
) -> Iterator[Specialisation]:
    of = DTYPES[dtype]
    c = config(key_dim, of, capability)
    pointers = {"query_ptr": f"*{dtype}", "key_ptr": f"*{dtype}", "scores_ptr": f"*{made}", "factors_ptr": "*fp32"}
    pointers |= {"states_ptr": "*fp32", "out_ptr": f"*{dtype}" if is_delta else "*fp32"}
    pointers |= {"values_ptr": f"*{made if is_delta else dtype}"}
    pointers |= {"keys_ptr": f"*{made}"} if is_delta else {}
    signature = pointers | {"runs_ptr": "*i32", "query_stride": "i32", "values_stride": "i32"}
    signature |= dict.fromkeys(("factors_stride", "runs_stride", "heads", "divisor", "key_heads"), "i32")
    constants = _pass_tiles(key_dim, value_dim, c) | precision(of, interpret=False)
    if is_delta:
        constants["skip_ptr"] = None
    else:
        constants["keys_ptr"] = None
        signature["skip_ptr"] = "*fp32"
    yield Specialisation(
        f"chunk_states[{dtype} {key_dim}x{value_dim}{' delta' if is_delta else ''}]",
        chunk_states_kernel,
        signature,
        constants,
        c.num_warps,
        c.num_stages,
        (*pointers, "query_stride", "values_stride"),
        dtype == "bf16" and (is_delta or (key_dim, value_dim) == SSD_SIZES[0]),
    )
