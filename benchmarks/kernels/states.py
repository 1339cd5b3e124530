"""Layers with states: decodes on cold states, and prompts, with the heads of published models.

The bytes of a decode are those of the states (or windows) read and written, and of its inputs. Those of a prompt are
the inputs and outputs; its FLOPs are those of the chunks' products. `python -m benchmarks.kernels.states`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.kernels.common import Ceilings, Row, main, measure_graph


class Heads(NamedTuple):
    """The sizes of one layer's states."""

    heads: int
    keys: int  # key heads, or groups
    rows: int  # of the state of a head
    columns: int
    is_delta: bool

    @property
    def channels(self) -> int:
        return 2 * self.keys * self.rows + self.heads * self.columns


MODELS = {
    "Qwen3.5 0.8B": Heads(16, 16, 128, 128, True),
    "Qwen3-Next": Heads(32, 16, 128, 128, True),
    "Mamba 2 2.7B": Heads(80, 1, 128, 64, False),
}
BATCHES = (1, 16, 64, 256)
PROMPTS = (1024, 8192)
WINDOW, CHUNK = 3, 64


def _numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="cuda").normal_()


def _integers(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device="cuda")


def run(ceilings: Ceilings) -> Iterator[Row]:
    for name, heads in MODELS.items():
        for seqs in BATCHES:
            yield from _decodes(name, heads, seqs)
        for tokens in PROMPTS:
            yield from _prompts(name, heads, tokens)
    yield from _selective()


def _selective() -> Iterator[Row]:
    """Mamba 1 with the channels of Falcon Mamba 7B. A prompt's bytes are its inputs and outputs, and each of its FLOPs
    is one of seven for each number of a state and token."""
    from ember_kernels.selective_scan import selective_chunks, selective_step

    inner, rows, name = 8192, 16, "Falcon Mamba 7B"
    numbers = -_numbers(rows, inner, dtype=torch.float32).abs(), _numbers(inner, dtype=torch.float32)
    for tokens in (*BATCHES, *PROMPTS):
        is_prompt = tokens in PROMPTS
        given = _numbers(tokens, inner), _numbers(tokens, inner), _numbers(tokens, rows), _numbers(tokens, rows)
        states = _numbers(1 if is_prompt else tokens, 1, rows, inner, dtype=torch.float32)
        out = _numbers(tokens, inner, dtype=torch.float32)
        if is_prompt:
            runs = _integers([[0, tokens, tokens, tokens], [-1] * 4, [0, -1, -1, -1]])
            seconds = measure_graph(partial(selective_chunks, *given, *numbers, states, runs, out=out))
            flops = 7.0 * tokens * rows * inner
            yield Row("selective_chunks", f"{name} {tokens}", seconds, 8.0 * tokens * inner, flops)
        else:
            reads, writes = _integers([list(range(tokens))] * 2).unbind()
            seconds = measure_graph(partial(selective_step, *given, *numbers, states, reads, writes, out=out))
            yield Row("selective_step", f"{name} {tokens}", seconds, 8.0 * states.numel() + 8.0 * tokens * inner)


def _decodes(name: str, heads: Heads, seqs: int) -> Iterator[Row]:
    from ember_kernels.convolution import convolution_step
    from ember_kernels.state_step import delta_step, ssd_step

    x, slots = _numbers(seqs, heads.channels), _integers([list(range(seqs))] * 2).unbind()
    weight = _numbers(WINDOW + 1, heads.channels, dtype=torch.float32)
    windows = _numbers(seqs, WINDOW, heads.channels, dtype=torch.float32)
    made = torch.empty_like(x)
    bias = None if heads.is_delta else weight[0]
    seconds = measure_graph(partial(convolution_step, x, weight, bias, windows, *slots, silu=True, out=made))
    yield Row("convolution_step", f"{name} {seqs}", seconds, 8.0 * windows.numel() + 4.0 * x.numel())
    states = _numbers(seqs, heads.heads, heads.rows, heads.columns, dtype=torch.float32)
    moved = 8.0 * states.numel() + 2.0 * x.numel()
    numbers = -_numbers(3, heads.heads, dtype=torch.float32).abs()
    out = _numbers(seqs, heads.heads, heads.columns, dtype=torch.bfloat16 if heads.is_delta else torch.float32)
    if heads.is_delta:
        given = x, _numbers(seqs, 2 * heads.heads), numbers[0], numbers[1], states, *slots
        seconds = measure_graph(partial(delta_step, *given, key_heads=heads.keys, out=out))
        yield Row("delta_step", f"{name} {seqs}", seconds, moved)
    else:
        scanned = x, _numbers(seqs, heads.heads), *numbers, states, *slots
        limits = (0.0, float("inf"))
        seconds = measure_graph(partial(ssd_step, *scanned, groups=heads.keys, limits=limits, out=out))
        yield Row("ssd_step", f"{name} {seqs}", seconds, moved)


def _prompts(name: str, heads: Heads, tokens: int) -> Iterator[Row]:
    from ember_kernels.convolution import convolution
    from ember_kernels.delta_chunks import delta_chunks
    from ember_kernels.ssd_chunks import ssd_chunks

    x, starts = _numbers(tokens, heads.channels), _integers([[0, tokens]])[0]
    runs = _integers([[0, tokens, tokens, tokens], [-1] * 4, [0, -1, -1, -1]])
    weight = _numbers(WINDOW + 1, heads.channels, dtype=torch.float32)
    windows = _numbers(1, WINDOW, heads.channels, dtype=torch.float32)
    made = torch.empty_like(x)
    bias = None if heads.is_delta else weight[0]
    seconds = measure_graph(partial(convolution, x, weight, bias, windows, starts, runs, silu=True, out=made))
    yield Row("convolution", f"{name} {tokens}", seconds, 4.0 * x.numel())
    states = _numbers(1, heads.heads, heads.rows, heads.columns, dtype=torch.float32)
    out = _numbers(tokens, heads.heads, heads.columns, dtype=torch.bfloat16 if heads.is_delta else torch.float32)
    moved = 2.0 * x.numel() + out.numel() * out.element_size()
    flops = 2.0 * heads.columns * (CHUNK + 2 * heads.rows) + 2.0 * CHUNK * heads.rows
    numbers = -_numbers(3, heads.heads, dtype=torch.float32).abs()
    if heads.is_delta:
        flops += 2.0 * heads.columns * (CHUNK + heads.rows) + 4.0 * CHUNK * heads.rows
        given = x, _numbers(tokens, 2 * heads.heads), numbers[0], numbers[1], states, runs
        seconds = measure_graph(partial(delta_chunks, *given, key_heads=heads.keys, out=out))
        yield Row("delta_chunks", f"{name} {tokens}", seconds, moved, flops * tokens * heads.heads)
    else:
        scanned = x, _numbers(tokens, heads.heads), *numbers, states, runs
        limits = (0.0, float("inf"))
        seconds = measure_graph(partial(ssd_chunks, *scanned, groups=heads.keys, limits=limits, out=out))
        yield Row("ssd_chunks", f"{name} {tokens}", seconds, moved, flops * tokens * heads.heads)


if __name__ == "__main__":
    main(run)
