"""The batch of a step: the flat tokens of many sequences, decodes and prefill chunks mixed.

`engine.core.runner` builds it, attention reads it. Values per token are tensors on the device. Lengths are also plain
integers, so that attention is planned on the host without synchronising the device. Tensors that differ between cache
groups (`description.cache_groups`) have the group as their first index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class StateRun(NamedTuple):
    """Consecutive tokens of a sequence in a model whose layers have states, which start from the state in one slot and
    leave theirs in another, or in the same."""

    first: int  # token of the flat batch
    num_tokens: int
    read: int  # slot; -1: they are the sequence's first tokens
    write: int
    round: int  # a run comes after the run of an earlier round whose state it reads


@dataclass(slots=True)
class Batch:
    """One engine step with `T` tokens of `S` sequences. The tokens of a sequence are consecutive."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, position of each token in its sequence
    slot_mapping: Tensor  # [groups, T] int64, slot (block * block_size + offset) for each token's K and V
    block_tables: Tensor  # [groups, S, max_blocks] int64, KV pages of each sequence, padded with 0; -1: given back
    query_starts: list[int]  # [S + 1], first token of each sequence in the flat batch
    context_lens: list[int]  # [S], tokens of the sequence in the cache after this step (cached prefix + this chunk)
    logits_indices: Tensor  # [R] int64, tokens whose logits are needed
    state_runs: list[StateRun] = field(default_factory=list)  # all tokens of the batch, if layers have states
    token_types: Tensor | None = None  # [T] int64, the segment of each token of a pair of texts; None: all 0
