# mypy: disable-error-code="no-untyped-def"
"""The chunks of ragged prompts by Mamba 2 (arXiv 2405.21060). `state_chunks` has what comes after them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import STARTS_BLOCK, prompt_tile
from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation
from ember_kernels.state_chunks import CHUNK, DTYPES, chunk_signature, pass_states, store_factors
from ember_kernels.state_math import (
    INTERPRET,
    RUNS,
    SSD_SIZES,
    check_runs,
    dot,
    each_run,
    precision,
    scratch_type,
    softplus,
    ssd_reference,
    ssd_sizes,
)
from ember_kernels.state_tokens import ssd_tokens

NUM_WARPS = 8


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
    store_factors(
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
    runs                  those of the sequences (`state_math`)
    out                   [tokens, heads, head_dim] contiguous; rows of no sequence are not written
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
        **_tiles(state_dim, head_dim),
        **precision(x.dtype),
        num_warps=NUM_WARPS,
        num_stages=1,
    )
    b = x[:, heads * head_dim :]
    c = b[:, groups * state_dim :]
    pass_states(c, b, x, None, scores, numbers, skip, states, runs, (heads // groups, groups), x.stride(0), out)
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


def _tiles(state_dim: int, head_dim: int) -> dict[str, Any]:
    sizes = {"K": state_dim, "V": head_dim, "BLOCK_K": max(16, next_power_of_2(state_dim))}
    return sizes | {"CHUNK": CHUNK, "STARTS_BLOCK": STARTS_BLOCK}


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Strides are multiples of 16, as published sizes have it."""
    for dtype, of in DTYPES.items():
        signature = chunk_signature(dtype) | {"x_ptr": f"*{dtype}", "dt_ptr": f"*{dtype}", "starts_ptr": "*i32"}
        for state_dim, head_dim in SSD_SIZES:
            yield Specialisation(
                f"ssd_chunks[{dtype} {state_dim}x{head_dim}]",
                ssd_chunks_kernel,
                signature
                | dict.fromkeys(("x_stride", "dt_stride", "shared"), "i32")
                | {"least_dt": "fp32", "most_dt": "fp32"},
                _tiles(state_dim, head_dim) | precision(of, interpret=False),
                NUM_WARPS,
                1,
                ("x_ptr", "scores_ptr", "factors_ptr", "x_stride"),
                (dtype, state_dim, head_dim) == ("bf16", *SSD_SIZES[0]),
            )
