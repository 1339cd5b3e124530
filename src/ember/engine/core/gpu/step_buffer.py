"""The inputs of one step on the device: one packed buffer of int32 words, copied from pinned memory in one copy.

The slots of the decodes' states are first, if the model's layers have states, then the update of the rows
(`ember_kernels.step_update`). The step's arrays follow, each at a multiple of 16 bytes, as kernels expect of pointers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.engine.core.gpu.accelerator import Accelerator
from ember_kernels.state_math import RUNS
from ember_kernels.step_update import ENTRY, HEADER, RECORD_HEADER, SAMPLING_FIELDS, Record, StepUpdate, pack_step

ENTRIES = 16_384  # most new pages in the buffer; further ones are sent before, in parts
_ALIGNMENT = 4  # words
_WORDS = len(SAMPLING_FIELDS)

Entry = tuple[int, int, int]  # row of all groups' tables, index, block


@dataclass(slots=True)
class _Pinned:
    """Host memory, and a function that waits for the last copy out of it."""

    words: Tensor  # int32
    wait: Callable[[], None] = lambda: None


class StepBuffer:
    """Two pinned buffers in alternation, since the host is one step ahead, and one buffer on the device."""

    def __init__(
        self, max_rows: int, max_tokens: int, num_groups: int, accelerator: Accelerator, has_states: bool = False
    ) -> None:
        self.capacity = max_rows
        width = -(-max_rows // _ALIGNMENT) * _ALIGNMENT if has_states else 0
        self._first = 2 * width  # word of the update
        size = HEADER + max_rows + max_rows * (RECORD_HEADER + _WORDS) + ENTRIES * ENTRY
        size += (2 + num_groups) * max_tokens + 6 * (max_rows + 1) + (16 + num_groups) * _ALIGNMENT
        size += self._first + (3 * (RUNS * max_rows + 1) if has_states else 0)
        self.words = torch.zeros(size, dtype=torch.int32, device=accelerator.device)  # on the device
        self.states = self.words[: self._first].view(2, width)  # slots to read and to write; -1: padding
        self.update = self.words[self._first :]
        self._pinned = [_Pinned(accelerator.pinned(size, dtype=torch.int32)) for _ in range(2)]
        self._accelerator = accelerator

    def send(
        self,
        rows: Sequence[int],
        records: list[Record],
        entries: list[Entry],
        arrays: Iterable[np.ndarray] = (),
        states: Sequence[tuple[int, int]] = (),
    ) -> list[Tensor]:
        """Copy an update of at most `ENTRIES` entries, the slots of the decodes' states (to read and to write), and the
        arrays. Returns the arrays on the device, as int32."""
        self._pinned.reverse()
        pinned = self._pinned[0]
        pinned.wait()  # returns at once, unless a failed step was not waited for
        words = pinned.words.numpy()
        update = StepUpdate(rows, records, np.array(entries, dtype=np.int32).reshape(-1, ENTRY))
        slots = words[: self._first].reshape(2, -1)
        slots.fill(-1)
        if states:
            slots[:, : len(states)] = np.array(states).T
        used = self._first + pack_step(update, words[self._first :], self.capacity, _WORDS)
        spans = []
        for array in arrays:
            start = -(-used // _ALIGNMENT) * _ALIGNMENT
            used = start + array.size
            words[start:used] = array.reshape(-1)
            spans.append((start, used, array.shape))
        self.words[:used].copy_(pinned.words[:used], non_blocking=True)
        pinned.wait = self._accelerator.mark()
        return [self.words[start:stop].view(shape) for start, stop, shape in spans]

    def clear(self) -> None:
        """Set the update on the device to that of a step without rows, which changes nothing."""
        self.states.fill_(-1)
        self.update[:HEADER].zero_()
        self.update[HEADER : HEADER + self.capacity].fill_(-1)

    def pack_alone(self, entries: list[Entry]) -> Tensor:
        """An update that has only these entries, in memory of its own."""
        update = StepUpdate((), (), np.array(entries, dtype=np.int32))
        words = np.empty(HEADER + self.capacity + len(entries) * ENTRY, dtype=np.int32)
        pack_step(update, words, self.capacity, _WORDS)
        return self._accelerator.upload(words)
