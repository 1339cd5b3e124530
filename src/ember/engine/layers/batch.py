"""The batch that flows through the layers: a flat run of tokens of many sequences, decodes and prefill chunks mixed.

Built by `engine.core.runner`, read by attention. Everything per token is a tensor on the device; what attention needs
to decide on the host (lengths) is also there as plain integers, so that no layer has to synchronise with the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Batch:
    """One engine step. `T` tokens of `S` sequences; the tokens of a sequence are consecutive."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, position of each token in its sequence
    slot_mapping: Tensor  # [T] int64, slot (block * block_size + offset) into which each token's K and V are written
    block_tables: Tensor  # [S, max_blocks] int64, KV pages of each sequence, padded with 0
    query_starts: list[int]  # [S + 1], first token of each sequence in the flat batch
    context_lens: list[int]  # [S], tokens of the sequence in the cache after this step (cached prefix + this chunk)
    logits_indices: Tensor  # [R] int64, tokens whose logits are wanted


@dataclass(slots=True)
class KVCache:
    """The paged cache of all layers; page `b` holds the slots `b * block_size ... (b + 1) * block_size - 1`."""

    keys: Tensor  # [layers, num_blocks, block_size, kv_heads, head_dim]
    values: Tensor  # [layers, num_blocks, block_size, kv_heads, head_dim]

    @property
    def num_blocks(self) -> int:
        return self.keys.shape[1]

    @property
    def block_size(self) -> int:
        return self.keys.shape[2]

    @classmethod
    def allocate(
        cls,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVCache:
        """On a CPU the memory is mapped by the kernel only as pages are first written."""
        shape = (num_layers, num_blocks, block_size, num_kv_heads, head_dim)
        return cls(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
