# mypy: disable-error-code="no-untyped-def"
"""How decode attention shares its work among programs, decided on the device, and the sum of what they leave.

The work of a step is a list of tiles of keys: of each sequence in turn, of each of its KV heads, as many as its visible
context has. A fixed number of programs takes equally long pieces of that list, however the lengths are distributed: one
long context beside many short ones costs its own tiles and no more (as "stream-K" does for matrix products, Osama et
al. 2023). A piece may contain whole contexts of a KV head, whose outputs are final, and begin and end within one. Of
these a program leaves at most two parts, which a second kernel adds in a fixed order.

`plan_decodes` makes the list from the lengths, in one launch that all layers with the same window share. Grids depend
on shapes alone, so the launches can be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.attention import INTERPRET, NO_WINDOW
from ember_kernels.attention_tables import ELEMENT_SIZES, config, variants
from ember_kernels.early import wait_for_inputs
from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.specialisation import Specialisation

PIECE_TOKENS = 64  # no program takes less, unless there is no more
PARTS_A_LOAD = 8
MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}  # where no device says its own
INTERPRETED = 2  # in the interpreter, where a program without work takes time as well
HEADER = 4  # words of a plan: tiles of a program, tiles of all
SEQS_BLOCK, PROGRAMS_BLOCK = 256, 64


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """The division of one step's work, for every layer with these sizes.

    words   int32 on the device: the header; of each sequence the number of tiles before it (of one KV head); the
            sequences that have any, in order; of each program the place in that list where it begins
    parts   float32 on the device, two parts of a context for each program: sums of values times weights [group,
            head_dim], then of all parts the maximal scores (in units of log 2) and the sums of weights [group] each
    split   views of `parts` that begin with the sums, the maximal scores and the sums of weights
    """

    words: torch.Tensor
    parts: torch.Tensor
    split: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    num_seqs: int
    num_programs: int
    heads: int
    kv_heads: int
    head_dim: int
    block_n: int
    window: int
    is_chunk: bool


@cache
def multiprocessors(device: torch.device, capability: int) -> int:
    if INTERPRET and device.type != "cuda":
        return INTERPRETED
    if device.type != "cuda":
        return MULTIPROCESSORS.get(capability, 132)
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def visible_tiles(seq_len, window, BLOCK_N: tl.constexpr, IS_CHUNK: tl.constexpr):
    """The first visible token, the start of its tile (a multiple of BLOCK_N), and the number of tiles. IS_CHUNK: the
    window begins at a multiple of its length."""
    if IS_CHUNK:
        first = tl.maximum(seq_len - 1, 0) // window * window
    else:
        first = tl.maximum(seq_len - window, 0)
    start = first // BLOCK_N * BLOCK_N
    return first, start, tl.cdiv(seq_len - start, BLOCK_N)


@direct
@triton.jit(do_not_specialize=["seq_lens_ptr", "num_seqs", "kv_heads", "window", "num_programs"])
def plan_kernel(
    seq_lens_ptr,
    words_ptr,
    num_seqs,
    kv_heads,
    window,
    num_programs,
    HEADER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST_TILES: tl.constexpr,
    IS_CHUNK: tl.constexpr,
    SEQS_BLOCK: tl.constexpr,
    PROGRAMS_BLOCK: tl.constexpr,
):
    """One program does everything: it reads what it has written, and a barrier orders only one program."""
    before_ptr = words_ptr + HEADER
    busy_ptr = before_ptr + num_seqs
    begin_ptr = busy_ptr + num_seqs
    total = 0
    num_busy = 0
    for first in range(0, num_seqs, SEQS_BLOCK):
        seq = first + tl.arange(0, SEQS_BLOCK)
        seq_len = tl.load(seq_lens_ptr + seq, mask=seq < num_seqs, other=0)
        _, _, tiles = visible_tiles(seq_len, window, BLOCK_N, IS_CHUNK)
        tl.store(before_ptr + seq, total + tl.cumsum(tiles, 0) - tiles, mask=seq < num_seqs)
        is_busy = (tiles > 0).to(tl.int32)
        tl.store(busy_ptr + num_busy + tl.cumsum(is_busy, 0) - 1, seq, mask=tiles > 0)
        total += tl.sum(tiles, 0)
        num_busy += tl.sum(is_busy, 0)
    total *= kv_heads
    share = tl.maximum(tl.cdiv(total, num_programs), LEAST_TILES)
    tl.store(words_ptr, share)
    tl.store(words_ptr + 1, total)
    tl.debug_barrier()
    for first in range(0, num_programs, PROGRAMS_BLOCK):
        program = first + tl.arange(0, PROGRAMS_BLOCK)
        found = tl.zeros([PROGRAMS_BLOCK], tl.int32)
        for some in range(0, num_busy, SEQS_BLOCK):
            place = some + tl.arange(0, SEQS_BLOCK)
            seq = tl.load(busy_ptr + place, mask=place < num_busy, other=0)
            start = tl.load(before_ptr + seq, mask=place < num_busy, other=0) * kv_heads
            is_not_after = (place < num_busy)[None, :] & (start[None, :] <= (program * share)[:, None])
            found += tl.sum(is_not_after.to(tl.int32), 1)
        tl.store(begin_ptr + program, found - 1, mask=program < num_programs)


def plan_decodes(
    seq_lens: torch.Tensor,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    block_n: int,
    num_programs: int,
    window: int | None = None,
    is_chunk: bool = False,
) -> DecodePlan:
    """Divide the work of decode attention for contexts of these lengths, int32 [seqs], among `num_programs`."""
    num_seqs, device = seq_lens.shape[0], seq_lens.device
    reach, is_chunk = (NO_WINDOW, False) if window is None else (window, is_chunk)
    words = torch.empty(HEADER + 2 * num_seqs + num_programs, dtype=torch.int32, device=device)
    rows = 2 * num_programs * (heads // kv_heads)
    parts = torch.empty(rows * (head_dim + 2), dtype=torch.float32, device=device)
    split = parts, parts[rows * head_dim :], parts[rows * (head_dim + 1) :]
    if num_seqs:
        plan_kernel[(1,)](
            seq_lens,
            words,
            num_seqs,
            kv_heads,
            reach,
            num_programs,
            HEADER=HEADER,
            BLOCK_N=block_n,
            LEAST_TILES=max(1, PIECE_TOKENS // block_n),
            IS_CHUNK=is_chunk,
            SEQS_BLOCK=SEQS_BLOCK,
            PROGRAMS_BLOCK=PROGRAMS_BLOCK,
            num_warps=8,
            num_stages=1,
        )
    return DecodePlan(words, parts, split, num_seqs, num_programs, heads, kv_heads, head_dim, block_n, reach, is_chunk)


def plan_reference(lengths: list[int], plan: DecodePlan) -> list[int]:
    """The words of the plan for these lengths, without those of sequences that are not in the list of busy ones."""
    tiles = []
    for length in lengths:
        first = max(length - 1, 0) // plan.window * plan.window if plan.is_chunk else max(length - plan.window, 0)
        start = first // plan.block_n * plan.block_n
        tiles.append(-(-(length - start) // plan.block_n))
    before = [sum(tiles[:i]) for i in range(len(tiles))]
    busy = [i for i, count in enumerate(tiles) if count]
    total = sum(tiles) * plan.kv_heads
    share = max(-(-total // plan.num_programs), PIECE_TOKENS // plan.block_n, 1)
    starts = [before[i] * plan.kv_heads for i in busy]
    begins = [sum(start <= program * share for start in starts) - 1 for program in range(plan.num_programs)]
    return [share, total, *before, *busy, *begins]


@direct
@triton.jit(
    do_not_specialize=["maxima_ptr", "weights_ptr", "seq_lens_ptr", "sinks_ptr", "num_seqs", "kv_heads", "window"]
)
def add_parts_kernel(
    words_ptr,
    sums_ptr,
    maxima_ptr,
    weights_ptr,
    seq_lens_ptr,
    sinks_ptr,
    out_ptr,
    num_seqs,
    kv_heads,
    window,
    v_scale,
    HEADER: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS_A_LOAD: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    IS_CHUNK: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """One head of one sequence: the weighted sum of its parts, if it has several. Padding gets zeros."""
    wait_for_inputs(EARLY)
    seq = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    dims = tl.arange(0, BLOCK_D)
    dim_mask = dims < HEAD_DIM
    out_ptr += (seq * heads + head) * HEAD_DIM
    _, _, tiles = visible_tiles(tl.load(seq_lens_ptr + seq), window, BLOCK_N, IS_CHUNK)
    if tiles == 0:
        tl.store(out_ptr + dims, tl.zeros([BLOCK_D], tl.float32).to(out_ptr.dtype.element_ty), mask=dim_mask)
        return
    share = tl.load(words_ptr)
    group = heads // kv_heads
    begin = tl.load(words_ptr + HEADER + seq) * kv_heads + head // group * tiles
    first_program = begin // share
    num_parts = (begin + tiles - 1) // share - first_program + 1
    if num_parts == 1:
        return
    if HAS_SINKS:
        highest = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        weight = 1.0
    else:
        highest = float("-inf")
        weight = 0.0
    sums = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, num_parts, PARTS_A_LOAD):
        part = first + tl.arange(0, PARTS_A_LOAD)
        inside = part < num_parts
        # It is a program's second part where the program began with another context.
        is_second = (part == 0) & (begin > first_program * share)
        row = ((first_program + part) * 2 + is_second.to(tl.int32)) * group + head % group
        maxima = tl.load(maxima_ptr + row, mask=inside, other=float("-inf"))
        total = tl.maximum(highest, tl.max(maxima, 0))
        decays = tl.exp2(maxima - total)
        decay = tl.exp2(highest - total)
        weights = tl.load(weights_ptr + row, mask=inside, other=0.0)
        mask = inside[:, None] & dim_mask[None, :]
        partial = tl.load(sums_ptr + row[:, None].to(tl.int64) * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
        weight = weight * decay + tl.sum(weights * decays, 0)
        sums = sums * decay + tl.sum(partial * decays[:, None], 0)
        highest = total
    tl.store(out_ptr + dims, (sums * (v_scale / weight)).to(out_ptr.dtype.element_ty), mask=dim_mask)


def add_parts(
    plan: DecodePlan, seq_lens: torch.Tensor, sinks: torch.Tensor | None, out: torch.Tensor, v_scale: float
) -> None:
    """Complete out [seqs, heads, head_dim], which has the rows of contexts that one program has computed."""
    head_dim = plan.head_dim
    sums, maxima, weights = plan.split
    add_parts_kernel[(plan.num_seqs, plan.heads)](
        plan.words,
        sums,
        maxima,
        weights,
        seq_lens,
        sinks,
        out,
        plan.num_seqs,
        plan.kv_heads,
        plan.window,
        v_scale,
        HEADER=HEADER,
        HEAD_DIM=head_dim,
        BLOCK_D=next_power_of_2(head_dim),
        BLOCK_N=plan.block_n,
        PARTS_A_LOAD=PARTS_A_LOAD,
        HAS_SINKS=sinks is not None,
        IS_CHUNK=plan.is_chunk,
        num_warps=4,
        num_stages=1,
    )


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Both kernels for every specialisation of decode attention."""
    seen: set[tuple[object, ...]] = set()
    for head_dim, dtype, cache_dtype, _, features in variants():
        block_n = config(head_dim, ELEMENT_SIZES[cache_dtype], capability).block_n
        sinks, is_chunk = features == "sinks", features == "chunk"
        typical = dtype == "bf16" and head_dim in (64, 128) and not is_chunk
        if (block_n, is_chunk) not in seen:
            seen.add((block_n, is_chunk))
            yield _plan_specialisation(block_n, is_chunk, typical)
        key = (head_dim, dtype, block_n, sinks, is_chunk)
        if key in seen:
            continue
        seen.add(key)
        signature = {"words_ptr": "*i32", "sums_ptr": "*fp32", "out_ptr": f"*{dtype}"}
        divisible = tuple(signature)
        signature |= {"maxima_ptr": "*fp32", "weights_ptr": "*fp32", "seq_lens_ptr": "*i32"}
        signature |= {"num_seqs": "i32", "kv_heads": "i32", "window": "i32", "v_scale": "fp32"}
        constants: dict[str, Any] = {
            "HEADER": HEADER,
            "HEAD_DIM": head_dim,
            "BLOCK_D": next_power_of_2(head_dim),
            "BLOCK_N": block_n,
            "PARTS_A_LOAD": PARTS_A_LOAD,
            "HAS_SINKS": sinks,
            "IS_CHUNK": is_chunk,
        }
        if sinks:
            signature["sinks_ptr"] = "*fp32"
        else:
            constants["sinks_ptr"] = None
        name = f"add_parts[{dtype}_d{head_dim}_n{block_n}{'_sinks' if sinks else ''}{'_chunk' if is_chunk else ''}]"
        yield Specialisation(name, add_parts_kernel, signature, constants, 4, 1, divisible, typical)


def _plan_specialisation(block_n: int, is_chunk: bool, typical: bool) -> Specialisation:
    signature = {"seq_lens_ptr": "*i32", "words_ptr": "*i32"}
    signature |= dict.fromkeys(("num_seqs", "kv_heads", "window", "num_programs"), "i32")
    constants = {
        "HEADER": HEADER,
        "BLOCK_N": block_n,
        "LEAST_TILES": max(1, PIECE_TOKENS // block_n),
        "IS_CHUNK": is_chunk,
        "SEQS_BLOCK": SEQS_BLOCK,
        "PROGRAMS_BLOCK": PROGRAMS_BLOCK,
    }
    name = f"plan[n{block_n}{'_chunk' if is_chunk else ''}]"
    return Specialisation(name, plan_kernel, signature, constants, 8, 1, ("words_ptr",), typical)
