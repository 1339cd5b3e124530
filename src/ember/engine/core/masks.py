"""The token masks of one step: computed by threads while the forward pass runs, needed at sampling.

A CPU takes them row by row, without touching a whole row where it can: a mask that leaves few tokens is their list
(`Masks.few`), and of another one it is asked whether the token that was chosen is among its own (`Masks.allows`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ember.engine.core.constraint import Bits, Constraint
from ember.engine.core.grammar import GrammarError
from ember.engine.core.sequence import Sequence

if TYPE_CHECKING:
    from llguidance import LLExecutor

MAX_THREADS = 8
FEW = 1024  # a row with at most so many tokens left has a list of them

TokenIds = NDArray[np.int64]  # ascending
Values = NDArray[np.float32]  # logits


@dataclass(slots=True)
class Masks:
    """What the constrained rows of a step may draw."""

    rows: list[int]  # of the logits
    bits: Tensor  # [len(rows), words] int32 on the host; bit i of word w: token 32 w + i may follow
    errors: dict[int, str] = field(default_factory=dict)  # row -> why its grammar cannot be followed any further
    few: dict[int, TokenIds] = field(default_factory=dict)  # row -> all that may follow; only where that was asked for

    def apply(self, logits: Tensor) -> None:
        """Forbid, in place, what the masks do not allow. `logits`: [all rows of the step, vocab]."""
        allowed = expand(self.bits.to(logits.device, non_blocking=True), logits.shape[-1])
        rows = torch.tensor(self.rows, device=logits.device)
        logits[rows] = logits[rows].masked_fill(~allowed, -torch.inf)

    def allows(self, i: int, token_id: int) -> bool:
        """Whether the row `self.rows[i]` may go on with a token."""
        return bool(int(self.bits[i, token_id >> 5]) >> (token_id & 31) & 1)

    def forbid(self, i: int, values: Values) -> None:
        """Apply the mask of `self.rows[i]`, in place. `values`: [vocab]."""
        # Indices of set bits, never a copy under a condition: that costs ten times as much where bits are mixed.
        bits = self.bits[i].numpy().view(np.uint8)
        allowed = np.unpackbits(bits, count=len(values), bitorder="little").view(np.bool_)
        forbidden = np.flatnonzero(~allowed)
        if len(forbidden) <= len(values) // 2:
            values[forbidden] = -np.inf
        else:
            kept = np.flatnonzero(allowed)
            held = values[kept]
            values.fill(-np.inf)
            values[kept] = held


def list_few(bits: Bits, vocab_size: int) -> TokenIds | None:
    """The tokens below `vocab_size` that a mask allows; None where there are more than `FEW`. `bits`: [words]."""
    if np.count_nonzero(bits) > FEW:
        return None
    held = np.flatnonzero(bits != 0)  # words with any bit; of booleans it is the fast case
    positions = np.flatnonzero(np.unpackbits(bits[held].view(np.uint8), bitorder="little").view(np.bool_))
    token_ids = (held[positions >> 5] << 5) + (positions & 31)
    token_ids = token_ids[: np.searchsorted(token_ids, vocab_size)]
    return token_ids if len(token_ids) <= FEW else None


def expand(bits: Tensor, vocab_size: int) -> Tensor:
    """[rows, words] int32 -> [rows, vocab_size] bool."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :vocab_size].bool()


class MaskFiller:
    """Computes the masks of a step in a thread of its own, matchers in parallel.

    `start` may be called again once the masks it gave before are on the device: there are two buffers, used by turns.
    With `vocab_size`, the rows of the logits, they come with `Masks.few`.
    """

    def __init__(self, pin_memory: bool = False, vocab_size: int | None = None) -> None:
        self._vocab_size = vocab_size
        self._pin_memory = pin_memory
        self._buffers: list[Tensor] = [torch.empty(0, 0, dtype=torch.int32)] * 2
        self._thread: ThreadPoolExecutor | None = None
        self._executor: LLExecutor | None = None

    def start(self, sequences: list[Sequence]) -> Callable[[], Masks | None]:
        """`sequences[i]` is row i of the logits to come. Call what this returns when they are there; None: no row is
        restricted."""
        constrained = [
            (row, sequence.grammar)
            for row, sequence in enumerate(sequences)
            if sequence.grammar is not None and sequence.grammar.needs_mask
        ]
        if not constrained:
            return lambda: None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        num_words = max(constraint.num_words for _, constraint in constrained)
        bits = self._take_buffer(len(constrained), num_words)
        return self._thread.submit(self._fill, constrained, bits).result

    def _take_buffer(self, num_rows: int, num_words: int) -> Tensor:
        self._buffers.reverse()
        buffer = self._buffers[0]
        if len(buffer) < num_rows or buffer.shape[1] != num_words:
            size = 1 << (num_rows - 1).bit_length()
            buffer = torch.empty(size, num_words, dtype=torch.int32, pin_memory=self._pin_memory)
            self._buffers[0] = buffer
        return buffer[:num_rows]

    def _fill(self, constrained: list[tuple[int, Constraint]], bits: Tensor) -> Masks:
        masks = Masks([row for row, _ in constrained], bits)
        array: Bits = bits.numpy()
        plain = []
        for i, (_, constraint) in enumerate(constrained):
            matcher = constraint.plain_matcher
            if matcher is not None:
                plain.append((matcher, i))
            else:
                constraint.fill(array[i])
        if plain:
            if self._executor is None:
                from llguidance import LLExecutor

                self._executor = LLExecutor(max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 2)))
            row_bytes = array.shape[1] * array.itemsize
            self._executor.unsafe_compute_mask_ptr(plain, bits.data_ptr(), row_bytes, len(array))
        for i, (row, constraint) in enumerate(constrained):
            try:
                constraint.trim(array[i])
            except GrammarError as error:
                masks.errors[row] = str(error)
            if self._vocab_size is not None:
                few = list_few(array[i], self._vocab_size)
                if few is not None:
                    masks.few[row] = few
        return masks
