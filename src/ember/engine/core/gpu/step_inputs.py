"""The inputs of a step's forward pass, in memory at fixed addresses on the device, which graphs read.

The decodes come first in the flat batch, then the tokens of prompt chunks. Both parts may be filled up with padding:
decodes of length 0, chunks without tokens, and tokens with a negative slot. Attention reads all lengths on the device.
The decodes' inputs are made there from the rows' state (`ember_kernels.step`). Those of the chunks come from the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.engine.core.gpu.device_rows import DeviceRows, Row
from ember.engine.core.gpu.step_buffer import StepBuffer
from ember.engine.core.limits import EngineLimits
from ember.engine.core.scheduler import Scheduled
from ember.engine.layers.cache import KVCache
from ember.engine.operators.state_runs import run_rows
from ember.engine.operators.triton_step import Chunks, Decodes, TritonStep
from ember_kernels.state_math import RUNS
from ember_kernels.step import gather_block_tables, prepare_step, step_rows
from ember_kernels.step_update import SAMPLING_FIELDS


@dataclass(frozen=True, slots=True)
class Shape:
    """What the launches of a step depend on. Everything else is read on the device."""

    num_tokens: int  # this and the next two with padding
    num_decodes: int
    num_chunks: int
    max_queries: int  # no chunk has more tokens
    # Where chunks begin and end in the batch, and the lengths of their contexts; empty for a step that is recorded.
    bounds: tuple[int, ...] = ()
    lens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkArrays:
    """The host's part of a step's inputs. A step has `num_tokens` tokens, the decodes' included."""

    tokens: np.ndarray  # [2 + groups, tokens of the chunks]: ids, positions, and slots of each cache group
    sequences: np.ndarray  # [3, chunks + 1]: the first token in the batch and its end; row and context length of each
    starts: list[int]  # [chunks + 1], as in `sequences`
    num_tokens: int
    runs: np.ndarray | None = None  # `state_runs.run_rows` of the chunks, if layers have states

    @classmethod
    def of(cls, chunks: list[Scheduled], rows: list[Row], num_decodes: int, block_size: int) -> ChunkArrays:
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        tokens = np.empty((2 + len(chunks[0].sequence.block_tables), num_tokens), dtype=np.int64)
        starts, ends = [num_decodes], []
        for chunk in chunks:
            sequence, at = chunk.sequence, starts[-1] - num_decodes
            first, end = sequence.num_computed_tokens, sequence.num_computed_tokens + chunk.num_tokens
            own = tokens[:, at : at + chunk.num_tokens]
            own[0] = sequence.token_ids[first:end]
            positions = own[1] = np.arange(first, end)
            pages = positions // block_size
            for table, slots in zip(sequence.block_tables, own[2:], strict=True):
                slots[:] = positions + (np.frombuffer(table, dtype=np.int64)[pages] - pages) * block_size
            ends.append(end)
            starts.append(starts[-1] + chunk.num_tokens)
        sequences = np.array((starts, [*(row.index for row in rows), -1], [*ends, 0]))
        runs = run_rows(starts, [chunk.states for chunk in chunks]) if chunks[0].states else None
        return cls(tokens, sequences, starts, starts[-1], runs)

    def padded(self, num_tokens: int, num_chunks: int) -> ChunkArrays:
        """The same, filled up for a step of so many tokens and chunks. Further chunks begin where the batch ends."""
        tokens = np.zeros((len(self.tokens), num_tokens - self.starts[0]), dtype=np.int64)
        tokens[2:] = -1
        tokens[:, : self.tokens.shape[1]] = self.tokens
        sequences = np.zeros((3, num_chunks + 1), dtype=np.int64)
        sequences[0], sequences[1] = self.num_tokens, -1
        sequences[:, : len(self.starts)] = self.sequences
        runs = None
        if self.runs is not None:
            runs = np.full((3, num_chunks * RUNS + 1), -1, dtype=np.int32)
            runs[0] = self.num_tokens
            runs[:, : self.runs.shape[1]] = self.runs
        return ChunkArrays(tokens, sequences, self.starts, self.num_tokens, runs)

    @property
    def sent(self) -> list[np.ndarray]:
        """What the device needs."""
        return [self.tokens, self.sequences, *([] if self.runs is None else [self.runs])]


class StepInputs:
    """The tensors on the device, and the launches that fill them."""

    def __init__(self, rows: DeviceRows, buffer: StepBuffer, cache: KVCache, limits: EngineLimits) -> None:
        self._rows = rows
        self._buffer = buffer
        self._cache = cache
        device = buffer.words.device
        num_groups, max_rows, max_blocks = rows.block_tables.shape
        # Each row of tokens begins at a multiple of 16 bytes, as kernels expect of pointers.
        max_tokens = -(-limits.max_num_batched_tokens // 2) * 2
        self._tokens = torch.zeros((2 + num_groups, max_tokens), dtype=torch.int64, device=device)
        self._token_ids, self._positions, self._slots = self._tokens[0], self._tokens[1], self._tokens[2:]
        self.decode_lens = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._decode_tables, self._chunk_tables = (
            torch.zeros((num_groups, max_rows, max_blocks), dtype=torch.int32, device=device) for _ in range(2)
        )
        self._chunks = torch.zeros((3, -(-(max_rows + 1) // 4) * 4), dtype=torch.int32, device=device)
        self._has_states = bool(cache.states)
        num_runs = max_rows * RUNS + 1 if self._has_states else 0
        self._runs = torch.zeros((3, -(-num_runs // 4) * 4), dtype=torch.int32, device=device)
        self.sampling = torch.zeros((len(SAMPLING_FIELDS), max_rows), dtype=torch.int32, device=device)

    def prepare(self, num_rows: int, update: Tensor | None = None) -> None:
        """Apply an update to the rows' state, by default that of the buffer, and write the inputs of its first rows."""
        rows = self._rows
        prepare_step(
            self._buffer.update if update is None else update,
            rows.last_tokens,
            rows.positions,
            rows.block_tables,
            rows.sampling,
            self._token_ids[:num_rows],
            self._positions[:num_rows],
            self._slots[:, :num_rows],
            self.decode_lens[:num_rows],
            self.sampling,
            self._buffer.capacity,
            self._cache.block_size,
        )

    def place_chunks(self, num_decodes: int, tokens: Tensor, sequences: Tensor, runs: Tensor | None = None) -> None:
        """Write the inputs of prompt chunks, those of `ChunkArrays.sent`, after so many decodes."""
        self._tokens[:, num_decodes : num_decodes + tokens.shape[1]].copy_(tokens)
        self._chunks[:, : sequences.shape[1]].copy_(sequences)
        if runs is not None:
            self._runs[:, : runs.shape[1]].copy_(runs)

    def clear(self) -> None:
        """Set all inputs to those of a step without sequences."""
        self._buffer.clear()
        self._slots.fill_(-1)
        self.decode_lens.zero_()
        self._chunks.zero_()
        self._runs.zero_()

    def step(self, shape: Shape) -> TritonStep:
        """Launch what makes the block tables in the order of the batch. Returns the step's inputs."""
        decodes = chunks = None
        if shape.num_decodes:
            rows, lens = step_rows(self._buffer.update, shape.num_decodes), self.decode_lens[: shape.num_decodes]
            tables = self._gather(rows, lens, self._decode_tables)
            slots = self._buffer.states[:, : shape.num_decodes] if self._has_states else None
            decodes = Decodes(tables, lens, states=slots)
        if shape.num_chunks:
            starts, (rows, lens) = self._chunks[0, : shape.num_chunks + 1], self._chunks[1:, : shape.num_chunks]
            tables = self._gather(rows, lens, self._chunk_tables)
            runs = self._runs[:, : shape.num_chunks * RUNS + 1] if self._has_states else None
            chunks = Chunks(tables, starts, lens, shape.max_queries, shape.bounds, shape.lens, runs)
        return TritonStep(
            cache=self._cache,
            token_ids=self._token_ids[: shape.num_tokens],
            positions=self._positions[: shape.num_tokens],
            slots=self._slots[:, : shape.num_tokens].unbind(),
            decodes=decodes,
            chunks=chunks,
        )

    def _gather(self, rows: Tensor, lens: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        """The block tables [rows, max_blocks] of each cache group."""
        tables = out[:, : lens.shape[0]]
        gather_block_tables(rows, lens, self._rows.block_tables, tables, self._cache.block_size)
        return tables.unbind()
