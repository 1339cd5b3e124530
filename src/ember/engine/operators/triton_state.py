"""Mixers with a state in Triton's kernels. torch makes nothing of them, so that steps can be recorded.

The slots of states are on the device: those that decodes read and write, and the runs of prompts
(`ember_kernels.state_math`), of which a sequence has a few.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ember.engine.layers.batch import StateRun
from ember.engine.layers.mixers import Convolution, Delta, GatedNorm, Ssd
from ember.engine.operators.triton_step import TritonStep
from ember_kernels.convolution import convolution, convolution_step
from ember_kernels.gated_norm import gated_norm as launch_gated_norm
from ember_kernels.state_chunks import delta_chunks, ssd_chunks
from ember_kernels.state_math import RUNS
from ember_kernels.state_step import delta_step, ssd_step

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


def convolve(conv: Convolution, x: Tensor, state: tuple[int, int], step: TritonStep) -> Tensor:
    """As `operators.base` has it, like the three below."""
    group, layer = state
    windows = step.cache.states[group].windows[layer]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    given = conv.weight, conv.bias, windows
    if (decodes := step.decodes) is not None:
        slots, count = decodes.states, len(decodes.context_lens)
        assert slots is not None, "a model with states has slots of them"
        convolution_step(x[:count], *given, *slots, silu=conv.has_silu, out=out[:count])
    if (chunks := step.chunks) is not None:
        assert chunks.runs is not None
        convolution(x, *given, chunks.starts, chunks.runs, silu=conv.has_silu, out=out)
    return out


def delta_rule(part: Delta, qkv: Tensor, rates: Tensor, step: TritonStep) -> Tensor:
    config, (group, layer) = part.config, part.state
    states = step.cache.states[group].matrices[layer]
    out = qkv.new_empty((len(qkv), config.value_heads, config.value_dim))
    given = part.decay, part.dt_bias, states
    keys: dict[str, Any] = {"key_heads": config.key_heads, "tiled": config.tiled}
    if (decodes := step.decodes) is not None:
        slots, count = decodes.states, len(decodes.context_lens)
        assert slots is not None
        delta_step(qkv[:count], rates[:count], *given, *slots, **keys, out=out[:count])
    if (chunks := step.chunks) is not None:
        assert chunks.runs is not None
        delta_chunks(qkv, rates, *given, chunks.runs, **keys, out=out)
    return out


def scan(part: Ssd, x: Tensor, dt: Tensor, step: TritonStep) -> Tensor:
    config, (group, layer) = part.config, part.state
    states = step.cache.states[group].matrices[layer]
    out = x.new_empty((len(x), config.heads, config.head_dim), dtype=torch.float32)
    given = part.decay, part.dt_bias, part.skip, states
    limits = config.least_dt, config.most_dt
    if (decodes := step.decodes) is not None:
        slots, count = decodes.states, len(decodes.context_lens)
        assert slots is not None
        ssd_step(x[:count], dt[:count], *given, *slots, groups=config.groups, limits=limits, out=out[:count])
    if (chunks := step.chunks) is not None:
        assert chunks.runs is not None
        ssd_chunks(x, dt, *given, chunks.runs, groups=config.groups, limits=limits, out=out)
    return out


def gated_norm(norm: GatedNorm, x: Tensor, gate: Tensor) -> Tensor:
    return launch_gated_norm(x, gate, norm.weight, norm.eps, gate_first=norm.gate_first)
