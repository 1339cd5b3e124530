"""The plan of attention over the paged cache in torch operators: one for each step and cache group, made on the host.

`torch_attention.attend` runs it in every layer. There are three kinds of segments:

- a whole prompt (nothing cached): K and V of the batch itself, causal;
- a chunk after a cached prefix, or longer than a sliding window: read from its pages, with an explicit mask;
- decodes (one query each): sequences of similar context are gathered into one padded problem. The query heads that
  share a KV head become rows of one small matrix, so K and V are read once for all of them.

Keys are gathered by slot, not by page: padding repeats a slot of the same sequence, so unused slots are never read. A
sequence whose pages are adjacent in memory is read in place.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ember.engine.description.operator_sets import TORCH_MAX_GATHER
from ember.engine.layers.batch import Batch
from ember.engine.layers.block import Attention
from ember.engine.layers.latent import LatentAttention

_IN_PLACE = 512  # context from which a decode with adjacent pages is faster alone than copied into a group
MAX_QUERIES = 512  # queries of one masked problem, which bounds the mask and excludes keys beyond its queries
_MAX_SCORED_QUERIES = 64  # the same where scores or masks of every head are in memory

Rows = slice | Tensor  # rows of the flat batch


@dataclass(slots=True)
class Segment:
    """Some sequences of the batch whose attention is one call."""

    rows: Rows  # tokens of the batch, sequence by sequence
    sequences: int
    queries: int  # per sequence
    keys: int  # per sequence, padding included
    slots: Rows | None  # slots of the keys, sequence by sequence; None: the batch's own K and V, causal
    # Added to the scores: [queries, keys], or [sequences, 1, 1, keys] for decodes. None: causal, if there are several
    # queries, whose last one sees all keys.
    mask: Tensor | None


@dataclass(slots=True)
class AttentionPlan:
    """One step's attention, for the layers of one cache group; read by `attend`."""

    segments: list[Segment]
    buffers: tuple[Tensor, Tensor] | None = None  # [slots, kv_heads, head_dim], gathered K and V, for all layers
    slopes: Tensor | None = None  # [heads] float32, of ALiBi


class GroupShape(NamedTuple):
    """What the layers of a cache group have in common."""

    window: int | None  # the sliding window; None: full attention
    kv_heads: int
    head_dim: int
    is_latent: bool = False  # K and V are one latent, and a chunk is one segment without a mask

    @classmethod
    def of(cls, attention: Attention | LatentAttention) -> GroupShape:
        if isinstance(attention, LatentAttention):
            return cls(None, 1, attention.sizes.size, is_latent=True)
        return cls(attention.window, attention.sizes.kv_heads, attention.sizes.head_dim)


def plan_attention(
    batch: Batch,
    groups: list[GroupShape],
    block_size: int,
    dtype: torch.dtype,
    without: Container[int] = (),
    slopes: Tensor | None = None,
    has_scores: bool = False,
    window_is_chunk: bool = False,
) -> list[AttentionPlan]:
    """The plan of each cache group. `without`: sequences that others attend to. `slopes`: of ALiBi, [heads] float32.
    `has_scores`: the attention has a soft cap or sinks, for which all scores are in memory. `window_is_chunk`: a window
    begins at a multiple of its length."""
    longest = max(batch.context_lens, default=0)
    plans: list[AttentionPlan] = []
    for group, (window, _, _, is_latent) in enumerate(groups):
        effective = None
        if window is not None and window < longest:
            effective = _Window(window, window_is_chunk)
        pages = _Pages.of(batch, group, block_size)
        in_small_parts = (has_scores or slopes is not None) and not is_latent
        segments = _segments(batch, pages, effective, dtype, without, in_small_parts, has_masks=not is_latent)
        plans.append(AttentionPlan(segments, slopes=slopes))
    gathered = [
        max((len(segment.slots) for segment in plan.segments if isinstance(segment.slots, Tensor)), default=0)
        for plan in plans
    ]
    shapes = [(count, each.kv_heads, each.head_dim) for count, each in zip(gathered, groups, strict=True)]
    most = max(map(math.prod, shapes), default=0)
    if most:
        memory = torch.empty(2, most, dtype=dtype, device=batch.slot_mapping.device)
        for plan, shape in zip(plans, shapes, strict=True):
            keys, values = memory[:, : math.prod(shape)].unflatten(1, shape).unbind()
            plan.buffers = keys, values
    return plans


@dataclass(frozen=True, slots=True)
class _Window:
    """A sliding window of `size` tokens, or chunks of that many from multiples of it on."""

    size: int
    is_chunk: bool

    def first(self, position: int) -> int:
        """The first position that a query sees."""
        return position // self.size * self.size if self.is_chunk else max(0, position - self.size + 1)


@dataclass(slots=True)
class _Pages:
    """Where one cache group keeps the tokens of the batch's sequences."""

    tables: Tensor  # [S, max_blocks]
    on_host: np.ndarray | None  # the same, where the host can read it without waiting
    block_size: int

    @classmethod
    def of(cls, batch: Batch, group: int, block_size: int) -> _Pages:
        tables = batch.block_tables[group]
        return cls(tables, tables.numpy() if tables.device.type == "cpu" else None, block_size)


def _segments(
    batch: Batch,
    pages: _Pages,
    window: _Window | None,
    dtype: torch.dtype,
    without: Container[int],
    in_small_parts: bool,
    has_masks: bool = True,
) -> list[Segment]:
    """`has_masks`: otherwise the queries of a chunk are one segment without a mask."""
    most = _MAX_SCORED_QUERIES if in_small_parts else MAX_QUERIES
    segments: list[Segment] = []
    decodes: list[int] = []
    for sequence, context in enumerate(batch.context_lens):
        if sequence in without:
            continue
        start, stop = batch.query_starts[sequence], batch.query_starts[sequence + 1]
        queries = stop - start
        if queries == 1:
            decodes.append(sequence)
        elif queries == context and (window is None or context <= window.size) and not in_small_parts:
            segments.append(Segment(slice(start, stop), 1, queries, queries, None, None))
        elif not has_masks:
            slots = _slots(batch, pages, [sequence], [0], context)
            segments.append(Segment(slice(start, stop), 1, queries, context, slots, None))
        else:
            for begin in range(0, queries, most):
                count = min(most, queries - begin)
                end = context - queries + begin + count  # what the stretch sees: positions [first, end)
                first = 0 if window is None else window.first(end - count)
                slots = _slots(batch, pages, [sequence], [first], end - first)
                mask = None  # one query sees all of its keys
                if count > 1:
                    mask = causal_mask(batch.slot_mapping.device, count, first, end, window, dtype)
                rows = slice(start + begin, start + begin + count)
                segments.append(Segment(rows, 1, count, end - first, slots, mask))
    return segments + _decode_segments(batch, pages, decodes, window, dtype)


def _decode_segments(
    batch: Batch, pages: _Pages, decodes: list[int], window: _Window | None, dtype: torch.dtype
) -> list[Segment]:
    """Segments of decodes: groups of sequences whose visible contexts differ by less than half, plus about a page."""
    contexts = {s: batch.context_lens[s] for s in decodes}
    visible = {s: n if window is None else n - window.first(n - 1) for s, n in contexts.items()}
    groups: list[list[int]] = []
    group: list[int] = []
    for sequence in sorted(decodes, key=lambda s: visible[s]):
        context, count = batch.context_lens[sequence], visible[sequence]
        if count >= _IN_PLACE and _adjacent(pages, sequence, context - count, context):
            groups.append([sequence])
            continue
        too_long = bool(group) and count > 1.5 * visible[group[0]] + 64
        if not group or too_long or count * (len(group) + 1) > TORCH_MAX_GATHER:
            group = []
            groups.append(group)
        group.append(sequence)
    return [_decode_segment(batch, pages, sorted(group), visible, dtype) for group in groups]


def _decode_segment(
    batch: Batch, pages: _Pages, group: list[int], visible: dict[int, int], dtype: torch.dtype
) -> Segment:
    """The last `visible` positions of each sequence of `group`, padded to the longest."""
    device = batch.slot_mapping.device
    counts = [visible[sequence] for sequence in group]
    first = [batch.context_lens[sequence] - visible[sequence] for sequence in group]
    rows = [batch.query_starts[sequence] for sequence in group]
    longest = max(counts)
    mask = None
    if min(counts) < longest:
        hidden = torch.arange(longest, device=device) >= torch.tensor(counts, device=device)[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)[:, None, None]
    adjacent = rows[-1] - rows[0] == len(rows) - 1
    return Segment(
        rows=slice(rows[0], rows[-1] + 1) if adjacent else torch.tensor(rows, device=device),
        sequences=len(group),
        queries=1,
        keys=longest,
        slots=_slots(batch, pages, group, first, longest),
        mask=mask,
    )


def _slots(batch: Batch, pages: _Pages, sequences: list[int], first: list[int], count: int) -> Rows:
    """Slots of `count` positions of each sequence from `first` on; past a sequence's end its last slot is repeated."""
    block_size = pages.block_size
    if pages.on_host is not None and len(sequences) == 1:
        start = first[0]
        if _adjacent(pages, sequences[0], start, start + count):
            slot = int(pages.on_host[sequences[0], start // block_size]) * block_size + start % block_size
            return slice(slot, slot + count)
    device = pages.tables.device
    bounds = torch.tensor([sequences, first, [batch.context_lens[s] - 1 for s in sequences]], device=device)
    positions = torch.minimum(bounds[1][:, None] + torch.arange(count, device=device), bounds[2][:, None])
    blocks = pages.tables[bounds[0]].gather(1, positions // block_size)  # [sequences, count]
    return (blocks * block_size + positions % block_size).flatten()


def _adjacent(pages: _Pages, sequence: int, start: int, stop: int) -> bool:
    """Whether positions [start, stop) are known to lie in pages that follow each other in memory."""
    if pages.on_host is None:
        return False
    first, last = start // pages.block_size, (stop - 1) // pages.block_size
    return bool((np.diff(pages.on_host[sequence, first : last + 1]) == 1).all())


def causal_mask(
    device: torch.device, queries: int, first: int, context: int, window: _Window | None, dtype: torch.dtype
) -> Tensor:
    """[queries, context - first]: the last `queries` positions of `context` see themselves and what came before."""
    query = torch.arange(context - queries, context, device=device)[:, None]
    key = torch.arange(first, context, device=device)
    hidden = key > query
    if window is not None:
        hidden |= key < (query // window.size * window.size if window.is_chunk else query - window.size + 1)
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
