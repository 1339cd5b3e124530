"""The pages of the KV cache: their owners, their content, and their eviction.

A full page is addressed by its cache group and a hash chain: the hash covers the page's tokens and the hash of the page
before it, so equal hashes mean equal prefixes. A free page keeps its content and can be found until it is evicted. The
least recently used page is evicted first, and of a sequence the tail before the head, since a tail is useless without
its head.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence


def root_hash(salt: str | None) -> bytes:
    """The root of a hash chain. Requests with different salts never share a page."""
    return hashlib.blake2b((salt or "").encode(), digest_size=16).digest()


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of a full block that follows the block with hash `parent`."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


class BlockPool:
    """`num_blocks` pages of equal size. A page is free, held by one sequence, or shared by several. Any cache group may
    use any page."""

    def __init__(self, num_blocks: int, enable_prefix_caching: bool = True, num_groups: int = 1) -> None:
        self.num_blocks = num_blocks
        self.enable_prefix_caching = enable_prefix_caching
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._groups = [0] * num_blocks  # the group of each page with a hash
        self._block_of: list[dict[bytes, int]] = [{} for _ in range(num_groups)]  # by group
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next to be evicted first

    @property
    def num_free(self) -> int:
        """The number of free pages, including those with cached content."""
        return len(self._free)

    def allocate(self) -> int:
        """Allocate a page for new content. Raises KeyError if none is free."""
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._references[block] = 1
        return block

    def cached(self, group: int) -> Mapping[bytes, int]:
        """The cached pages of a group by their hash. `hold` must be called to use them."""
        return self._block_of[group]

    def is_free(self, block: int) -> bool:
        return self._references[block] == 0

    def hold(self, blocks: Iterable[int]) -> None:
        """Add one owner to cached pages."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def publish(self, block: int, block_hash: bytes, group: int = 0) -> None:
        """Publish a full page in the prefix cache. If another page has the same content, this one stays private."""
        if self.enable_prefix_caching and block_hash not in self._block_of[group]:
            self._forget(block)
            self._hashes[block] = block_hash
            self._groups[block] = group
            self._block_of[group][block_hash] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Free pages of a sequence, in the order of its tokens."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if self._hashes[block] is None:  # it has no cached content: reuse it before others
                    self._free.move_to_end(block, last=False)

    def forget_prefixes(self) -> None:
        """Forget the content of all pages."""
        for cached in self._block_of:
            for block in cached.values():
                self._hashes[block] = None
            cached.clear()

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is not None:
            del self._block_of[self._groups[block]][block_hash]
            self._hashes[block] = None
