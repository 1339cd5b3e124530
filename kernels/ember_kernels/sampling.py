"""Sample tokens from logits on the device: every row with its own parameters, without sorting or synchronisation.

Order of operations: logit bias, masks (allowed ids, grammar, bad words, minimum length: one bitmask), penalties,
temperature, min-p, top-k, top-p. Greedy rows (temperature 0) take the lowest id of the largest logits.

Filters. Tokens have one order: the larger scaled logit first, of equal ones the lower id. min-p keeps the tokens with
x >= max(x) + log(min_p). Of these, top-k keeps the first k. Of these, top-p keeps the shortest prefix whose probability
mass reaches top_p of theirs, at least one token. Sampling is Gumbel-max (Gumbel, 1954): the largest of x + noise.

Noise is a function of (seed, position, token id) alone: SplitMix64 of seed and position (Steele, Lea, Flood: "Fast
splittable pseudorandom number generators", 2014) keys two rounds of a 32-bit mixer of the id. The same seed and
position sample the same token in any batch, with any order and padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ember_kernels.launch import cdiv, next_power_of_2
from ember_kernels.sampling_kernels import (
    BINS,
    MASSES,
    MAX_SPLITS,
    NOT_SPECIALISED,
    collect_kernel,
    histogram_kernel,
    prepare_kernel,
    select_kernel,
)
from ember_kernels.sampling_keys import MAX_VOCABULARY
from ember_kernels.specialisation import Specialisation

# The same on all architectures: 16 bytes per thread where rows are streamed; `select` compares 16 pivots at once.
BLOCK, WARPS = 1024, 4
SELECT_BLOCK, SELECT_WARPS = 512, 8
BIAS_WIDTH = 512  # entries of a bias in the tables of the engine
TARGET_PROGRAMS = 1024  # rows * splits: what the multiprocessors of a large GPU hold at a time


@dataclass(frozen=True)
class Constraints:
    """Tables that change or mask logits; any group may be None. A `slot` is the row of these tables of a sequence.

    mask: int32 [any, ceil(vocab / 32)], bit i % 32 of word i // 32 allows token i; mask_rows: int32 [rows], the mask of
        each row of the batch, -1: none.
    bias_ids, bias_values: int32 and float32 [slots, any], in the order of the ids; bias_counts: int32 [slots], how
        many entries a slot uses.
    prompt_mask: int32 [slots, ceil(vocab / 32)], the tokens of the prompt; output_counts: int16 [slots, vocab], how
        often each was sampled. `sample` counts the tokens that it samples, for rows that have a slot.
    """

    mask: Tensor | None = None
    mask_rows: Tensor | None = None
    bias_ids: Tensor | None = None
    bias_values: Tensor | None = None
    bias_counts: Tensor | None = None
    prompt_mask: Tensor | None = None
    output_counts: Tensor | None = None


@dataclass(frozen=True)
class Workspace:
    """Intermediate results of the kernels and their outputs, for up to `rows` rows; allocated once for all steps."""

    token_ids: Tensor  # [rows] int64
    is_broken: Tensor  # [rows] bool
    threshold: Tensor  # [rows] int64: the key of the last token kept by top-k and top-p, see `sampling_keys.pack`
    scaled: Tensor  # [rows, vocab, padded to 16] float32, written for rows with filters
    candidates: Tensor  # the same shape, int32
    best: Tensor  # [rows, MAX_SPLITS] int64
    sure: Tensor  # [rows, MAX_SPLITS] int64: the best noisy key of the tokens that are kept whatever the threshold is
    is_nan: Tensor  # [rows, MAX_SPLITS] int32
    histogram: Tensor  # [rows, BINS] int32
    mass: Tensor  # [rows, MASSES] int64
    num_candidates: Tensor  # [rows] int32
    unused: dict[torch.dtype, Tensor]  # stand-ins for tables that are not given
    no_rows: Tensor  # [rows] int32, all -1

    @classmethod
    def create(cls, rows: int, vocab: int, device: torch.device | str, has_filters: bool = True) -> Workspace:
        """Allocate 8 bytes per row and token; without `has_filters` (no row has top-k, top-p or min-p) far less."""
        if vocab > MAX_VOCABULARY:
            raise ValueError(f"the sampling kernels take at most {MAX_VOCABULARY} tokens; the vocabulary has {vocab}")
        width = cdiv(vocab, 16) * 16
        wide = (rows, width) if has_filters else (0, width)
        return cls(
            token_ids=torch.zeros(rows, dtype=torch.int64, device=device),
            is_broken=torch.zeros(rows, dtype=torch.bool, device=device),
            threshold=torch.zeros(rows, dtype=torch.int64, device=device),
            scaled=torch.empty(wide, dtype=torch.float32, device=device),
            candidates=torch.empty(wide, dtype=torch.int32, device=device),
            best=torch.empty(rows, MAX_SPLITS, dtype=torch.int64, device=device),
            sure=torch.empty(rows, MAX_SPLITS, dtype=torch.int64, device=device),
            is_nan=torch.empty(rows, MAX_SPLITS, dtype=torch.int32, device=device),
            histogram=torch.empty(rows, BINS, dtype=torch.int32, device=device),
            mass=torch.empty(rows, MASSES, dtype=torch.int64, device=device),
            num_candidates=torch.empty(rows, dtype=torch.int32, device=device),
            unused={
                dtype: torch.zeros(16, dtype=dtype, device=device)
                for dtype in (torch.int16, torch.int32, torch.float32)
            },
            no_rows=torch.full((rows,), -1, dtype=torch.int32, device=device),
        )


def sample(
    logits: Tensor,
    sampling: Tensor,
    positions: Tensor,
    *,
    slots: Tensor | None = None,
    constraints: Constraints | None = None,
    has_filters: bool = True,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample a token for each row. Returns (token ids int64 [rows], is_broken bool [rows]), views of the workspace.

    logits: [rows, vocab] float32, bfloat16 or float16; rows may be strided. Not changed.
    sampling: int32 [len(SAMPLING_FIELDS), at least rows], see `step_update`, as `step.prepare_step` writes it.
    positions: [rows] int32 or int64, the counter of the noise. slots: int32 [rows], -1: the row uses no table.
    has_filters: whether any row may have top-k, top-p or min-p; False saves two launches and ignores these three.
    is_broken: the row's logits hold NaN, or no token is allowed (the token is then 0).
    """
    rows, vocab = logits.shape
    if workspace is None:
        workspace = Workspace.create(rows, vocab, logits.device, has_filters)
    limits = constraints or Constraints()
    _check(logits, sampling, workspace, limits, has_filters)
    if not rows:
        return workspace.token_ids[:0], workspace.is_broken[:0]
    slots = workspace.no_rows if slots is None else slots
    zero = workspace.unused
    num_blocks = cdiv(vocab, BLOCK)
    num_splits = min(MAX_SPLITS, num_blocks, max(1, cdiv(TARGET_PROGRAMS, rows)))
    blocks_per_split = cdiv(num_blocks, num_splits)
    num_splits = cdiv(num_blocks, blocks_per_split)
    grid = (rows, num_splits)
    stride = workspace.scaled.stride(0)
    counts = zero[torch.int16] if limits.output_counts is None else limits.output_counts
    has_tables = limits.output_counts is not None
    stream = {"BLOCK": BLOCK, "num_warps": WARPS, "num_stages": 1}
    prepare_kernel[grid](
        logits,
        sampling,
        positions,
        slots,
        workspace.no_rows if limits.mask_rows is None else limits.mask_rows,
        zero[torch.int32] if limits.mask is None else limits.mask,
        zero[torch.int32] if limits.bias_counts is None else limits.bias_counts,
        zero[torch.int32] if limits.bias_ids is None else limits.bias_ids,
        zero[torch.float32] if limits.bias_values is None else limits.bias_values,
        zero[torch.int32] if limits.prompt_mask is None else limits.prompt_mask,
        counts,
        workspace.scaled,
        workspace.best,
        workspace.is_nan,
        workspace.histogram,
        workspace.mass,
        workspace.num_candidates,
        logits.stride(0) if rows > 1 else vocab,
        stride,
        sampling.stride(0),
        vocab,
        cdiv(vocab, 32),
        0 if limits.bias_ids is None else limits.bias_ids.shape[1],
        blocks_per_split,
        HAS_BIAS=limits.bias_ids is not None,
        HAS_TABLES=has_tables,
        HAS_FILTERS=has_filters,
        BIAS_BLOCK=1 if limits.bias_ids is None else next_power_of_2(limits.bias_ids.shape[1]),
        **stream,
    )
    if has_filters:
        sizes = (stride, sampling.stride(0), vocab, blocks_per_split, num_splits)
        histogram_kernel[grid](
            sampling, workspace.scaled, workspace.best, workspace.histogram, workspace.mass, *sizes, **stream
        )
        collect_kernel[grid](
            sampling,
            positions,
            workspace.scaled,
            workspace.best,
            workspace.sure,
            workspace.histogram,
            workspace.mass,
            workspace.num_candidates,
            workspace.candidates,
            *sizes,
            **stream,
        )
    select_kernel[(rows,)](
        sampling,
        positions,
        slots,
        workspace.scaled,
        workspace.best,
        workspace.sure,
        workspace.is_nan,
        workspace.histogram,
        workspace.mass,
        workspace.num_candidates,
        workspace.candidates,
        counts,
        workspace.token_ids,
        workspace.is_broken.view(torch.int8),
        workspace.threshold,
        stride,
        sampling.stride(0),
        vocab,
        num_splits,
        HAS_TABLES=has_tables,
        BLOCK=SELECT_BLOCK,
        num_warps=SELECT_WARPS,
        num_stages=1,
    )
    return workspace.token_ids[:rows], workspace.is_broken[:rows]


def _check(logits: Tensor, sampling: Tensor, workspace: Workspace, limits: Constraints, has_filters: bool) -> None:
    rows, vocab = logits.shape
    if logits.stride(1) != 1 or sampling.stride(1) != 1 or sampling.shape[1] < rows:
        raise ValueError(f"strides of logits {logits.stride()}, sampling {sampling.stride()}, {tuple(sampling.shape)}")
    if workspace.token_ids.shape[0] < rows or (has_filters and workspace.scaled.shape[0] < rows):
        raise ValueError(f"the workspace has {workspace.scaled.shape[0]} rows with filters, the batch {rows}")
    if workspace.scaled.shape[1] < vocab:
        raise ValueError(f"the workspace is for {workspace.scaled.shape[1]} tokens, the logits have {vocab}")
    if (limits.prompt_mask is None) != (limits.output_counts is None):
        raise ValueError("prompt_mask and output_counts must be given together")
    words = cdiv(vocab, 32)
    for mask in (limits.mask, limits.prompt_mask):
        if mask is not None and (mask.shape[1] != words or not mask.is_contiguous()):
            raise ValueError(f"a mask of {vocab} tokens is [any, {words}] and contiguous, not {tuple(mask.shape)}")
    counts = limits.output_counts
    if counts is not None and (counts.shape[1] != vocab or counts.dtype != torch.int16 or not counts.is_contiguous()):
        raise ValueError(f"output_counts must be int16 [slots, {vocab}] and contiguous, not {tuple(counts.shape)}")


def pack_bitmask(allowed: Tensor) -> Tensor:
    """bool [..., vocab] -> int32 [..., ceil(vocab / 32)]: bit i % 32 of word i // 32 is token i."""
    padded = torch.nn.functional.pad(allowed.to(torch.int64), (0, -allowed.shape[-1] % 32))
    bits = padded.unflatten(-1, (-1, 32)) << torch.arange(32, device=allowed.device)
    words = bits.sum(dim=-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_bitmask(mask: Tensor, vocab: int) -> Tensor:
    """The inverse of `pack_bitmask`."""
    bits = (mask.unsqueeze(-1) >> torch.arange(32, device=mask.device)) & 1
    return bits.flatten(-2)[..., :vocab].bool()


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Each kernel for rows that are and are not multiples of 16 tokens; `prepare` for each dtype and set of tables."""
    sizes = dict.fromkeys(("scaled_stride", "sampling_stride", "vocab", "blocks_per_split", "num_splits"), "i32")
    common = {"sampling_ptr": "*i32", "scaled_ptr": "*fp32", "best_ptr": "*i64", "mass_ptr": "*i64"}
    rows = {
        "positions_ptr": "*i32",
        "slots_ptr": "*i32",
        "nan_ptr": "*i32",
        "counter_ptr": "*i32",
        "counts_ptr": "*i16",
    }
    streamed = common | sizes | {"histogram_ptr": "*i32"}
    collect = streamed | {"positions_ptr": "*i32", "sure_ptr": "*i64", "counter_ptr": "*i32", "candidates_ptr": "*i32"}
    select = common | rows | {name: kind for name, kind in sizes.items() if name != "blocks_per_split"}
    select |= {"sure_ptr": "*i64", "histogram_ptr": "*i32"}
    select |= {"candidates_ptr": "*i32", "token_ptr": "*i64", "broken_ptr": "*i8", "threshold_ptr": "*i64"}
    prepare = common | rows | {name: kind for name, kind in sizes.items() if name != "num_splits"}
    prepare |= {f"{name}_ptr": "*i32" for name in ("mask_rows", "mask", "bias_counts", "bias_ids", "prompt_mask")}
    prepare |= {"histogram_ptr": "*i32", "bias_values_ptr": "*fp32"}
    prepare |= {"logits_stride": "i32", "mask_words": "i32", "bias_width": "i32"}
    for is_aligned in (True, False):
        yield _specialisation("histogram", histogram_kernel, streamed, {}, is_aligned)
        yield _specialisation("collect", collect_kernel, collect, {}, is_aligned)
        for has_tables in (False, True):
            constants: dict[str, Any] = {"HAS_TABLES": has_tables}
            yield _specialisation("select", select_kernel, select, constants, is_aligned)
            for dtype, has_bias, has_filters in product(("bf16", "fp16", "fp32"), (False, True), (False, True)):
                constants = {"HAS_TABLES": has_tables, "HAS_BIAS": has_bias, "HAS_FILTERS": has_filters}
                constants["BIAS_BLOCK"] = BIAS_WIDTH if has_bias else 1
                signature = prepare | {"logits_ptr": f"*{dtype}"}
                yield _specialisation(f"prepare {dtype}", prepare_kernel, signature, constants, is_aligned)


def _specialisation(
    name: str, kernel: Any, signature: dict[str, str], constants: dict[str, Any], is_aligned: bool
) -> Specialisation:
    label = " ".join(
        [name, *(key.lower() for key, value in constants.items() if value is True), *([] if is_aligned else ["odd"])]
    )
    skipped = set(NOT_SPECIALISED) | (set() if is_aligned else {"vocab", "logits_stride"})
    return Specialisation(
        f"sampling[{label}]",
        kernel,
        signature,
        constants | {"BLOCK": SELECT_BLOCK if kernel is select_kernel else BLOCK},
        SELECT_WARPS if kernel is select_kernel else WARPS,
        1,
        tuple(name for name in signature if name not in skipped),
        typical=is_aligned and "fp" not in name and all(constants.values()),  # the engine always gives all tables
    )
