"""Cache groups: layers that share pages of the KV cache, or have states. This module does not import torch.

All pages have one size: that of some tokens of as many layers as the largest group has. So one pool of pages serves all
groups, and memory need not be divided between them in advance.

A page has rows. A slot of a row has the K and V of one token of a layer with the largest heads, or of several layers
with smaller ones, side by side. The part of a layer in every slot of its row is the layer's place. A layer with latent
attention stores one vector for each token: it lies where other layers have K, and their V is unused.

Layers whose mixers have a state of fixed size (`description.mixers`) are groups without pages. They follow the others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ember.engine.description.config import DecoderConfig, HeadSizes
from ember.engine.description.mixers import StateShape

# What a group stores of a sequence: K and V of all tokens; those of its last tokens; one compressed vector per token
# for K and V together; a state of fixed size.
CacheKind = Literal["full", "window", "latent", "state"]

MAX_WASTE = 1.05  # largest ratio of a full-length sequence's pages to its layers' needs, for the sake of fewer groups


class Place(NamedTuple):
    """Where a page has the K and V of a layer."""

    row: int
    first: int  # element of the row's slots
    kv_heads: int
    head_dim: int
    latent_rank: int = 0  # of latents: the first elements of a key that are the value too, which is not stored then

    @property
    def value_size(self) -> int:
        """The elements of V in a slot."""
        return 0 if self.latent_rank else self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose K and V are in the same pages: a sequence has one block table for all of them. Or layers whose
    states have the same shape: a sequence has one slot for the states of all such groups."""

    layers: tuple[int, ...]  # indices in the model
    kind: CacheKind
    window: int | None  # tokens that a query attends to, its own included; None: all
    bytes_per_token: int  # of all layers of the group
    bytes_per_sequence: int = 0  # independent of its length
    places: tuple[Place, ...] = ()  # of each of `layers`
    unused_bytes: int = 0  # of a token in the rows that the group uses
    state: StateShape | None = None  # of a layer, in a group of states

    @property
    def is_paged(self) -> bool:
        return self.state is None

    def most_pages(self, num_tokens: int, chunk: int, block_size: int) -> int:
        """The most pages that a sequence of `num_tokens` holds at a time, if no step computes more than `chunk` tokens:
        those that the first query of a step attends to, and those that the step writes."""
        pages = -(-num_tokens // block_size) if self.is_paged else 0
        if self.window is None:
            return pages
        return min(pages, (self.window + min(chunk, num_tokens) - 3) // block_size + 2)


class _Kind(NamedTuple):
    """What the layers of a group have in common."""

    window: int | None
    sizes: HeadSizes
    latent_rank: int = 0  # as `Place` has it

    @property
    def value_size(self) -> int:
        return 0 if self.latent_rank else self.sizes.kv_size

    def per_row(self, slot_size: int) -> int:
        """The number of layers in a row."""
        return slot_size // self.sizes.kv_size


def cache_groups(config: DecoderConfig, element_size: int) -> tuple[CacheGroup, ...]:
    """The model's layers in groups of equal windows, heads and mixers, and of about equal size. `element_size`: bytes
    of a number in the cache. A model with equal layers has one group. Layers without K and V of their own have none."""
    return *_paged_groups(config, element_size), *_state_groups(config)


def _state_groups(config: DecoderConfig) -> Iterator[CacheGroup]:
    layers: dict[StateShape, list[int]] = {}
    for layer in range(config.num_layers):
        state = config.state(layer)
        if state is not None:
            layers.setdefault(state, []).append(layer)
    for state, own in layers.items():
        yield CacheGroup(tuple(own), "state", None, 0, bytes_per_sequence=len(own) * state.nbytes, state=state)


def _paged_groups(config: DecoderConfig, element_size: int) -> tuple[CacheGroup, ...]:
    by_kind: dict[_Kind, list[int]] = {}
    for layer, window in enumerate(() if config.bidirectional else config.windows()):
        if config.mixer(layer) == "latent" and config.latent is not None:
            by_kind.setdefault(_Kind(None, config.heads(layer), config.latent.kv_rank), []).append(layer)
        elif config.mixer(layer) == "attention" and config.has_own_kv(layer):
            by_kind.setdefault(_Kind(window, config.heads(layer)), []).append(layer)
    if not by_kind:  # pages that hold nothing: the prefix cache and the scheduler count tokens by them
        return (CacheGroup((), "full", None, 0),)
    slot_size = max(kind.sizes.kv_size for kind in by_kind)
    value_size = max(kind.value_size for kind in by_kind)
    counts = {kind: len(layers) for kind, layers in by_kind.items()}
    rows = _rows_per_page(counts, slot_size, config.max_position_embeddings)
    return tuple(
        _group(kind, layers[first : first + rows * kind.per_row(slot_size)], (slot_size, value_size), element_size)
        for kind, layers in by_kind.items()
        for first in range(0, len(layers), rows * kind.per_row(slot_size))
    )


def _group(kind: _Kind, layers: list[int], slot: tuple[int, int], element_size: int) -> CacheGroup:
    """`slot`: the elements of K and of V in a slot of a row."""
    per_row, size = kind.per_row(slot[0]), kind.sizes.kv_size
    rows = -(-len(layers) // per_row)
    used = (size + kind.value_size) * len(layers)
    paged: CacheKind = "full" if kind.window is None else "window"
    return CacheGroup(
        layers=tuple(layers),
        kind="latent" if kind.latent_rank else paged,
        window=kind.window,
        bytes_per_token=used * element_size,
        places=tuple(
            Place(index // per_row, index % per_row * size, *kind.sizes[1:], kind.latent_rank)
            for index in range(len(layers))
        ),
        unused_bytes=(rows * sum(slot) - used) * element_size,
    )


def _rows_per_page(counts: Mapping[_Kind, int], slot_size: int, max_tokens: int) -> int:
    """The number of rows in a page: as many as possible, since each group needs a block table, while a sequence of
    `max_tokens` needs little more memory than without padding. `counts`: the number of layers by kind."""

    def cost(rows: int) -> int:
        """Tokens times rows of a sequence's pages, padding included."""
        return sum(
            -(-count // (rows * kind.per_row(slot_size))) * rows * min(kind.window or max_tokens, max_tokens)
            for kind, count in counts.items()
        )

    most = max(-(-count // kind.per_row(slot_size)) for kind, count in counts.items())
    least = cost(1)  # without padding
    return max(rows for rows in range(1, most + 1) if cost(rows) <= MAX_WASTE * least)


class CacheLayout(NamedTuple):
    """What a page consists of."""

    rows: int  # groups with fewer leave some unused
    slot_size: int  # elements of K of one token in a row
    value_size: int  # the same of V; 0 if all layers have latents
    places: tuple[Place, ...]  # of the layers of any group

    @classmethod
    def of(cls, groups: Sequence[CacheGroup]) -> CacheLayout:
        places = tuple(dict.fromkeys(place for group in groups for place in group.places))
        slot_size = max((place.kv_heads * place.head_dim for place in places), default=0)
        rows, value_size = (
            max(sizes, default=0) for sizes in ([p.row + 1 for p in places], [p.value_size for p in places])
        )
        return cls(rows, slot_size, value_size, places)


def paged(groups: Sequence[CacheGroup]) -> list[CacheGroup]:
    """The groups that have pages. A sequence has a block table for each."""
    return [group for group in groups if group.is_paged]


def state_bytes(groups: Sequence[CacheGroup]) -> int:
    """The bytes of a sequence's states in all layers, 0 only if none has a state: an empty one, that of a convolution
    of width 1, has slots all the same, and counts as one byte."""
    states = [group.bytes_per_sequence for group in groups if group.state is not None]
    return max(1, sum(states)) if states else 0


def bytes_per_page_token(groups: Sequence[CacheGroup]) -> int:
    """The bytes of one token in a page of any group."""
    return max(group.bytes_per_token + group.unused_bytes for group in groups)


def cache_places(config: DecoderConfig, groups: Sequence[CacheGroup]) -> dict[int, tuple[int, int]]:
    """The group of each layer that reads pages, and the index in `CacheLayout.places` of its place in them. A layer
    without K and V of its own has those of the layer that it reads."""
    indices = {place: index for index, place in enumerate(CacheLayout.of(groups).places)}
    found = {
        layer: (g, indices[place])
        for g, group in enumerate(paged(groups))
        for layer, place in zip(group.layers, group.places, strict=True)
    }
    return {layer: found[source] for layer, source in enumerate(config.kv_sources()) if source in found}


def state_places(groups: Sequence[CacheGroup]) -> dict[int, tuple[int, int]]:
    """The place of each layer with a state: its group, counted among those of states, and its index in the group."""
    states = (group for group in groups if not group.is_paged)
    return {layer: (g, index) for g, group in enumerate(states) for index, layer in enumerate(group.layers)}


def bytes_seen(groups: Sequence[CacheGroup], num_tokens: float) -> float:
    """The bytes of K and V that the next token of a sequence of `num_tokens` attends to."""
    return sum(group.bytes_per_token * min(group.window or num_tokens, num_tokens) for group in groups)


def most_pages(groups: Sequence[CacheGroup], num_tokens: int, chunk: int, block_size: int) -> int:
    """The sum of `CacheGroup.most_pages` over all groups."""
    return sum(group.most_pages(num_tokens, chunk, block_size) for group in groups)


def longest_sequence(groups: Sequence[CacheGroup], num_pages: int, block_size: int, limit: int) -> int:
    """The length in tokens, up to `limit`, of the longest single sequence that fits in `num_pages`."""
    lengths = range(1, limit + 1)
    return bisect_left(lengths, num_pages + 1, key=lambda length: most_pages(groups, length, 1, block_size))
