# mypy: disable-error-code="no-untyped-def"
"""Sort the (token, expert) pairs of a mixture-of-experts layer by expert, into blocks with one expert each.

The router gives every token top_k experts: num_pairs = tokens * top_k pairs, pair p being token p // top_k. The grouped
matrix product needs blocks of `block_m` pairs of one expert. Only the device knows the number of blocks, so the tensors
have the size of the worst case, and blocks beyond the last have no rows. This needs no synchronisation and has one
shape for each number of tokens, as CUDA graphs need. Pairs within an expert have the order of the tokens in every run.

Pairs whose expert id is outside [0, num_experts) are in no block: experts of another rank, or padding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.launch import cdiv, direct, next_power_of_2
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
CHUNK = 256  # pairs per program
PART = 32  # pairs compared at once, which bounds the registers
COUNT_ROWS = 16  # chunks whose counts are added at once
GATHER_BLOCK_M = 16  # rows of the least tile that is multiplied, of which a gathered pair fills one


@dataclass(frozen=True)
class ExpertBlocks:
    """`sorted_pairs` int32 [max_blocks * block_m]: pair numbers, of which block b uses the first `block_rows[b]` of its
    block_m; `block_experts` int32 [max_blocks]; `block_rows` int32 [max_blocks], 0 for blocks that are not used."""

    sorted_pairs: torch.Tensor
    block_experts: torch.Tensor
    block_rows: torch.Tensor
    block_m: int
    num_pairs: int

    @property
    def max_blocks(self) -> int:
        return self.block_experts.shape[0]


def max_expert_blocks(num_pairs: int, num_experts: int, block_m: int) -> int:
    """The most blocks that any routing of `num_pairs` pairs needs."""
    return (num_pairs + min(num_pairs, num_experts) * (block_m - 1)) // block_m


Places = tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]
"""The first three arguments of `pairs_of_block`."""


def places_of(block_m: int) -> dict[str, str]:
    """The types of `Places` in blocks of `block_m` pairs; 0: gathered pairs."""
    if not block_m:
        return {"experts_ptr": "*i64"}
    return dict.fromkeys(("sorted_pairs_ptr", "experts_ptr", "block_rows_ptr"), "*i32")


def no_places(block_m: int) -> dict[str, None]:
    """The constants of a launch with gathered pairs."""
    return {} if block_m else {"sorted_pairs_ptr": None, "block_rows_ptr": None}


@triton.jit
def pairs_of_block(sorted_pairs_ptr, experts_ptr, block_rows_ptr, block, num_experts, BLOCK_M: tl.constexpr):
    """The pairs of a block in a kernel of experts' products: which of its rows are pairs [BLOCK_M], their numbers
    [BLOCK_M], their expert in int64, and whether there is one (otherwise the expert is 0, and nothing need be read).

    sorted_pairs_ptr None: block b is pair b alone, whose expert is experts[b], perhaps none of [0, num_experts).
    """
    rows = tl.arange(0, BLOCK_M)
    expert = tl.load(experts_ptr + block).to(tl.int64)
    if sorted_pairs_ptr is None:
        is_pair = rows < 1
        pairs = tl.zeros((BLOCK_M,), tl.int32) + block
        has_expert = (expert >= 0) & (expert < num_experts)
    else:
        num_rows = tl.load(block_rows_ptr + block)
        is_pair = rows < num_rows
        pairs = tl.load(sorted_pairs_ptr + block * BLOCK_M + rows, mask=is_pair, other=0)
        has_expert = num_rows > 0
    return is_pair, pairs, tl.where(has_expert, expert, 0), has_expert


@triton.jit
def store_pairs(out_ptr, sums, is_pair, pairs, columns, n):
    """Store the products of a block's pairs, [BLOCK_M, columns], to out [pairs, n]."""
    out_at = out_ptr + pairs.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(out_at, rounded(sums, out_ptr.dtype.element_ty), mask=is_pair[:, None] & (columns < n)[None, :])


@direct
@triton.jit(do_not_specialize=["num_pairs", "num_experts"])
def count_experts_kernel(
    ids_ptr, counts_ptr, num_pairs, num_experts, CHUNK: tl.constexpr, PART: tl.constexpr, EXPERTS: tl.constexpr
):
    """counts[chunk, expert] = the number of the chunk's pairs with that expert."""
    chunk = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    counts = tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, CHUNK, PART):
        pair = chunk * CHUNK + first + tl.arange(0, PART)
        ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
        counts += tl.sum((ids[:, None] == experts[None, :]).to(tl.int32), 0)
    tl.store(counts_ptr + chunk * num_experts + experts, counts, mask=experts < num_experts)


@direct
@triton.jit(do_not_specialize=["num_pairs", "num_experts", "num_chunks", "max_blocks", "block_m"])
def sort_pairs_kernel(
    ids_ptr,
    counts_ptr,
    sorted_pairs_ptr,
    block_experts_ptr,
    block_rows_ptr,
    num_pairs,
    num_experts,
    num_chunks,
    max_blocks,
    block_m,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
    COUNT_ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """Store the pairs of one chunk and describe PART blocks. counts None: the only chunk counts its own pairs."""
    program = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    totals = tl.zeros((EXPERTS,), tl.int32)
    before = tl.zeros((EXPERTS,), tl.int32)  # pairs of each expert in the chunks before this one
    if counts_ptr is None:
        for first in range(0, CHUNK, PART):
            pair = first + tl.arange(0, PART)
            ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
            totals += tl.sum((ids[:, None] == experts[None, :]).to(tl.int32), 0)
    else:
        for first in range(0, num_chunks, COUNT_ROWS):
            chunk = first + tl.arange(0, COUNT_ROWS)
            mask = (chunk < num_chunks)[:, None] & (experts < num_experts)[None, :]
            counts = tl.load(counts_ptr + chunk[:, None] * num_experts + experts[None, :], mask=mask, other=0)
            totals += tl.sum(counts, 0)
            before += tl.sum(tl.where((chunk < program)[:, None], counts, 0), 0)
    num_blocks = (totals + block_m - 1) // block_m
    block_end = tl.cumsum(num_blocks, 0)
    block_start = block_end - num_blocks
    base = block_start * block_m + before

    inside = tl.arange(0, CHUNK)
    others_pair = program * CHUNK + inside
    others = tl.load(ids_ptr + others_pair, mask=others_pair < num_pairs, other=-1).to(tl.int32)
    for first in range(0, CHUNK, PART):
        own = first + tl.arange(0, PART)
        pair = program * CHUNK + own
        ids = tl.load(ids_ptr + pair, mask=pair < num_pairs, other=-1).to(tl.int32)
        same = (ids[:, None] == others[None, :]) & (inside[None, :] < own[:, None])
        rank = tl.sum(same.to(tl.int32), 1)
        start = tl.sum(tl.where(ids[:, None] == experts[None, :], base[None, :], 0), 1)
        tl.store(sorted_pairs_ptr + start + rank, pair, mask=(ids >= 0) & (ids < num_experts))

    block = program * PART + tl.arange(0, PART)
    expert = tl.sum((block_end[None, :] <= block[:, None]).to(tl.int32), 1)
    mine = expert[:, None] == experts[None, :]
    left = tl.sum(tl.where(mine, totals[None, :] - (block[:, None] - block_start[None, :]) * block_m, 0), 1)
    used = expert < num_experts
    tl.store(block_experts_ptr + block, tl.where(used, expert, 0), mask=block < max_blocks)
    tl.store(block_rows_ptr + block, tl.where(used, tl.minimum(left, block_m), 0), mask=block < max_blocks)


def expert_blocks(expert_ids: torch.Tensor, num_experts: int, block_m: int) -> ExpertBlocks:
    """Sort pairs by expert. expert_ids int32 or int64 [tokens, top_k], contiguous; num_experts <= 1024."""
    num_pairs = expert_ids.numel()
    if not expert_ids.is_contiguous() or num_pairs == 0 or num_experts > 1024:
        raise ValueError(
            f"expert_ids must be contiguous and not empty {expert_ids.shape}, experts ({num_experts}) <= 1024"
        )
    empty = expert_ids.new_empty
    max_blocks = max_expert_blocks(num_pairs, num_experts, block_m)
    blocks = ExpertBlocks(
        empty(max_blocks * block_m, dtype=torch.int32),
        empty(max_blocks, dtype=torch.int32),
        empty(max_blocks, dtype=torch.int32),
        block_m,
        num_pairs,
    )
    num_chunks = cdiv(num_pairs, CHUNK)
    experts = max(16, next_power_of_2(num_experts))
    counts = None
    if num_chunks > 1:
        counts = empty((num_chunks, num_experts), dtype=torch.int32)
        count_experts_kernel[(num_chunks,)](
            expert_ids,
            counts,
            num_pairs,
            num_experts,
            CHUNK=CHUNK,
            PART=PART,
            EXPERTS=experts,
            num_warps=8,
            num_stages=1,
        )
    sort_pairs_kernel[(max(num_chunks, cdiv(max_blocks, PART)),)](
        expert_ids,
        counts,
        blocks.sorted_pairs,
        blocks.block_experts,
        blocks.block_rows,
        num_pairs,
        num_experts,
        num_chunks,
        max_blocks,
        block_m,
        CHUNK=CHUNK,
        PART=PART,
        COUNT_ROWS=COUNT_ROWS,
        EXPERTS=experts,
        num_warps=8,
        num_stages=1,
    )
    return blocks


def expert_blocks_reference(expert_ids: torch.Tensor, num_experts: int, block_m: int) -> ExpertBlocks:
    """The specification of `expert_blocks`. Elements that no block uses are -1."""
    flat = expert_ids.flatten().tolist()
    pairs, experts, rows = [], [], []
    for expert in range(num_experts):
        own = [pair for pair, chosen in enumerate(flat) if chosen == expert]
        for first in range(0, len(own), block_m):
            part = own[first : first + block_m]
            pairs += part + [-1] * (block_m - len(part))
            experts.append(expert)
            rows.append(len(part))
    unused = max_expert_blocks(len(flat), num_experts, block_m) - len(experts)

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=expert_ids.device)

    return ExpertBlocks(
        tensor(pairs + [-1] * (unused * block_m)),
        tensor(experts + [0] * unused),
        tensor(rows + [0] * unused),
        block_m,
        len(flat),
    )


TYPICAL_EXPERTS = (8, 128)  # Mixtral, Qwen3-30B-A3B
OTHER_EXPERTS = (32, 64, 256, 512)


def specialisations(capability: int) -> Iterator[Specialisation]:
    """One per number of experts, rounded up to a power of two, and per width of the router's ids (torch.topk: 64)."""
    for number in TYPICAL_EXPERTS + OTHER_EXPERTS:
        experts = max(16, next_power_of_2(number))
        for kind in ("i32", "i64"):
            typical = number in TYPICAL_EXPERTS and kind == "i64"
            name = f"{kind}_experts{experts}"
            sizes = {"num_pairs": "i32", "num_experts": "i32"}
            constants = {"CHUNK": CHUNK, "PART": PART, "EXPERTS": experts}
            pointers = {"ids_ptr": f"*{kind}", "counts_ptr": "*i32"}
            signature, divisible = pointers | sizes, tuple(pointers)
            yield Specialisation(
                f"count_experts[{name}]", count_experts_kernel, signature, constants, 8, 1, divisible, typical
            )
            outputs = dict.fromkeys(("sorted_pairs_ptr", "block_experts_ptr", "block_rows_ptr"), "*i32")
            sizes |= {"num_chunks": "i32", "max_blocks": "i32", "block_m": "i32"}
            for one_chunk in (True, False):
                chosen = pointers | outputs
                values: dict[str, Any] = constants | {"COUNT_ROWS": COUNT_ROWS}
                if one_chunk:
                    del chosen["counts_ptr"]
                    values["counts_ptr"] = None
                label = f"sort_pairs[{name}{'_one_chunk' if one_chunk else ''}]"
                yield Specialisation(label, sort_pairs_kernel, chosen | sizes, values, 8, 1, tuple(chosen), typical)
