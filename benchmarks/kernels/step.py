"""Step preparation: its time at several batch sizes, with the update of an ordinary decode step.

python -m benchmarks.kernels.step
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.kernels.common import Ceilings, Row, main, measure_graph

BLOCK_SIZE = 16
CAPACITY = 512
MAX_BLOCKS = 40960 // BLOCK_SIZE


def cases() -> Iterator[tuple[str, int, int, int, int]]:
    """(name, batch, cache groups, new rows, block entries): a new block every 16 steps for each row, an admission now
    and then."""
    for batch in (1, 16, 64, 256, 512):
        yield f"batch {batch}", batch, 1, 1, -(-batch // BLOCK_SIZE)
    yield "batch 256, 64 new rows of 1k tokens", 256, 1, 64, 64 * 64
    yield "batch 256, 7 cache groups", 256, 7, 1, 7 * (256 // BLOCK_SIZE)


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels import step
    from ember_kernels.step_update import SAMPLING_FIELDS, Record, StepUpdate, pack_step, words_needed

    words = len(SAMPLING_FIELDS)
    for name, batch, groups, new, entries in cases():
        update = StepUpdate(
            range(batch),
            [Record(row, 1000, [0] * words) for row in range(new)],
            [(i % batch, i // batch, i) for i in range(entries)],
        )
        host = np.zeros(words_needed(update, CAPACITY, words), dtype=np.int32)
        pack_step(update, host, CAPACITY, words)
        packed = torch.from_numpy(host).cuda()
        integers = partial(torch.zeros, dtype=torch.int32, device="cuda")
        last_tokens, positions = integers(CAPACITY), integers(CAPACITY)
        tables, sampling = integers(groups, CAPACITY, MAX_BLOCKS), integers(CAPACITY, words)
        token_ids, positions_out = (torch.zeros(batch, dtype=torch.int64, device="cuda") for _ in range(2))
        slots = torch.zeros((groups, batch), dtype=torch.int64, device="cuda")
        seq_lens = integers(batch)
        sampling_out, tables_out = integers(words, CAPACITY), integers(groups, CAPACITY, MAX_BLOCKS)
        step_rows = step.step_rows(packed, batch)

        prepare = partial(
            step.prepare_step,
            *(packed, last_tokens, positions, tables, sampling),
            *(token_ids, positions_out, slots, seq_lens, sampling_out),
            CAPACITY,
            BLOCK_SIZE,
        )
        moved = 4.0 * (len(host) * 2 + batch * (10 + 3 * groups + 2 * words))
        yield Row("prepare_step", name, measure_graph(prepare), moved)
        lengths = torch.full((batch,), 1000, dtype=torch.int32, device="cuda")
        gather = partial(step.gather_block_tables, step_rows, lengths, tables, tables_out, BLOCK_SIZE)
        moved = 8.0 * groups * batch * -(-1000 // BLOCK_SIZE)
        yield Row("gather_block_tables", f"{name}, 1000 tokens each", measure_graph(gather), moved)
        sampled = torch.zeros(batch, dtype=torch.int64, device="cuda")
        store = partial(step.store_tokens, sampled, step_rows, last_tokens)
        yield Row("store_tokens", name, measure_graph(store), 16.0 * batch)


if __name__ == "__main__":
    main(run)
