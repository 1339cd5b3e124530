"""The memory of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

FLOAT8_MAX = 448.0  # the largest number of float8_e4m3fn, to which larger ones are clamped


@dataclass(frozen=True, slots=True)
class CacheScales:
    """The scales of one layer's K and V in a float8 cache: an element stands for itself times the scale."""

    key: float
    value: float
    tensors: tuple[Tensor, Tensor]  # the same, [1] float32 on the cache's device

    @classmethod
    def of(cls, key: float, value: float, device: torch.device) -> CacheScales:
        return cls(key, value, (torch.tensor([key], device=device), torch.tensor([value], device=device)))


def to_float8(x: Tensor, scale: float) -> Tensor:
    """x / scale in float8_e4m3fn, clamped to its largest number."""
    return (x.float() / scale).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn)


def from_float8(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """x times scale, in `dtype`."""
    x = x.to(dtype)
    return x if scale == 1.0 else x.mul_(scale)


@dataclass(slots=True)
class KVCache:
    """The paged cache of all layers, in the model's dtype or in float8_e4m3fn (`Attention.cache_scales`).

    Page `b` has the slots `b * block_size ... (b + 1) * block_size - 1`.

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
