"""Cache groups: layers that share pages of the KV cache. This module does not import torch.

All pages have one size: that of some tokens of as many layers as the largest group has. So one pool of pages serves all
groups, and memory need not be divided between them in advance.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ember.engine.description.config import DecoderConfig

# What a group stores of a sequence: K and V of all tokens; those of its last tokens; one compressed vector per token
# for K and V together; a state of fixed size.
CacheKind = Literal["full", "window", "latent", "state"]

MAX_WASTE = 1.05  # largest ratio of a full-length sequence's pages to its layers' needs, for the sake of fewer groups


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose K and V are in the same pages: a sequence has one block table for all of them."""

    layers: tuple[int, ...]  # indices in the model; layers[i] has place i in a page
    kind: CacheKind
    window: int | None  # tokens that a query attends to, its own included; None: all
    bytes_per_token: int  # of all layers of the group
    bytes_per_sequence: int = 0  # independent of its length

    def most_pages(self, num_tokens: int, chunk: int, block_size: int) -> int:
        """The most pages that a sequence of `num_tokens` holds at a time, if no step computes more than `chunk` tokens:
        those that the first query of a step attends to, and those that the step writes."""
        pages = -(-num_tokens // block_size)
        if self.window is None:
            return pages
        return min(pages, (self.window + min(chunk, num_tokens) - 3) // block_size + 2)


def cache_groups(config: DecoderConfig, element_size: int) -> tuple[CacheGroup, ...]:
    """The model's layers in groups of equal window and about equal size. `element_size`: bytes of a number in the
    cache. A model with equal layers has one group."""
    by_window: dict[int | None, list[int]] = {}
    for layer, window in enumerate(config.windows()):
        by_window.setdefault(window, []).append(layer)
    size = _layers_per_page(
        {window: len(layers) for window, layers in by_window.items()}, config.max_position_embeddings
    )
    bytes_per_layer = 2 * config.kv_size * element_size
    return tuple(
        CacheGroup(
            layers=tuple(layers[first : first + size]),
            kind="full" if window is None else "window",
            window=window,
            bytes_per_token=bytes_per_layer * len(layers[first : first + size]),
        )
        for window, layers in by_window.items()
        for first in range(0, len(layers), size)
    )


def _layers_per_page(counts: dict[int | None, int], max_tokens: int) -> int:
    """The number of layers in a page: as many as possible, since each group needs a block table, while a sequence of
    `max_tokens` needs little more memory than without padding. `counts`: the number of layers by window."""

    def cost(size: int) -> int:
        """Tokens times layers of a sequence's pages, padding included."""
        tokens = {window: min(window or max_tokens, max_tokens) for window in counts}
        return sum(-(-count // size) * size * tokens[window] for window, count in counts.items())

    sizes = range(1, max(counts.values()) + 1)
    least = cost(1)  # without padding
    return max(size for size in sizes if cost(size) <= MAX_WASTE * least)


def layers_per_page(groups: Sequence[CacheGroup]) -> int:
    """The number of layers in a page. Groups with fewer layers leave some unused."""
    return max(len(group.layers) for group in groups)


def bytes_per_page_token(groups: Sequence[CacheGroup]) -> int:
    """The bytes of one token in a page of any group."""
    return max(group.bytes_per_token for group in groups)


def cache_places(groups: Sequence[CacheGroup]) -> list[tuple[int, int]]:
    """The group of each layer of the model, and its place in the group's pages."""
    found = {layer: (g, place) for g, group in enumerate(groups) for place, layer in enumerate(group.layers)}
    return [found[layer] for layer in range(len(found))]


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
