"""The slots of states as Triton's kernels take them: those of decodes, and the runs of prompts
(`ember_kernels.state_math`). The host makes them; the kernels are imported by `triton_state` alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

from ember.engine.layers.batch import StateRun
from ember_kernels.state_math import RUNS

Move = tuple[int, int, int]
"""The number of a sequence's next tokens, the slot whose state they begin with, and the one in which they leave it."""


def run_rows(starts: Sequence[int], moves: Sequence[Iterable[Move]]) -> np.ndarray:
    """The runs of sequences, int32 [3, sequences * RUNS + 1]: of each its first token in the batch, the slot that it
    reads, and that it writes. `starts`: the first token of each sequence and the end of the last one."""
    rows = np.full((3, len(moves) * RUNS + 1), -1, dtype=np.int32)
    for i, own in enumerate(moves):
        at = starts[i]
        for run, (num_tokens, read, write) in enumerate(own):
            if run == RUNS:
                raise ValueError(f"a sequence has more than {RUNS} runs in one step")
            rows[:, i * RUNS + run] = at, read, write
            at += num_tokens
        unused = rows[0, i * RUNS : (i + 1) * RUNS]
        unused[unused < 0] = at
    rows[0, -1] = starts[-1]
    return rows


def runs_of_batch(runs: Sequence[StateRun], starts: Sequence[int], num_decodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The slots of decodes, int32 [2, decodes], and the `run_rows` of the other sequences, which begin at `starts`."""
    runs = sorted(runs)
    slots = np.array([(run.read, run.write) for run in runs[:num_decodes]], dtype=np.int32).reshape(-1, 2).T
    moves: list[list[Move]] = [[] for _ in starts[num_decodes:-1]]
    for run in runs[num_decodes:]:
        sequence = bisect_left(starts, run.first + 1) - 1
        moves[sequence - num_decodes].append((run.num_tokens, run.read, run.write))
    return np.ascontiguousarray(slots), run_rows(starts[num_decodes:], moves)
