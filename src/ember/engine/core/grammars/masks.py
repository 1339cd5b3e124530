"""The token masks of one step: computed by other processes during the forward pass, needed at sampling.

A CPU applies them row by row, if possible without reading a whole row: a mask with few tokens is a list of them
(`Masks.few`), and for any other mask the sampled token is looked up (`Masks.allows`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ember.engine.core.grammars.constraint import Bits, Constraint
from ember.engine.core.grammars.worker import Pool
from ember.engine.core.sequence import Sequence
from ember.engine.errors import GrammarError

PATIENCE_S = 0.005  # a step's wait for masks after its forward pass; rows without a mask are sampled in a later step
_SLICE_S = 0.002
FEW = 1024  # a row with at most this many allowed tokens has a list of them

TokenIds = NDArray[np.int64]  # ascending
Values = NDArray[np.float32]  # logits


@dataclass(slots=True)
class Masks:
    """The masks of a step's constrained rows."""

    rows: list[int]  # indices of the logits' rows
    bits: Tensor  # [len(rows), words] int32 on the host; bit i of word w: token 32 w + i may follow
    errors: dict[int, str] = field(default_factory=dict)  # row -> why its grammar has failed
    late: set[int] = field(default_factory=set)  # rows whose mask has not arrived; their bits allow everything
    few: dict[int, TokenIds] = field(default_factory=dict)  # row -> all allowed tokens, if requested and few

    def only(self, rows: list[int]) -> Masks:
        """The masks of some rows of the step, renumbered 0, 1, ... in the given order."""
        places = {row: i for i, row in enumerate(self.rows)}
        held = [(new, old) for new, old in enumerate(rows) if old in places]
        return Masks(
            rows=[new for new, _ in held],
            bits=self.bits[[places[old] for _, old in held]],
            errors={new: self.errors[old] for new, old in held if old in self.errors},
            few={new: self.few[old] for new, old in held if old in self.few},
        )

    def apply(self, logits: Tensor) -> None:
        """Set the logits of forbidden tokens to -inf, in place. `logits`: [rows of the step, vocab]."""
        allowed = expand(self.bits.to(logits.device, non_blocking=True), logits.shape[-1])
        rows = torch.tensor(self.rows, device=logits.device)
        logits[rows] = logits[rows].masked_fill(~allowed, -torch.inf)

    def allows(self, i: int, token_id: int) -> bool:
        """Whether the mask of `self.rows[i]` allows a token."""
        return bool(int(self.bits[i, token_id >> 5]) >> (token_id & 31) & 1)

    def forbid(self, i: int, values: Values) -> None:
        """Apply the mask of `self.rows[i]`, in place. `values`: [vocab]."""
        # Index with the set bits instead of a conditional copy, which takes ten times as long for mixed bits.
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
    """The tokens below `vocab_size` that a mask allows; None if there are more than `FEW`. `bits`: [words]."""
    if np.count_nonzero(bits) > FEW:
        return None
    held = np.flatnonzero(bits != 0)  # words with any bit; flatnonzero is fast for booleans
    positions = np.flatnonzero(np.unpackbits(bits[held].view(np.uint8), bitorder="little").view(np.bool_))
    token_ids = (held[positions >> 5] << 5) + (positions & 31)
    token_ids = token_ids[: np.searchsorted(token_ids, vocab_size)]
    return token_ids if len(token_ids) <= FEW else None


def expand(bits: Tensor, vocab_size: int) -> Tensor:
    """[rows, words] int32 -> [rows, vocab_size] bool."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :vocab_size].bool()


class MaskFiller:
    """Collects the masks of a step in a thread of its own.

    It alternates between two buffers: `start` may be called again once the previous masks are on the device. With
    `vocab_size`, the number of columns of the logits, masks have `Masks.few`.
    """

    def __init__(self, pin_memory: bool = False, vocab_size: int | None = None) -> None:
        self._vocab_size = vocab_size
        self._pin_memory = pin_memory
        self._buffers: list[Tensor] = [torch.empty(0, 0, dtype=torch.int32)] * 2
        self._thread: ThreadPoolExecutor | None = None

    def start(self, sequences: list[Sequence]) -> Callable[[], Masks | None]:
        """Start to collect masks for a step: `sequences[i]` is row i of its logits. The result is to be called after
        the forward pass. It returns the masks, or None if no row is restricted, and waits at most `PATIENCE_S`."""
        constrained = [
            (row, sequence.grammar)
            for row, sequence in enumerate(sequences)
            if sequence.grammar is not None and sequence.grammar.needs_mask
        ]
        if not constrained:
            return lambda: None
        for _, constraint in constrained:
            constraint.prepare()
        pool = next((c.matcher.pool for _, c in constrained if c.matcher is not None), None)
        if pool is not None:
            pool.flush()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        num_words = max(constraint.num_words for _, constraint in constrained)
        bits = self._take_buffer(len(constrained), num_words)
        is_awaited = Event()
        future = self._thread.submit(self._collect, constrained, bits, pool, is_awaited)

        def take() -> Masks:
            is_awaited.set()
            return future.result()

        return take

    def _take_buffer(self, num_rows: int, num_words: int) -> Tensor:
        self._buffers.reverse()
        buffer = self._buffers[0]
        if len(buffer) < num_rows or buffer.shape[1] != num_words:
            size = 1 << (num_rows - 1).bit_length()
            buffer = torch.empty(size, num_words, dtype=torch.int32, pin_memory=self._pin_memory)
            self._buffers[0] = buffer
        return buffer[:num_rows]

    def _collect(
        self,
        constrained: list[tuple[int, Constraint]],
        bits: Tensor,
        pool: Pool | None,
        is_awaited: Event,
    ) -> Masks:
        masks = Masks([row for row, _ in constrained], bits)
        array: Bits = bits.numpy()
        left = list(range(len(constrained)))
        until = math.inf
        while left:
            still = []
            for i in left:
                row, constraint = constrained[i]
                if constraint.is_ready:
                    self._fill(masks, array[i], row, constraint)
                else:
                    still.append(i)
            left = still
            late = {constrained[i][1].matcher for i in left}
            waiting = {matcher.worker for matcher in late if matcher is not None and not matcher.worker.is_slow}
            if is_awaited.is_set() and until == math.inf:
                until = time.monotonic() + PATIENCE_S
            if not waiting or time.monotonic() > until:
                break
            assert pool is not None
            pool.receive(_SLICE_S, waiting)
        for i in left:
            array[i] = -1
            masks.late.add(constrained[i][0])
        if left and pool is not None:
            pool.give_up(waiting)
        return masks

    def _fill(self, masks: Masks, bits: Bits, row: int, constraint: Constraint) -> None:
        try:
            constraint.fill(bits)
        except GrammarError as error:
            masks.errors[row] = str(error)
        if self._vocab_size is not None:
            few = list_few(bits, self._vocab_size)
            if few is not None:
                masks.few[row] = few
