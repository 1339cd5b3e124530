# mypy: disable-error-code="no-untyped-def"
"""Prepare a pure-decode step from a state on the device: the first kernel of a step's CUDA graph.

The state. Every running sequence owns a row of these tensors, from admission to its end:
    last_tokens   int32 [rows]               the token it will be fed next, written by the sampler of the step before
    positions     int32 [rows]               the position of that token, which is how many tokens its cache holds
    block_tables  int32 [groups, rows, max_blocks]   its cache blocks in each cache group; those that were given back,
                                             before a sliding window, hold anything
    sampling      int32 [rows, words]        its sampling parameters, float32 ones as their bits (0 words is allowed)

Each step copies one packed int32 buffer to the device (`step_update`): the rows of the step, new values of rows, new
entries of block tables. The host copies it from pinned memory to a buffer of fixed address and replays the graph.

`prepare_step` applies records, then block entries, then for batch index i with row r = rows[i]:
    token_ids[i] = last_tokens[r]   positions_out[i] = positions[r]   seq_lens[i] = positions[r] + 1
    slot_mapping[g, i] = block_tables[g, r, positions[r] // block_size] * block_size + positions[r] % block_size
    sampling_out[:, i] = sampling[r, :]   then positions[r] += 1
and for padding (-1), token 0, position 0, length 0, slot -1, sampling 0. A position past the row's table has slot -1.

One step ahead. The host launches step n + 1 before it has read the tokens of step n. It does not need them: each
sequence advances by one token per step, so the host allocates the block of the next position in time and sends its
entry with the step that needs it. The token itself is in last_tokens, where `store_tokens` wrote it after the forward
pass of step n. The same holds for a sequence whose prompt was just computed: its record has token -1. A sequence that
turns out to have ended at step n runs one step too many. The host drops that token, and may free the sequence's blocks
at once, since the stream orders the next writes to them after that step. A row must not appear twice in one step.

In a mixed step, which is not a graph, the outputs may be the first part of the flat batch's tensors: decodes first.

A record or entry must come with the step at the latest; when many rows change at once (long prompts), the host may
split them into buffers without rows (all -1) and call `prepare_step` on those outside the graph.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from ember_kernels.launch import cdiv, direct
from ember_kernels.specialisation import Specialisation
from ember_kernels.step_update import ENTRY, HEADER, RECORD_HEADER, SAMPLING_FIELDS

BATCH_BLOCK = 512
RECORD_BLOCK = 64
ENTRY_BLOCK = 512
TABLE_BLOCK = 1024


@direct
@triton.jit(
    do_not_specialize=[
        "batch",
        "capacity",
        "block_size",
        "groups",
        "num_rows",
        "max_blocks",
        "slot_stride",
        "out_stride",
    ]
)
def prepare_step_kernel(
    update_ptr,
    last_tokens_ptr,
    positions_ptr,
    block_tables_ptr,
    sampling_ptr,
    token_ids_ptr,
    positions_out_ptr,
    slot_mapping_ptr,
    seq_lens_ptr,
    sampling_out_ptr,
    batch,
    capacity,
    block_size,
    groups,
    num_rows,
    max_blocks,
    slot_stride,
    out_stride,
    WORDS: tl.constexpr,
    WORDS_BLOCK: tl.constexpr,
    HEADER: tl.constexpr,
    BATCH_BLOCK: tl.constexpr,
    RECORD_BLOCK: tl.constexpr,
    ENTRY_BLOCK: tl.constexpr,
):
    """One program does everything: it reads what it has written before, and a barrier orders only one program."""
    num_records = tl.load(update_ptr)
    num_entries = tl.load(update_ptr + 1)
    rows_ptr = update_ptr + HEADER
    records_ptr = rows_ptr + capacity
    entries_ptr = records_ptr + num_records * (3 + WORDS)
    words = tl.arange(0, WORDS_BLOCK)

    for first in range(0, num_records, RECORD_BLOCK):
        record = first + tl.arange(0, RECORD_BLOCK)
        valid = record < num_records
        source = records_ptr + record * (3 + WORDS)
        row = tl.load(source, mask=valid, other=0).to(tl.int64)
        token = tl.load(source + 1, mask=valid, other=-1)
        position = tl.load(source + 2, mask=valid, other=0)
        tl.store(last_tokens_ptr + row, token, mask=valid & (token >= 0))
        tl.store(positions_ptr + row, position, mask=valid)
        if WORDS > 0:
            mask = valid[:, None] & (words < WORDS)[None, :]
            values = tl.load(source[:, None] + 3 + words[None, :], mask=mask, other=0)
            tl.store(sampling_ptr + row[:, None] * WORDS + words[None, :], values, mask=mask)
    for first in range(0, num_entries, ENTRY_BLOCK):
        entry = first + tl.arange(0, ENTRY_BLOCK)
        valid = entry < num_entries
        source = entries_ptr + entry * 3
        row = tl.load(source, mask=valid, other=0).to(tl.int64)
        index = tl.load(source + 1, mask=valid, other=0)
        block = tl.load(source + 2, mask=valid, other=0)
        tl.store(block_tables_ptr + row * max_blocks + index, block, mask=valid)
    tl.debug_barrier()

    for first in range(0, batch, BATCH_BLOCK):
        at = first + tl.arange(0, BATCH_BLOCK)
        inside = at < batch
        row = tl.load(rows_ptr + at, mask=inside, other=-1).to(tl.int64)
        active = row >= 0
        # All loads come before the stores: a warp issues in order, and a store waits for the value that it stores.
        token = tl.load(last_tokens_ptr + row, mask=active, other=0)
        position = tl.load(positions_ptr + row, mask=active, other=0)
        if WORDS > 0:
            wanted = (words < WORDS)[None, :]
            mask = active[:, None] & wanted
            values = tl.load(sampling_ptr + row[:, None] * WORDS + words[None, :], mask=mask, other=0)
        index = position // block_size
        mapped = active & (index < max_blocks)
        for group in range(groups):
            table = (row + group * num_rows) * max_blocks
            block = tl.load(block_tables_ptr + table + index, mask=mapped, other=0).to(tl.int64)
            slot = tl.where(mapped, block * block_size + position % block_size, -1)
            tl.store(slot_mapping_ptr + group * slot_stride + at, slot, mask=inside)
        tl.store(token_ids_ptr + at, token, mask=inside)
        tl.store(positions_out_ptr + at, position, mask=inside)
        tl.store(seq_lens_ptr + at, tl.where(active, position + 1, 0), mask=inside)
        if WORDS > 0:
            mask = inside[:, None] & wanted
            tl.store(sampling_out_ptr + words[None, :] * out_stride + at[:, None], values, mask=mask)
        # The compiler may let several threads load the same position; none may load it after it was incremented.
        tl.debug_barrier()
        tl.store(positions_ptr + row, position + 1, mask=active)


def prepare_step(
    update: torch.Tensor,
    last_tokens: torch.Tensor,
    positions: torch.Tensor,
    block_tables: torch.Tensor,
    sampling: torch.Tensor,
    token_ids: torch.Tensor,
    positions_out: torch.Tensor,
    slot_mapping: torch.Tensor,
    seq_lens: torch.Tensor,
    sampling_out: torch.Tensor,
    capacity: int,
    block_size: int,
) -> None:
    """Apply a packed update to the state, write the inputs of a decode step, and increment its rows' positions.

    update int32 [any], packed for `capacity` rows; the state as in this module's docstring; outputs, written in full:
    token_ids, positions_out int64 [batch], slot_mapping int64 [groups, batch], seq_lens int32 [batch] (for attention,
    and for the sampler as the position of the token that it draws), sampling_out int32 [words, >= batch] (row w is
    sampling word w of the batch, to be viewed as float32 where it is one). batch <= capacity: the graph's batch size,
    the rows beyond the step's own being padding.
    """
    words = sampling.shape[1]
    outputs = (token_ids, positions_out, slot_mapping, sampling_out)
    _check(update, last_tokens, positions, block_tables, sampling, *outputs, capacity)
    prepare_step_kernel[(1,)](
        update,
        last_tokens,
        positions,
        block_tables,
        sampling,
        token_ids,
        positions_out,
        slot_mapping,
        seq_lens,
        sampling_out,
        token_ids.shape[0],
        capacity,
        block_size,
        *block_tables.shape,
        slot_mapping.stride(0),
        sampling_out.stride(0),
        WORDS=words,
        WORDS_BLOCK=_words_block(words),
        HEADER=HEADER,
        BATCH_BLOCK=BATCH_BLOCK,
        RECORD_BLOCK=RECORD_BLOCK,
        ENTRY_BLOCK=ENTRY_BLOCK,
        num_warps=16,
        num_stages=1,
    )


def prepare_step_reference(
    update: torch.Tensor,
    last_tokens: torch.Tensor,
    positions: torch.Tensor,
    block_tables: torch.Tensor,
    sampling: torch.Tensor,
    token_ids: torch.Tensor,
    positions_out: torch.Tensor,
    slot_mapping: torch.Tensor,
    seq_lens: torch.Tensor,
    sampling_out: torch.Tensor,
    capacity: int,
    block_size: int,
) -> None:
    """The specification of `prepare_step`, in plain Python over the packed words."""
    words, batch = sampling.shape[1], token_ids.shape[0]
    packed = update.tolist()
    at = HEADER + capacity
    for _ in range(packed[0]):
        row, token, position, *values = packed[at : at + RECORD_HEADER + words]
        if token >= 0:
            last_tokens[row] = token
        positions[row] = position
        sampling[row] = torch.tensor(values, dtype=torch.int32)
        at += RECORD_HEADER + words
    for _ in range(packed[1]):
        row, index, block = packed[at : at + ENTRY]
        block_tables.view(-1, block_tables.shape[2])[row, index] = block
        at += ENTRY
    for i, row in enumerate(packed[HEADER : HEADER + batch]):
        if row < 0:
            token_ids[i] = positions_out[i] = seq_lens[i] = 0
            slot_mapping[:, i] = -1
            sampling_out[:, i] = 0
            continue
        position = int(positions[row])
        index = position // block_size
        token_ids[i] = last_tokens[row]
        positions_out[i] = position
        seq_lens[i] = position + 1
        inside = index < block_tables.shape[2]
        slot_mapping[:, i] = block_tables[:, row, index] * block_size + position % block_size if inside else -1
        sampling_out[:, i] = sampling[row]
        positions[row] = position + 1


@direct
@triton.jit(do_not_specialize=["batch"])
def store_tokens_kernel(sampled_ptr, rows_ptr, last_tokens_ptr, batch, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + at, mask=at < batch, other=-1).to(tl.int64)
    token = tl.load(sampled_ptr + at, mask=row >= 0, other=0)
    tl.store(last_tokens_ptr + row, token.to(tl.int32), mask=row >= 0)


def store_tokens(sampled: torch.Tensor, rows: torch.Tensor, last_tokens: torch.Tensor) -> None:
    """last_tokens[rows[i]] = sampled[i] where rows[i] >= 0: the last kernel of a step, for the step after it.

    sampled int32 or int64 [batch], rows int32 [>= batch] (`step_rows(update, batch)`), last_tokens int32 [rows].
    """
    batch = sampled.shape[0]
    store_tokens_kernel[(cdiv(batch, BATCH_BLOCK),)](
        sampled, rows, last_tokens, batch, BLOCK=BATCH_BLOCK, num_warps=4, num_stages=1
    )


def store_tokens_reference(sampled: torch.Tensor, rows: torch.Tensor, last_tokens: torch.Tensor) -> None:
    """The specification of `store_tokens`."""
    for token, row in zip(sampled.tolist(), rows.tolist(), strict=False):
        if row >= 0:
            last_tokens[row] = token


@direct
@triton.jit(do_not_specialize=["num_rows", "max_blocks", "block_size", "group_stride", "out_stride"])
def gather_block_tables_kernel(
    rows_ptr,
    seq_lens_ptr,
    block_tables_ptr,
    out_ptr,
    num_rows,
    max_blocks,
    block_size,
    group_stride,
    out_stride,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0)
    group = tl.program_id(2).to(tl.int64)
    row = tl.load(rows_ptr + i).to(tl.int64) + group * num_rows
    used = tl.minimum(tl.cdiv(tl.load(seq_lens_ptr + i), block_size), max_blocks)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    blocks = tl.load(block_tables_ptr + row * max_blocks + at, mask=at < used, other=0)
    tl.store(out_ptr + group * group_stride + i.to(tl.int64) * out_stride + at, blocks, mask=at < used)


def gather_block_tables(
    rows: torch.Tensor, seq_lens: torch.Tensor, block_tables: torch.Tensor, out: torch.Tensor, block_size: int
) -> None:
    """out[g, i, :used] = block_tables[g, rows[i], :used], used = ceil(seq_lens[i] / block_size); the rest is left as it
    was.

    For attention kernels that need tables in batch order. rows, seq_lens int32 [batch], block_tables int32 [groups,
    rows, max_blocks], out int32 [groups, batch, >= max_blocks].
    """
    groups, num_rows, max_blocks = block_tables.shape
    gather_block_tables_kernel[(seq_lens.shape[0], cdiv(max_blocks, TABLE_BLOCK), groups)](
        rows,
        seq_lens,
        block_tables,
        out,
        num_rows,
        max_blocks,
        block_size,
        out.stride(0),
        out.stride(1),
        BLOCK=TABLE_BLOCK,
        num_warps=4,
        num_stages=1,
    )


def gather_block_tables_reference(
    rows: torch.Tensor, seq_lens: torch.Tensor, block_tables: torch.Tensor, out: torch.Tensor, block_size: int
) -> None:
    """The specification of `gather_block_tables`."""
    for i, (row, length) in enumerate(zip(rows.tolist(), seq_lens.tolist(), strict=False)):
        used = min(-(-length // block_size), block_tables.shape[2])
        out[:, i, :used] = block_tables[:, row, :used]


def step_rows(update: torch.Tensor, batch: int) -> torch.Tensor:
    """The rows of the step, a view of the packed buffer. int32 [batch]"""
    return update[HEADER : HEADER + batch]


def _words_block(words: int) -> int:
    return max(1, 1 << (words - 1).bit_length()) if words else 1


def _check(
    update: torch.Tensor,
    last_tokens: torch.Tensor,
    positions: torch.Tensor,
    block_tables: torch.Tensor,
    sampling: torch.Tensor,
    token_ids: torch.Tensor,
    positions_out: torch.Tensor,
    slot_mapping: torch.Tensor,
    sampling_out: torch.Tensor,
    capacity: int,
) -> None:
    for name, tensor in (("update", update), ("last_tokens", last_tokens), ("positions", positions)):
        if tensor.dtype != torch.int32:
            raise ValueError(f"{name} must be int32 and is {tensor.dtype}")
    for name, tensor in (("block_tables", block_tables), ("sampling", sampling)):
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous int32")
    for name, tensor in (("token_ids", token_ids), ("positions_out", positions_out), ("slot_mapping", slot_mapping)):
        if tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64 and is {tensor.dtype}")
    wanted = (block_tables.shape[0], token_ids.shape[0])
    if wanted[1] > capacity or slot_mapping.shape != wanted or slot_mapping.stride(1) != 1:
        slots = list(slot_mapping.shape)
        raise ValueError(f"a batch of {wanted[1]} in {wanted[0]} groups (slots: {slots}) in a buffer for {capacity}")
    if sampling_out.shape[0] != sampling.shape[1] or (len(sampling_out) and sampling_out.stride(1) != 1):
        raise ValueError("sampling_out must be [words, batch] with its last dimension contiguous")


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Kernels with `SAMPLING_FIELDS` and without sampling parameters, for sampled tokens of 32 and 64 bits."""
    for words in (0, len(SAMPLING_FIELDS)):
        state = ("update_ptr", "last_tokens_ptr", "positions_ptr", "block_tables_ptr", "sampling_ptr")
        pointers = dict.fromkeys((*state, "seq_lens_ptr", "sampling_out_ptr"), "*i32")
        pointers |= dict.fromkeys(("token_ids_ptr", "positions_out_ptr", "slot_mapping_ptr"), "*i64")
        sizes = dict.fromkeys(("batch", "capacity", "block_size", "groups", "num_rows", "max_blocks"), "i32")
        sizes |= dict.fromkeys(("slot_stride", "out_stride"), "i32")
        blocks = {"BATCH_BLOCK": BATCH_BLOCK, "RECORD_BLOCK": RECORD_BLOCK, "ENTRY_BLOCK": ENTRY_BLOCK}
        constants = {"WORDS": words, "WORDS_BLOCK": _words_block(words), "HEADER": HEADER, **blocks}
        name = f"prepare_step[words{words}]"
        yield Specialisation(name, prepare_step_kernel, pointers | sizes, constants, 16, 1, tuple(pointers))
    for kind in ("i32", "i64"):
        pointers = {"sampled_ptr": f"*{kind}", "rows_ptr": "*i32", "last_tokens_ptr": "*i32"}
        signature = pointers | {"batch": "i32"}
        name = f"store_tokens[{kind}]"
        yield Specialisation(name, store_tokens_kernel, signature, {"BLOCK": BATCH_BLOCK}, 4, 1, tuple(pointers))
    pointers = dict.fromkeys(("rows_ptr", "seq_lens_ptr", "block_tables_ptr", "out_ptr"), "*i32")
    signature = pointers | dict.fromkeys(("num_rows", "max_blocks", "block_size"), "i32")
    signature |= dict.fromkeys(("group_stride", "out_stride"), "i32")
    constants = {"BLOCK": TABLE_BLOCK}
    yield Specialisation("gather_block_tables", gather_block_tables_kernel, signature, constants, 4, 1, tuple(pointers))
