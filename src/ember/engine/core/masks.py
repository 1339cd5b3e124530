"""The token masks of one step: computed by threads while the forward pass runs, needed at sampling."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ember.engine.core.constraint import Bits, Constraint
from ember.engine.core.grammar import GrammarError
from ember.engine.core.sequence import Sequence

if TYPE_CHECKING:
    from llguidance import LLExecutor

MAX_THREADS = 8


@dataclass(slots=True)
class Masks:
    """What the constrained rows of a step may draw."""

    rows: list[int]  # of the logits
    bits: Tensor  # [len(rows), words] int32 on the host; bit i of word w: token 32 w + i may follow
    errors: dict[int, str] = field(default_factory=dict)  # row -> why its grammar cannot be followed any further

    def apply(self, logits: Tensor) -> None:
        """Forbid, in place, what the masks do not allow. `logits`: [all rows of the step, vocab]."""
        if logits.device.type == "cpu":  # numpy: a byte for each token, and no other thread to wait for
            bits = np.unpackbits(~self.bits.numpy().view(np.uint8), axis=1, bitorder="little")
            forbidden = bits[:, : logits.shape[-1]].view(np.bool_)
            values = logits.numpy()
            for i, row in enumerate(self.rows):
                np.copyto(values[row], -np.inf, where=forbidden[i])
            return
        allowed = expand(self.bits.to(logits.device, non_blocking=True), logits.shape[-1])
        rows = torch.tensor(self.rows, device=logits.device)
        logits[rows] = logits[rows].masked_fill(~allowed, -torch.inf)


def expand(bits: Tensor, vocab_size: int) -> Tensor:
    """[rows, words] int32 -> [rows, vocab_size] bool."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, :vocab_size].bool()


class MaskFiller:
    """Computes the masks of a step in a thread of its own, matchers in parallel.

    `start` may be called again once the masks it gave before are on the device: there are two buffers, used by turns.
    """

    def __init__(self, pin_memory: bool = False) -> None:
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
        return masks
