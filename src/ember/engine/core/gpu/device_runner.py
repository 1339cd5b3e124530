"""The GPU's runner, one step ahead of the host: step n + 1 is launched before the tokens of step n are read.

The rows of running sequences are on the device (`device_rows`). A sampled token stays there and is the input of the
next step there. A step is launched without synchronisation. Its tokens are copied to the host, followed by an event
that the host waits for after it has launched the next step.

A pure decode step is one body of launches over inputs at fixed addresses, so that it can be recorded (`graphs`). A step
with prompt chunks is launched kernel by kernel: decodes first, as in the body, then the chunks' tokens, which the host
sends. Rows whose next token depends on the one before (`row_limits`) are deferred: they are sampled after the host has
read that one, during this step's forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ember.engine.core.gpu import late_rows, row_limits
from ember.engine.core.gpu.accelerator import Accelerator
from ember.engine.core.gpu.device_logprobs import Underway, Wanted
from ember.engine.core.gpu.device_rows import DeviceRows, Row
from ember.engine.core.gpu.graphs import DecodeGraphs
from ember.engine.core.gpu.late_rows import BROKEN, LateDraw, LateRow, LateRows
from ember.engine.core.gpu.row_limits import TABLE_WORD, RowTables
from ember.engine.core.gpu.step_buffer import ENTRIES, Entry, StepBuffer
from ember.engine.core.limits import EngineLimits
from ember.engine.core.runner import SCORED_ROWS, StepResult, is_last_chunk
from ember.engine.core.sampler import Sampled
from ember.engine.core.scheduler import Scheduled
from ember.engine.core.sequence import Sequence
from ember.engine.layers.cache import KVCache
from ember.engine.models.decoder import Decoder
from ember.engine.operators.triton_ops import TritonStep
from ember_kernels.sampling import Workspace, sample
from ember_kernels.step import gather_block_tables, prepare_step, step_rows, store_tokens
from ember_kernels.step_update import SAMPLING_FIELDS, Record


@dataclass(slots=True)
class LaunchedStep:
    """A step on the device. `draw_late` is called when the tokens before it are known, then `result`, which waits."""

    sequences: list[Sequence]  # row i of the logits is that of sequences[i]
    late: list[LateRow]  # deferred rows that are not sampled yet
    token_ids: Tensor  # [rows] int64 on the host, valid after `wait`
    wait: Callable[[], None]
    draw: Callable[[LaunchedStep], None]
    logprobs: Underway | None = None
    prompts: list[tuple[Sequence, int, Underway]] = field(default_factory=list)  # with the first scored position
    late_draw: LateDraw | None = None
    given_up: set[int] = field(default_factory=set)  # rows whose masks were late

    def draw_late(self) -> list[Sequence]:
        """Sample the deferred rows. Returns the sequences whose masks are late."""
        if self.late:
            self.draw(self)
        undrawn = [] if self.late_draw is None else self.late_draw.undrawn
        self.given_up = {row for row, _ in undrawn}
        return [held.sequence for _, held in undrawn]

    def give_up_late(self) -> Sequence | None:
        """Give up one deferred row, that of the longest sequence."""
        if not self.late:
            return None
        longest = max(self.late, key=lambda late: late[1].sequence.num_tokens)
        self.late.remove(longest)
        return longest[1].sequence

    def result(self) -> StepResult:
        """Wait for the step and return its tokens. Sequences get the log probabilities of their prompts' chunks."""
        self.wait()
        for sequence, first, underway in self.prompts:
            known = sequence.prompt_logprobs or [None]  # the first token has none
            if len(known) >= first:  # otherwise the sequence was preempted, and the chunk is computed again
                sequence.prompt_logprobs = known[:first] + [entry for _, entry in sorted(underway.read().items())]
        token_ids: list[int] = self.token_ids.tolist()
        errors: dict[int, str] = {}
        logprobs = {} if self.logprobs is None else self.logprobs.read()
        if self.late_draw is not None:
            self.late_draw.read(token_ids, errors)
            if self.late_draw.logprobs is not None:
                logprobs |= self.late_draw.logprobs.read()
        is_broken = [token_id == BROKEN for token_id in token_ids]
        result = StepResult.of(self.sequences, Sampled(token_ids, is_broken, logprobs, errors))
        result.given_up = self.given_up
        return result


class DeviceRunner:
    """Runs the model with its cache and rows on one device, for decoders whose forward pass runs in kernels."""

    runs_ahead = True
    options = row_limits.OPTIONS | late_rows.OPTIONS | {"logprobs", "logprob_token_ids", "prompt_logprobs"}

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        device: torch.device,
        limits: EngineLimits,
        *,
        enforce_eager: bool = False,
    ) -> None:
        assert model.ops.is_recordable
        self.model = model
        self.cache = cache
        self.device = device
        self.limits = limits
        max_num_seqs, max_num_batched_tokens = limits.max_num_seqs, limits.max_num_batched_tokens
        self.accelerator = accelerator = Accelerator(device)
        config = model.config
        vocab_size, max_blocks = config.vocab_size, -(-limits.max_model_len // cache.block_size)
        self.tables = RowTables(max_num_seqs, vocab_size, config.eos_token_ids, accelerator)
        num_groups = len(model.parts.groups())
        self.rows = DeviceRows(max_num_seqs, num_groups, max_blocks, accelerator, self.tables)
        self.buffer = StepBuffer(max_num_seqs, max_num_batched_tokens, num_groups, accelerator)
        self.workspace = Workspace.create(max_num_seqs, vocab_size, device)
        # The step's inputs and outputs, at addresses that graphs use.
        self._token_ids, self._positions = (
            torch.zeros(max_num_batched_tokens, dtype=torch.int64, device=device) for _ in range(2)
        )
        # Each group's slots begin at a multiple of 16 bytes, as kernels expect of pointers.
        self._slots = torch.zeros((num_groups, -(-max_num_batched_tokens // 2) * 2), dtype=torch.int64, device=device)
        self._seq_lens = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self._tables = torch.zeros((num_groups, max_num_seqs, max_blocks), dtype=torch.int32, device=device)
        self._sampling = torch.zeros((len(SAMPLING_FIELDS), max_num_seqs), dtype=torch.int32, device=device)
        self._limits = torch.zeros((2, max_num_seqs), dtype=torch.int32, device=device)  # rows of tables and masks
        self._no_starts = torch.zeros(1, dtype=torch.int32, device=device)
        self.logits = torch.zeros((max_num_seqs, vocab_size), dtype=model.dtype, device=device)
        self._drawn = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._broken = torch.tensor(BROKEN, device=device)
        self.late_rows = LateRows(self.tables, self.logits, self.rows.last_tokens, self.workspace, accelerator)
        self.graphs = DecodeGraphs(
            self._decode_body, self.buffer.clear, 0 if enforce_eager else max_num_seqs, accelerator
        )

    @torch.inference_mode()
    def launch(self, step: list[Scheduled]) -> LaunchedStep:
        """Launch one step. Raises torch.OutOfMemoryError; the step may then be scheduled again."""
        decodes = [s.sequence for s in step if s.num_tokens == 1 and is_last_chunk(s)]
        chunks = [s for s in step if s.num_tokens != 1 or not is_last_chunk(s)]
        sequences = decodes + [chunk.sequence for chunk in chunks if is_last_chunk(chunk)]
        try:
            return self._launch(sequences, len(decodes), chunks)
        except RuntimeError:
            self.rows.distrust([scheduled.sequence for scheduled in step])
            raise

    def _launch(self, sequences: list[Sequence], num_decodes: int, chunks: list[Scheduled]) -> LaunchedStep:
        """Launch a step in which `sequences` get a token, the decodes first."""
        rows = [self.rows.row_of(sequence) for sequence in sequences]
        prompts = self._launch_mixed(rows, num_decodes, chunks) if chunks else self._launch_decodes(rows)
        late = [(i, row) for i, row in enumerate(rows) if row.limits.is_late]
        tokens = self.accelerator.download(self._drawn[: len(sequences)])
        launched = LaunchedStep(sequences, late, tokens, _not_marked, self._draw_late, prompts=prompts)
        wanted = [
            Wanted(i, i, sequence.sampling.logprobs, sequence.sampling.logprob_token_ids)
            for i, (sequence, row) in enumerate(zip(sequences, rows, strict=True))
            if sequence.sampling.logprobs is not None and not row.limits.is_late
        ]
        if wanted:
            launched.logprobs = Underway(self.logits, self.workspace.token_ids, wanted, self.accelerator)
        launched.wait = self.accelerator.mark()
        return launched

    @torch.inference_mode()
    def record_next(self, is_idle: bool) -> bool:
        """Record a part of a graph, as a chore: see `core.chores.Chore`. Returns whether more is left."""
        return self.graphs.record_next(is_idle)

    def _launch_decodes(self, rows: list[Row]) -> list[tuple[Sequence, int, Underway]]:
        records, entries = self._changes(rows, len(rows))
        self._send([row.index for row in rows], records, entries)
        size = self.graphs.size_for(len(rows))
        if size is not None:
            self.graphs.launch(size)
        else:
            started = time.perf_counter()
            longest = max(row.sequence.num_computed_tokens for row in rows) + 1
            self._decode_body(len(rows), longest)
            self.graphs.observe_eager(time.perf_counter() - started)
        return []

    def _decode_body(self, num_rows: int, longest: int | None = None) -> None:
        """A decode step of the first rows in the buffer, padding included; no context is longer than `longest`."""
        self._prepare(num_rows)
        rows = step_rows(self.buffer.words, num_rows)
        self._gather_tables(rows, num_rows)
        inputs = TritonStep(
            cache=self.cache,
            token_ids=self._token_ids[:num_rows],
            positions=self._positions[:num_rows],
            slots=self._slots[:, :num_rows].unbind(),
            num_decodes=num_rows,
            block_tables=self._tables[:, :num_rows].unbind(),
            context_lens=self._seq_lens[:num_rows],
            starts=self._no_starts,
            max_context=self.limits.max_model_len if longest is None else longest,
            max_queries=1,
        )
        hidden = self.model.run(inputs)
        self._draw(hidden, self._seq_lens[:num_rows], rows)

    def _launch_mixed(
        self, rows: list[Row], num_decodes: int, chunks: list[Scheduled]
    ) -> list[tuple[Sequence, int, Underway]]:
        """Decodes (the first of `rows`) and prompt chunks; `rows` are those that get a token."""
        block_size = self.cache.block_size
        records, entries = self._changes(rows, num_decodes)
        token_ids, positions, ends = [], [], []
        slots: list[list[np.ndarray]] = [[] for _ in self._slots]  # by group
        starts = [num_decodes]
        chunk_rows = []
        for chunk in chunks:
            sequence = chunk.sequence
            row = self.rows.row_of(sequence)
            entries += self.rows.new_blocks(row)
            chunk_rows.append(row.index)
            first = sequence.num_computed_tokens
            at = np.arange(first, first + chunk.num_tokens)
            token_ids.append(np.array(sequence.token_ids[first : first + chunk.num_tokens]))
            positions.append(at)
            for found, table in zip(slots, sequence.block_tables, strict=True):
                blocks = np.frombuffer(table, dtype=np.int64)
                found.append(blocks[at // block_size] * block_size + at % block_size)
            ends.append(first + chunk.num_tokens)
            starts.append(starts[-1] + chunk.num_tokens)
        last = [starts[i + 1] - 1 for i, chunk in enumerate(chunks) if is_last_chunk(chunk)]
        decode_rows = [row.index for row in rows[:num_decodes]]
        contexts = [row.sequence.num_computed_tokens + 1 for row in rows[:num_decodes]] + ends
        arrays = [
            *map(np.concatenate, (token_ids, positions, *slots)),
            np.array(starts),
            np.array(ends),
            np.array(decode_rows + chunk_rows),
            np.array([row.index for row in rows], dtype=np.int64),
            np.array([*range(num_decodes), *last], dtype=np.int64),
            np.array([row.sequence.num_tokens + row.sequence.num_pending for row in rows], dtype=np.int64),
        ]
        sent = self._send(decode_rows, records, entries, arrays)
        (tokens, places, *slots_sent), sent = sent[: 2 + len(slots)], sent[2 + len(slots) :]
        starts_sent, ends_sent, all_rows, drawn_rows, drawn_from, draw_positions = sent
        total, num_sequences = starts[-1], num_decodes + len(chunks)
        self._prepare(num_decodes)
        self._token_ids[num_decodes:total].copy_(tokens)
        self._positions[num_decodes:total].copy_(places)
        for target, source in zip(self._slots, slots_sent, strict=True):
            target[num_decodes:total].copy_(source)
        seq_lens = torch.cat((self._seq_lens[:num_decodes], ends_sent))
        tables = self._tables.new_empty((len(slots), num_sequences, self._tables.shape[2]))
        gather_block_tables(all_rows, seq_lens, self.rows.block_tables, tables, block_size)
        inputs = TritonStep(
            cache=self.cache,
            token_ids=self._token_ids[:total],
            positions=self._positions[:total],
            slots=self._slots[:, :total].unbind(),
            num_decodes=num_decodes,
            block_tables=tables.unbind(),
            context_lens=seq_lens,
            starts=starts_sent,
            max_context=max(contexts),
            max_queries=max(chunk.num_tokens for chunk in chunks),
        )
        hidden = self.model.run(inputs)
        prompts = self._score_prompts(chunks, starts, hidden)
        if rows:
            words = self.rows.sampling.index_select(0, drawn_rows)
            self._sampling[:, : len(rows)].copy_(words.t())
            self._draw(hidden.index_select(0, drawn_from), draw_positions, drawn_rows)
        return prompts

    def _changes(self, rows: list[Row], num_decodes: int) -> tuple[list[Record], list[Entry]]:
        """The records to send: for decodes whose state on the device is outdated, and for prompts at their end."""
        records = []
        entries: list[Entry] = []
        for i, row in enumerate(rows):
            entries += self.rows.new_blocks(row)
            record = self.rows.decode_record(row) if i < num_decodes else self.rows.prompt_record(row)
            if record is not None:
                records.append(record)
        return records, entries

    def _send(
        self, rows: list[int], records: list[Record], entries: list[Entry], arrays: Iterable[np.ndarray] = ()
    ) -> list[Tensor]:
        """Send the step's update and arrays. If many long prompts are scheduled at once, their pages are sent
        before."""
        while len(entries) > ENTRIES:
            self._prepare(0, self.buffer.pack_alone(entries[:ENTRIES]))
            entries = entries[ENTRIES:]
        return self.buffer.send(rows, records, entries, arrays)

    def _prepare(self, num_rows: int, update: Tensor | None = None) -> None:
        """Apply an update, by default that of the buffer, and write the inputs of its first rows."""
        rows = self.rows
        prepare_step(
            self.buffer.words if update is None else update,
            rows.last_tokens,
            rows.positions,
            rows.block_tables,
            rows.sampling,
            self._token_ids[:num_rows],
            self._positions[:num_rows],
            self._slots[:, :num_rows],
            self._seq_lens[:num_rows],
            self._sampling,
            self.buffer.capacity,
            self.cache.block_size,
        )

    def _gather_tables(self, rows: Tensor, num_rows: int) -> None:
        tables = self._tables[:, :num_rows]
        gather_block_tables(rows, self._seq_lens[:num_rows], self.rows.block_tables, tables, self.cache.block_size)

    def _draw(self, hidden: Tensor, positions: Tensor, rows: Tensor) -> None:
        """Sample a token for each of `hidden` [rows, hidden] and store it in its row for the next step."""
        num_rows = len(hidden)
        logits = self.logits[:num_rows]
        logits.copy_(self.model.logits(hidden))
        limits = self._limits[:, :num_rows]
        torch.sub(self._sampling[TABLE_WORD : TABLE_WORD + 2, :num_rows], 1, out=limits)
        tokens, is_broken = sample(
            logits,
            self._sampling,
            positions,
            slots=limits[0],
            constraints=self.tables.constraints(self.tables.masks, limits[1]),
            workspace=self.workspace,
        )
        torch.where(is_broken, self._broken, tokens, out=self._drawn[:num_rows])
        store_tokens(tokens, rows, self.rows.last_tokens)

    @torch.inference_mode()
    def _draw_late(self, launched: LaunchedStep) -> None:
        try:
            launched.late_draw = self.late_rows.draw(launched.late)
            wait = self.accelerator.mark()
        except RuntimeError:
            launched.late_draw = None
            self.rows.recount([row for _, row in launched.late])
            raise
        launched.late, launched.wait = [], wait

    def _score_prompts(
        self, chunks: list[Scheduled], starts: list[int], hidden: Tensor
    ) -> list[tuple[Sequence, int, Underway]]:
        """The log probabilities of the prompt tokens after the chunks' tokens, if requested."""
        scored = []
        for chunk, start in zip(chunks, starts, strict=False):
            sequence = chunk.sequence
            count = sequence.sampling.prompt_logprobs
            if count is None or sequence.is_prefilled:
                continue
            first = sequence.num_computed_tokens + 1
            targets = sequence.token_ids[first : min(first + chunk.num_tokens, sequence.num_prompt_tokens)]
            for at in range(0, len(targets), SCORED_ROWS):
                piece = targets[at : at + SCORED_ROWS]
                logits = self.model.logits(hidden[start + at : start + at + len(piece)])
                wanted = [Wanted(i, i, count, []) for i in range(len(piece))]
                underway = Underway(logits, self.accelerator.upload(piece), wanted, self.accelerator)
                scored.append((sequence, first + at, underway))
        return scored


def _not_marked() -> None:
    """The wait function of a step whose event was not recorded yet."""
    raise AssertionError("a step was read before it was launched in full")
