"""The rows of running sequences on the device, and the host's picture of them: what changed is what goes up.

A sequence gets a row when it joins its first step and keeps it while it has pages. Its row knows the token to be fed
next, its position, its pages and its sampling parameters (`ember_kernels.step`). The host knows what it sent; a step's
update is the difference: new pages, and a record where position or parameters are not what the device would go on with.
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
    """What the device holds for one sequence, as far as it was told."""

    index: int
    sequence: Sequence
    block_tables: list[array[int]]  # the sequence's when the row was given; others mean that it was preempted
    limits: Limits
    num_blocks: int = 0  # entries of each table
    position: int | None = None  # of the token it will be fed next; None: it was not told
    words: tuple[int, ...] | None = None


class DeviceRows:
    """Gives rows and finds out what has to be sent. One more row than sequences that run at a time is never needed."""

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
        """The sequence's row, for the draw or chunk to come; a new one where it has none."""
        row = self._rows.get(sequence)
        if row is None or row.block_tables is not sequence.block_tables:
            row = self._place(sequence, row)
        else:
            changes_at = row.limits.changes_at
            if changes_at is not None and sequence.num_output_tokens + sequence.num_pending >= changes_at:
                row.limits = self._tables.renew(sequence, row.index)
        return row

    def new_blocks(self, row: Row) -> list[tuple[int, int, int]]:
        """(row of all groups' tables, index, block) of the pages that the device does not know yet; from now on it is
        taken to. It is not told that pages before a window were given back: no kernel looks at them."""
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
        """What must be sent before the sequence's next token is fed, if anything; the device then moves one on."""
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
        """What must be sent with the last chunk of a prompt, behind which the sampler leaves the token."""
        row.position, row.words = row.sequence.num_tokens, row.limits.words
        return Record(row.index, row.position, row.words)

    def distrust(self, sequences: list[Sequence]) -> None:
        """A step failed half-way: what it sent may or may not have arrived, and its draws may be counted. The sequences
        lose their rows; they get new ones when every token is known."""
        for sequence in sequences:
            row = self._rows.pop(sequence, None)
            if row is not None:
                self._free.append(row.index)

    def recount(self, rows: list[Row]) -> None:
        """A draw of rows all of whose tokens are known failed half-way: it may be counted. A row that there is no
        memory to fill is given up: its sequence gets another one."""
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
        """Take the rows back of sequences that have ended or wait again."""
        for sequence, row in list(self._rows.items()):
            if sequence.block_tables is not row.block_tables:
                del self._rows[sequence]
                self._free.append(row.index)
