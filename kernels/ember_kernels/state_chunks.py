# mypy: disable-error-code="no-untyped-def"
"""What the chunks of both rules of recurrent states share, and the pass of the states from chunk to chunk.

The rules are the gated delta rule (`delta_chunks`) and Mamba 2 (`ssd_chunks`). A run's tokens are taken in chunks of 64
(`state_math` has runs and specification). What a chunk computes by itself is computed for all chunks of all runs at
once, by one kernel for each of the two rules: the scores of its queries with its keys, and factors of its rows.

Then the kernel of this module takes the state from chunk to chunk, for both rules: a program has some columns of one
head's state of one sequence, and writes it at the end of each run. It also makes the outputs.

FLOPs of a chunk and head, C tokens: 2 C (C + 2 key_dim) value_dim + 2 C^2 key_dim; the delta rule has more
(`delta_chunks`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.launch import cdiv, direct, next_power_of_2
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import DTYPES as TYPES
from ember_kernels.specialisation import Specialisation, device_capability
from ember_kernels.state_math import DELTA_SIZES, RUNS, SSD_SIZES, check_runs, dot, load_state, precision, state_place

DTYPES = {name: TYPES[name] for name in ("bf16", "fp16")}
CHUNK = 64


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
def store_factors(factors_ptr, stride, head, heads, token, valid, of_query, of_key, kept):
    """Three numbers for each token and head: factors of its row of queries and of keys, and the state's decay by the
    whole chunk."""
    row_ptr = factors_ptr + head.to(tl.int64) * stride + token
    size = heads.to(tl.int64) * stride
    tl.store(row_ptr, of_query, mask=valid)
    tl.store(row_ptr + size, of_key, mask=valid)
    tl.store(row_ptr + 2 * size, tl.zeros_like(of_query) + kept, mask=valid)


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


def pass_states(
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
    """Take the states through all chunks of the sequences, and write `out` [tokens, heads, value_dim].

    query, key, values  of the tokens, rows contiguous; a row of values is at multiples of `values_stride`
    keys                of the delta rule: what is multiplied by the state and taken from the values; otherwise None
    scores, numbers     what the chunks have computed by themselves: [tokens, heads, CHUNK], float32 [3, heads, tokens]
    skip                of Mamba 2: float32 [heads], factors of the values that are added to the outputs
    of_keys             consecutive heads for each key head, and the number of key heads
    """
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
        **_tiles(key_dim, value_dim, c),
        **precision(query.dtype),
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )


def _tiles(key_dim: int, value_dim: int, c: Config) -> dict[str, Any]:
    sizes = {"K": key_dim, "V": value_dim, "BLOCK_K": max(16, next_power_of_2(key_dim)), "BLOCK_V": c.block_v}
    return sizes | {"CHUNK": CHUNK, "RUNS": RUNS}


def chunk_signature(dtype: str) -> dict[str, str]:
    """The types of the arguments that the kernels of both rules have. `dtype`: of the model."""
    made = "bf16" if dtype == "bf16" else "fp32"
    pointers = {"decay_ptr": "*fp32", "bias_ptr": "*fp32", "scores_ptr": f"*{made}", "factors_ptr": "*fp32"}
    return pointers | dict.fromkeys(("factors_stride", "num_runs", "heads"), "i32")


def specialisations(capability: int) -> Iterator[Specialisation]:
    """The states of both rules. Strides are multiples of 16, as published sizes have it."""
    for dtype in DTYPES:
        for sizes, is_delta in [*((each, True) for each in DELTA_SIZES), *((each, False) for each in SSD_SIZES)]:
            yield _specialisation(capability, dtype, *sizes, is_delta)


def _specialisation(capability: int, dtype: str, key_dim: int, value_dim: int, is_delta: bool) -> Specialisation:
    of = DTYPES[dtype]
    made = "bf16" if of == torch.bfloat16 else "fp32"
    c = config(key_dim, of, capability)
    pointers = {"query_ptr": f"*{dtype}", "key_ptr": f"*{dtype}", "scores_ptr": f"*{made}", "factors_ptr": "*fp32"}
    pointers |= {"states_ptr": "*fp32", "out_ptr": f"*{dtype}" if is_delta else "*fp32"}
    pointers |= {"values_ptr": f"*{made if is_delta else dtype}"}
    pointers |= {"keys_ptr": f"*{made}"} if is_delta else {}
    signature = pointers | {"runs_ptr": "*i32", "query_stride": "i32", "values_stride": "i32"}
    signature |= dict.fromkeys(("factors_stride", "runs_stride", "heads", "divisor", "key_heads"), "i32")
    constants = _tiles(key_dim, value_dim, c) | precision(of, interpret=False)
    if is_delta:
        constants["skip_ptr"] = None
    else:
        constants["keys_ptr"] = None
        signature["skip_ptr"] = "*fp32"
    return Specialisation(
        f"chunk_states[{dtype} {key_dim}x{value_dim}{' delta' if is_delta else ''}]",
        chunk_states_kernel,
        signature,
        constants,
        c.num_warps,
        c.num_stages,
        (*pointers, "query_stride", "values_stride"),
        dtype == "bf16" and (is_delta or (key_dim, value_dim) == SSD_SIZES[0]),
    )
