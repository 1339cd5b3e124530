"""The memory of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class KVCache:
    """The paged cache of all layers. Page `b` has the slots `b * block_size ... (b + 1) * block_size - 1`.

    A page belongs to one cache group at a time (`description.cache_groups`). Each layer of the group has a place in it,
    which is the first index of both tensors.
    """

    keys: Tensor  # [places, num_blocks, block_size, kv_heads, head_dim]
    values: Tensor  # [places, num_blocks, block_size, kv_heads, head_dim]
    by_page: list[tuple[Tensor, Tensor]] = field(init=False)  # of each place: [num_blocks, block_size, ...], views
    by_slot: list[tuple[Tensor, Tensor]] = field(init=False)  # of each place: [num_blocks * block_size, ...], views

    def __post_init__(self) -> None:
        """Make the views, which every layer of every step uses, once."""
        self.by_page = list(zip(self.keys.unbind(), self.values.unbind(), strict=True))
        self.by_slot = [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in self.by_page]

    @property
    def num_blocks(self) -> int:
        return self.keys.shape[1]

    @property
    def block_size(self) -> int:
        return self.keys.shape[2]

    @classmethod
    def allocate(
        cls,
        num_places: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVCache:
        """Allocate the cache. On a CPU the kernel maps its memory when pages are first written."""
        shape = (num_places, num_blocks, block_size, num_kv_heads, head_dim)
        return cls(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
