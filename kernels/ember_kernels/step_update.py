"""The host's update of the device before a decode step: one packed int32 buffer, made without torch or triton.

The host packs it in pinned memory and copies the used part, in one copy, to the buffer that `step.prepare_step` reads.
It alternates between two pinned buffers, since a host one step ahead packs the next update before the last one was
copied. One device buffer is enough, since the stream orders its reader before the next copy.

    word 0                  number of records            word 1   number of block entries
    word 2                  number of rows of the step   word 3   0
    words 4 .. 4+capacity   the rows of the step in batch order, padded with -1; capacity is a constant of the buffer
    then the records        (row, token, position, words of sampling): sets a row; token -1 keeps last_tokens[row]
    then the block entries  (row, index, block): entry `index` of a row of all groups' block tables, of which group g
                            has the rows g * rows ... (g + 1) * rows - 1
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

HEADER = 4
ENTRY = 3
RECORD_HEADER = 3
KEEP_TOKEN = -1

_SEED, _SEED_WORDS = struct.Struct("<Q"), struct.Struct("<2i")
# A row's sampling parameters, one word each: floats as their bits, the 64-bit seed as two words. `table` and `mask` are
# one more than the row of `sampling.Constraints`' tables and of its masks, so that the zeros of padding mean none.
SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "top_k",
    "seed_low",
    "seed_high",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "table",
    "mask",
)


@dataclass(frozen=True)
class Record:
    """New values of one row. `sampling`: int32 words, see `float_word`."""

    row: int
    position: int
    sampling: Sequence[int] = ()
    token: int = KEEP_TOKEN


@dataclass(frozen=True)
class StepUpdate:
    """An update before a step: the step's rows in batch order, new values of rows, and (row, index, block) entries."""

    rows: Sequence[int]
    records: Sequence[Record] = ()
    entries: Sequence[tuple[int, int, int]] | np.ndarray = field(default_factory=tuple)


def float_word(value: float) -> int:
    """The bits of a float32 as an int32."""
    return int(np.float32(value).view(np.int32))


def sampling_words(
    temperature: float,
    top_p: float,
    min_p: float,
    top_k: int,
    seed: int,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    table: int = 0,
    mask: int = 0,
) -> tuple[int, ...]:
    """The words of `SAMPLING_FIELDS`."""
    floats = (temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty)
    filters, penalties = np.array(floats, dtype=np.float32).view(np.int32).reshape(2, 3).tolist()
    return (*filters, top_k, *_SEED_WORDS.unpack(_SEED.pack(seed & ((1 << 64) - 1))), *penalties, table, mask)


def words_needed(update: StepUpdate, capacity: int, words: int) -> int:
    """Size in int32 words of a packed update."""
    return HEADER + capacity + len(update.records) * (RECORD_HEADER + words) + len(update.entries) * ENTRY


def pack_step(update: StepUpdate, buffer: np.ndarray, capacity: int, words: int) -> int:
    """Write an update into an int32 buffer (the numpy view of pinned memory). Returns how many words to copy."""
    used = words_needed(update, capacity, words)
    if len(update.rows) > capacity:
        raise ValueError(f"a step of {len(update.rows)} rows does not fit a buffer for {capacity}")
    if used > len(buffer):
        raise ValueError(f"the step's update needs {used} words and the buffer has {len(buffer)}: send it in parts")
    buffer[:HEADER] = (len(update.records), len(update.entries), len(update.rows), 0)
    rows_end = HEADER + len(update.rows)
    records_at = HEADER + capacity
    buffer[HEADER:rows_end] = update.rows
    buffer[rows_end:records_at] = -1
    entries_at = records_at + len(update.records) * (RECORD_HEADER + words)
    if update.records:
        records = buffer[records_at:entries_at].reshape(len(update.records), -1)
        for target, record in zip(records, update.records, strict=True):
            target[:RECORD_HEADER] = (record.row, record.token, record.position)
            target[RECORD_HEADER:] = record.sampling
    if len(update.entries):
        buffer[entries_at:used] = np.asarray(update.entries, dtype=np.int32).reshape(-1)
    return used
