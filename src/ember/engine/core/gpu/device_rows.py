"""The rows of running sequences on the device, and the host's copy of their state, from which updates are computed.

A sequence gets a row at its first step and keeps it while it has pages. The row has the next input token, its position,
its pages and its sampling parameters (`ember_kernels.step`). The host tracks what it has sent. A step's update is the
difference: new pages, and a record if position or parameters differ from the device's.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import torch

from ember.engine.core.gpu.accelerator import Accelerator
from ember.engine.core.gpu.row_limits import Limits, RowTables
from ember.engine.core.sequence import GIVEN_BACK, Sequence
from ember_kernels.step_update import KEEP_TOKEN, SAMPLING_FIELDS, Record


@dataclass(slots=True)
class Row:
    """The state of one sequence's row that was sent to the device."""

    index: int
    sequence: Sequence
    block_tables: list[array[int]]  # the sequence's when it got the row; other lists mean that it was preempted
    limits: Limits
    num_blocks: int = 0  # entries of each table
    position: int | None = None  # of the next input token; None: not sent yet
    words: tuple[int, ...] | None = None


class DeviceRows:
    """Assigns rows and computes updates. The number of rows is that of running sequences."""

    def __init__(
        self, num_rows: int, num_groups: int, max_blocks: int, accelerator: Accelerator, tables: RowTables
    ) -> None:
        device = accelerator.device
        self.last_tokens = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.positions = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.block_tables = torch.zeros((num_groups, num_rows, max_blocks), dtype=torch.int32, device=device)
        self.sampling = torch.zeros((num_rows, len(SAMPLING_FIELDS)), dtype=torch.int32, device=device)
        self._num_rows = num_rows
        self._tables = tables
        self._rows: dict[Sequence, Row] = {}
        self._free = list(range(num_rows - 1, -1, -1))

    def row_of(self, sequence: Sequence) -> Row:
        """The sequence's row for its next sampling or chunk. A sequence without a row gets one."""
        row = self._rows.get(sequence)
        if row is None or row.block_tables is not sequence.block_tables:
            row = self._place(sequence, row)
        else:
            changes_at = row.limits.changes_at
            if changes_at is not None and sequence.num_output_tokens + sequence.num_pending >= changes_at:
                row.limits = self._tables.renew(sequence, row.index)
        return row

    def new_blocks(self, row: Row) -> list[tuple[int, int, int]]:
        """(row of all groups' tables, index, block) of the pages that were not sent yet. They count as sent afterwards.
        Freed pages before a window are not sent, since no kernel reads them."""
        tables, known = row.sequence.block_tables, row.num_blocks
        total = len(tables[0])
        if total == known:
            return []
        row.num_blocks = total
        return [
            (group * self._num_rows + row.index, i, table[i])
            for group, table in enumerate(tables)
            for i in range(known, total)
            if table[i] != GIVEN_BACK
        ]

    def decode_record(self, row: Row) -> Record | None:
        """The record to send before the sequence's next decode, or None. The device then increments the position."""
        sequence = row.sequence
        position = sequence.num_computed_tokens
        is_known = row.position == position and row.words == row.limits.words
        row.position = position + 1
        if is_known:
            return None
        row.words = row.limits.words
        token = KEEP_TOKEN if sequence.num_pending else sequence.token_ids[position]
        return Record(row.index, position, row.words, token)

    def prompt_record(self, row: Row) -> Record:
        """The record to send with the last chunk of a prompt, after which the sampler stores the token."""
        row.position, row.words = row.sequence.num_tokens, row.limits.words
        return Record(row.index, row.position, row.words)

    def distrust(self, sequences: list[Sequence]) -> None:
        """Handle a step that failed half-way: its update may not have arrived, and its tokens may be counted. The
        sequences lose their rows and get new ones when all of their tokens are known."""
        for sequence in sequences:
            row = self._rows.pop(sequence, None)
            if row is not None:
                self._free.append(row.index)

    def recount(self, rows: list[Row]) -> None:
        """Handle a failed sampling of rows whose tokens are all known: the tokens may be counted. A row that cannot be
        filled for lack of memory is given up, and its sequence gets another one."""
        for row in rows:
            try:
                row.limits = self._tables.place(row.sequence, row.index)
            except RuntimeError:
                self.distrust([row.sequence])

    def _place(self, sequence: Sequence, row: Row | None) -> Row:
        if row is None and not self._free:
            self._reclaim()
        index = row.index if row is not None else self._free[-1]
        limits = self._tables.place(sequence, index)
        if row is None:
            self._free.pop()
        placed = self._rows[sequence] = Row(index, sequence, sequence.block_tables, limits)
        return placed

    def _reclaim(self) -> None:
        """Free the rows of sequences that have ended or are waiting again."""
        for sequence, row in list(self._rows.items()):
            if sequence.block_tables is not row.block_tables:
                del self._rows[sequence]
                self._free.append(row.index)
