"""The step-preparation kernel against its reference, over many steps of a made-up schedule."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from ember_kernels import step
from ember_kernels.step_update import (
    KEEP_TOKEN,
    SAMPLING_FIELDS,
    Record,
    StepUpdate,
    pack_step,
    sampling_words,
    words_needed,
)

BLOCK_SIZE = 16
POISON = -12345


@dataclass
class Device:
    """State and outputs, for the kernel or for the reference."""

    state: list[torch.Tensor]
    outputs: list[torch.Tensor]

    @classmethod
    def make(cls, device: str, rows: int, max_blocks: int, words: int, batch: int, groups: int = 1) -> Device:
        def full(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.full(shape, POISON, dtype=dtype, device=device)

        outputs = [full(batch, dtype=torch.int64) for _ in range(2)]
        outputs += [full(groups, batch + 5, dtype=torch.int64)[:, :batch], full(batch), full(words, batch + 3)]
        return cls([full(rows), full(rows), full(groups, rows, max_blocks), full(rows, words)], outputs)


def _equal(kernel: Device, reference: Device) -> None:
    for ours, expected in zip(kernel.state + kernel.outputs, reference.state + reference.outputs, strict=True):
        assert torch.equal(ours.cpu(), expected)


def _prepare(prepare: Callable[..., None], packed: torch.Tensor, target: Device, capacity: int) -> None:
    prepare(packed, *target.state, *target.outputs, capacity, BLOCK_SIZE)


@pytest.mark.parametrize(("words", "groups"), [(0, 1), (9, 1), (9, 3)])
def test_many_steps_match_the_reference(device: str, words: int, groups: int) -> None:
    rng = random.Random(0)
    rows, max_blocks, capacity, batch = 37, 6, 40, 33
    kernel = Device.make(device, rows, max_blocks, words, batch, groups)
    reference = Device.make("cpu", rows, max_blocks, words, batch, groups)
    host = np.zeros(4096, dtype=np.int32)
    lengths: dict[int, int] = {}
    for _ in range(8):
        for row in [row for row in lengths if rng.random() < 0.2]:
            del lengths[row]
        records, entries = [], []
        for row in rng.sample([row for row in range(rows) if row not in lengths], 3):
            lengths[row] = rng.randrange(1, 60)
            token = rng.choice([KEEP_TOKEN, rng.randrange(1000)])
            records.append(Record(row, lengths[row], [rng.randrange(-(2**31), 2**31) for _ in range(words)], token))
            for group in range(groups):
                at = group * rows + row
                entries += [(at, index, rng.randrange(500)) for index in range(lengths[row] // BLOCK_SIZE)]
        running = rng.sample(sorted(lengths), min(len(lengths), batch))
        for row in running:
            if (lengths[row] % BLOCK_SIZE == 0 or row in {r.row for r in records}) and lengths[row] < max_blocks * 16:
                for group in range(groups):
                    entries.append((group * rows + row, lengths[row] // BLOCK_SIZE, rng.randrange(500)))
            lengths[row] += 1
        host[:] = POISON
        used = pack_step(StepUpdate(running, records, entries), host, capacity, words)
        update = torch.from_numpy(host[:used].copy())
        sampled = torch.randint(0, 1000, (batch,), dtype=torch.int64)
        _prepare(step.prepare_step, update.to(device), kernel, capacity)
        _prepare(step.prepare_step_reference, update, reference, capacity)
        _equal(kernel, reference)
        assert reference.outputs[3][: len(running)].tolist() == [lengths[row] for row in running]
        assert (reference.outputs[2][:, len(running) :] == -1).all()
        assert groups == 1 or not torch.equal(reference.outputs[2][0], reference.outputs[2][1])
        assert (reference.outputs[3][len(running) :] == 0).all()
        step.store_tokens(sampled.to(device), step.step_rows(update.to(device), batch), kernel.state[0])
        step.store_tokens_reference(sampled, step.step_rows(update, batch), reference.state[0])
        _equal(kernel, reference)


def test_more_rows_records_and_entries_than_one_pass_takes(device: str) -> None:
    rows, words, max_blocks = step.BATCH_BLOCK + 9, 2, 4
    kernel = Device.make(device, rows, max_blocks, words, rows)
    reference = Device.make("cpu", rows, max_blocks, words, rows)
    records = [Record(row, row % 60, (row, -row), row) for row in range(rows)]
    entries = np.array([(row, index, row * 4 + index) for row in range(rows) for index in range(max_blocks)])
    update = StepUpdate(list(reversed(range(rows))), records, entries)
    host = np.full(words_needed(update, rows, words), POISON, dtype=np.int32)
    assert pack_step(update, host, rows, words) == len(host)
    packed = torch.from_numpy(host)
    _prepare(step.prepare_step, packed.to(device), kernel, rows)
    _prepare(step.prepare_step_reference, packed, reference, rows)
    _equal(kernel, reference)


def test_a_row_past_its_table_writes_no_cache(device: str) -> None:
    """A sequence found to have ended runs one step too many, possibly past the last position that it may have."""
    state = Device.make(device, 2, 2, 0, 1)
    host = np.zeros(64, dtype=np.int32)
    used = pack_step(StepUpdate([1], [Record(1, 2 * BLOCK_SIZE, (), 7)], [(1, 0, 3), (1, 1, 4)]), host, 1, 0)
    packed = torch.from_numpy(host[:used].copy()).to(device)
    _prepare(step.prepare_step, packed, state, 1)
    assert state.outputs[2].tolist() == [[-1]]
    assert state.outputs[3].tolist() == [2 * BLOCK_SIZE + 1]


def test_the_token_sampled_on_the_device_feeds_the_next_step(device: str) -> None:
    state = Device.make(device, 4, 2, 0, 2)
    host = np.zeros(64, dtype=np.int32)
    updates = [
        StepUpdate([2], [Record(2, 5, (), 11)], [(2, 0, 9)]),
        StepUpdate(
            [2, 0], [Record(0, 3)], [(0, 0, 1)]
        ),  # row 0: prompt computed, first token known to the device alone
    ]
    state.state[0][0] = 77
    seen = []
    for update, sampled in zip(updates, [[50, 0], [51, 60]], strict=True):
        used = pack_step(update, host, 2, 0)
        packed = torch.from_numpy(host[:used].copy()).to(device)
        _prepare(step.prepare_step, packed, state, 2)
        seen.append((state.outputs[0].tolist(), state.outputs[1].tolist(), state.outputs[2][0].tolist()))
        step.store_tokens(
            torch.tensor(sampled, dtype=torch.int32, device=device), step.step_rows(packed, 2), state.state[0]
        )
    assert seen == [([11, 0], [5, 0], [9 * 16 + 5, -1]), ([50, 77], [6, 3], [9 * 16 + 6, 16 + 3])]
    assert state.state[0].tolist() == [60, POISON, 51, POISON]


@pytest.mark.parametrize("groups", [1, 3])
def test_block_tables_in_batch_order(device: str, groups: int) -> None:
    tables = torch.randint(0, 99, (groups, 5, step.TABLE_BLOCK + 7), dtype=torch.int32, device=device)
    rows = torch.tensor([3, -1, 0], dtype=torch.int32, device=device)
    lengths = torch.tensor([33, 0, 16 * tables.shape[2]], dtype=torch.int32, device=device)
    room = torch.full((groups, 4, tables.shape[2] + 5), POISON, dtype=torch.int32, device=device)
    out = room[:, :3]  # a part of a buffer for more rows
    expected = out.cpu().clone()
    step.gather_block_tables(rows, lengths, tables, out, BLOCK_SIZE)
    step.gather_block_tables_reference(rows.cpu(), lengths.cpu(), tables.cpu(), expected, BLOCK_SIZE)
    assert torch.equal(out.cpu(), expected) and (room[:, 3] == POISON).all()
    assert (expected[:, 1] == POISON).all()
    assert (expected[:, 0, 3:] == POISON).all()


def test_sampling_parameters_come_back_as_what_they_were(device: str) -> None:
    words = len(SAMPLING_FIELDS)
    state = Device.make(device, 2, 1, words, 1)
    host = np.zeros(64, dtype=np.int32)
    seed = (0xDEADBEEF << 32) + 0xFEEDFACE
    record = Record(1, 0, sampling_words(0.7, 0.95, 0.05, 40, seed, 1.1, -0.5, 0.25), 3)
    used = pack_step(StepUpdate([1], [record], [(1, 0, 0)]), host, 1, words)
    packed = torch.from_numpy(host[:used].copy()).to(device)
    _prepare(step.prepare_step, packed, state, 1)
    columns = dict(zip(SAMPLING_FIELDS, state.outputs[4].cpu(), strict=True))
    for name, value in {"temperature": 0.7, "min_p": 0.05, "presence_penalty": -0.5}.items():
        assert columns[name].view(torch.float32)[0].item() == np.float32(value)
    assert columns["top_k"][0] == 40
    low, high = int(columns["seed_low"][0]), int(columns["seed_high"][0])
    assert ((high & 0xFFFFFFFF) << 32) + (low & 0xFFFFFFFF) == seed


def test_the_packer_refuses_what_does_not_fit() -> None:
    buffer = np.zeros(16, dtype=np.int32)
    with pytest.raises(ValueError, match="3 rows does not fit a buffer for 2"):
        pack_step(StepUpdate([0, 1, 2]), buffer, 2, 0)
    with pytest.raises(ValueError, match="needs 18 words and the buffer has 16"):
        pack_step(StepUpdate([0], entries=[(0, 0, 0)] * 4), buffer, 2, 0)
