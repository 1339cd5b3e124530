"""The memory of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ember.engine.description.cache_groups import CacheGroup, CacheLayout, Place

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
class StateCache:
    """The states of the layers of one group, float32. A sequence's states of all groups are in the same slot."""

    windows: Tensor  # [layers, slots, window, channels], the last inputs of convolutions
    matrices: Tensor  # [layers, slots, heads, rows, columns]; without a matrix [layers, slots]

    @classmethod
    def allocate(cls, group: CacheGroup, num_slots: int, device: torch.device) -> StateCache:
        """Allocate the slots. On a CPU the kernel maps their memory when they are first written."""
        assert group.state is not None
        window, channels, matrix = group.state
        slots = (len(group.layers), num_slots)
        shapes = (*slots, window, channels), (*slots, *matrix)
        return cls(*(torch.empty(shape, dtype=torch.float32, device=device) for shape in shapes))


@dataclass(slots=True)
class KVCache:
    """The paged cache of all layers, in the model's dtype or in float8_e4m3fn (`Attention.cache_scales`).

    Page `b` has the slots `b * block_size ... (b + 1) * block_size - 1` of each row.

    A page belongs to one cache group at a time (`description.cache_groups`), whose layers have places in its rows.
    """

    keys: Tensor  # [rows, num_blocks, block_size, slot_size]
    values: Tensor  # [rows, num_blocks, block_size, value_size]
    places: tuple[Place, ...]
    states: list[StateCache] = field(default_factory=list)  # of each group of states
    # Of each place views of K and V: [num_blocks, block_size, kv_heads, head_dim], and [slots, kv_heads, head_dim]. Of
    # latents V is the first part of K.
    by_page: list[tuple[Tensor, Tensor]] = field(init=False)
    by_slot: list[tuple[Tensor, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        """Make the views, which every layer of every step uses, once."""
        self.by_page = [self._views(place) for place in self.places]
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
        groups: Sequence[CacheGroup],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        num_states: int = 0,
    ) -> KVCache:
        """Allocate the cache. On a CPU the kernel maps its memory when pages are first written. `num_states`: slots of
        states."""
        layout = CacheLayout.of(groups)
        slots, sizes = (layout.rows, num_blocks, block_size), (layout.slot_size, layout.value_size)
        keys, values = (torch.empty(*slots, size, dtype=dtype, device=device) for size in sizes)
        states = [StateCache.allocate(group, num_states, device) for group in groups if not group.is_paged]
        return cls(keys, values, layout.places, states)

    def _views(self, place: Place) -> tuple[Tensor, Tensor]:
        keys = _view(self.keys, place)
        return keys, keys[..., : place.latent_rank] if place.latent_rank else _view(self.values, place)


def _view(rows: Tensor, place: Place) -> Tensor:
    size = place.kv_heads * place.head_dim
    slots = rows[place.row, :, :, place.first : place.first + size]
    return slots.unflatten(-1, (place.kv_heads, place.head_dim))
