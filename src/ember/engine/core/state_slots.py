"""The slots of states: those of running sequences, and the checkpoints of the prefix cache.

A model whose layers have states (`description.mixers`) changes the states of a sequence with every token. A sequence
has a slot of its own while it runs. A checkpoint is a slot with the states after some full pages, under the hash of the
last of them. It never changes: a sequence that continues it reads it once, and writes its own slot.

A checkpoint is written in place of the sequence's own slot, so nothing is copied. A state is kept

- after the last full page before a prompt's last token, for the next turn of a chat and for further samples;
- where the pages of a prompt were found, but no state: that is where prompts with a common beginning part;
- after every step that ends at the end of a page. Of these, the last one of a decoding sequence is enough.

The least recently used checkpoint is replaced first.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple


class StateMove(NamedTuple):
    """The next tokens of a sequence, which start from the state in one slot and leave theirs in another."""

    num_tokens: int
    read: int  # -1: there is no state yet
    write: int


class Kept(NamedTuple):
    """A state in a slot for checkpoints, which is published when its tokens are known."""

    position: int  # number of its tokens
    slot: int
    is_decoded: bool  # whether the step had one token


@dataclass(slots=True)
class StateHold:
    """The slots of a running sequence."""

    own: int
    current: int  # slot with the state after the computed tokens, its own or a checkpoint; -1: no token is computed
    borders: tuple[int, ...]  # numbers of tokens after which the state is kept, beside ends of steps
    following: int = -1  # slot with the state after the step that is being launched
    kept: list[Kept] = field(default_factory=list)
    last_decoded: bytes = b""  # the hash of the newest published checkpoint of its decodes


class StateSlots:
    """Allocates slots. The first `num_own` are those of running sequences, the others hold checkpoints."""

    def __init__(self, num_own: int, num_checkpoints: int, block_size: int) -> None:
        self.block_size = block_size
        self.num_own = num_own
        self.num_checkpoints = num_checkpoints
        self._free = list(range(num_own))  # a heap: low slots are adjacent, so that decodes change them in place
        self._spare = list(range(num_own, num_own + num_checkpoints))
        self._slot_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._holders = dict.fromkeys(self._spare, 0)
        self._idle: OrderedDict[int, None] = OrderedDict()  # published and held by none, next to be replaced first

    @property
    def num_free(self) -> int:
        """The number of slots that no running sequence has or reads."""
        return len(self._free) + len(self._spare) + len(self._idle)

    def longest(self, hashes: Items[bytes], num_blocks: int) -> int:
        """The length, up to `num_blocks`, of the longest prefix with a checkpoint."""
        return next((i for i in range(num_blocks, 0, -1) if hashes[i - 1] in self._slot_of), 0)

    def start(self, checkpoint: bytes | None, borders: tuple[int, ...]) -> StateHold:
        """The slots of a sequence that continues a checkpoint, or begins. A slot of its own must be free."""
        current = -1
        if checkpoint is not None:
            current = self._slot_of[checkpoint]
            self._hold(current)
        return StateHold(heapq.heappop(self._free), current, borders)

    def move(self, hold: StateHold, first: int, num_tokens: int) -> list[StateMove]:
        """The moves of the sequence's next tokens, from the position `first` on. Slots for checkpoints are allocated as
        far as there are any."""
        end = first + num_tokens
        borders = [border for border in hold.borders if first < border < end]
        if end % self.block_size == 0:
            borders.append(end)
        moves: list[StateMove] = []
        read = hold.current
        for border in sorted(set(borders)):
            slot = self._allocate()
            if slot is None:
                break
            hold.kept.append(Kept(border, slot, num_tokens == 1))
            moves.append(StateMove(border - first, read, slot))
            read, first = slot, border
        if first < end:
            moves.append(StateMove(end - first, read, hold.own))
        hold.following = moves[-1].write
        return moves

    def advance(self, hold: StateHold) -> None:
        """Continue from the state that the launched step leaves."""
        if hold.following != hold.current:
            self._hold(hold.following)
            self._release(hold.current)
            hold.current = hold.following

    def publish(self, hold: StateHold, hashes: Items[bytes], num_known: int) -> None:
        """Publish the kept states of known tokens. `hashes`: of the sequence's full pages."""
        while hold.kept and hold.kept[0].position <= num_known:
            position, slot, is_decoded = hold.kept.pop(0)
            block_hash = hashes[position // self.block_size - 1]
            if block_hash not in self._slot_of:
                self._slot_of[block_hash], self._hash_of[slot] = slot, block_hash
                if is_decoded:
                    before = self._slot_of.get(hold.last_decoded)
                    if before is not None and before in self._idle:
                        self._idle.move_to_end(before, last=False)
                    hold.last_decoded = block_hash
            self._release(slot)

    def free(self, hold: StateHold) -> None:
        """Free the slots of a sequence. Its published checkpoints stay."""
        heapq.heappush(self._free, hold.own)
        self._release(hold.current)
        for kept in hold.kept:
            self._release(kept.slot)

    def forget_checkpoints(self) -> None:
        """Forget the content of all checkpoints. One that a sequence reads is free when that has left it."""
        self._slot_of.clear()
        self._hash_of.clear()
        self._spare += self._idle
        self._idle.clear()

    def _allocate(self) -> int | None:
        """A slot for a checkpoint, with one holder; None: all are in use."""
        if self._spare:
            slot = self._spare.pop()
        elif self._idle:
            slot, _ = self._idle.popitem(last=False)
            del self._slot_of[self._hash_of.pop(slot)]
        else:
            return None
        self._holders[slot] = 1
        return slot

    def _hold(self, slot: int) -> None:
        if slot in self._holders:  # a checkpoint
            self._idle.pop(slot, None)
            self._holders[slot] += 1

    def _release(self, slot: int) -> None:
        if slot not in self._holders:
            return
        self._holders[slot] -= 1
        if self._holders[slot] == 0:
            if slot in self._hash_of:
                self._idle[slot] = None
            else:
                self._spare.append(slot)
