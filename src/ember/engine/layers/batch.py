"""The batch that flows through the layers: a flat run of tokens of many sequences, decodes and prefill chunks mixed.

Built by `engine.core.runner`, read by attention. Everything per token is a tensor on the device; what attention needs
to decide on the host (lengths) is also there as plain integers, so that no layer has to synchronise with the device.
What differs between cache groups (`description.cache_groups`) has the group as its first index.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Batch:
    """One engine step. `T` tokens of `S` sequences; the tokens of a sequence are consecutive."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, position of each token in its sequence
    slot_mapping: Tensor  # [groups, T] int64, slot (block * block_size + offset) for each token's K and V
    block_tables: Tensor  # [groups, S, max_blocks] int64, KV pages of each sequence, padded with 0; -1: given back
    query_starts: list[int]  # [S + 1], first token of each sequence in the flat batch
    context_lens: list[int]  # [S], tokens of the sequence in the cache after this step (cached prefix + this chunk)
    logits_indices: Tensor  # [R] int64, tokens whose logits are wanted
