"""The GPU's runner, one step ahead of the host: step n + 1 is launched before the tokens of step n are read.

The rows of running sequences are on the device (`device_rows`). A sampled token stays there and is the input of the
next step there. A step is launched without synchronisation. Its tokens are copied to the host, followed by an event
that the host waits for after it has launched the next step.

A pure decode step is one body of launches over inputs at fixed addresses (`step_inputs`), so that it can be recorded
(`graphs`). Of a step with prompt chunks only the forward pass is: the host sends the chunks' tokens before it, and the
rows that get a token are sampled after it. Rows whose next token depends on the one before (`row_limits`) are deferred:
they are sampled after the host has read that one, during this step's forward pass.
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
from ember.engine.core.gpu.graph_sizes import DECODE, MAX_CHUNKS, MIXED
from ember.engine.core.gpu.graphs import StepGraphs, record_next
from ember.engine.core.gpu.late_rows import BROKEN, LateDraw, LateRow, LateRows
from ember.engine.core.gpu.row_limits import TABLE_WORD, RowTables
from ember.engine.core.gpu.step_buffer import ENTRIES, Entry, StepBuffer
from ember.engine.core.gpu.step_inputs import ChunkArrays, Shape, StepInputs
from ember.engine.core.limits import EngineLimits
from ember.engine.core.runner import SCORED_ROWS, StepResult, is_last_chunk
from ember.engine.core.sampler import Sampled
from ember.engine.core.scheduler import Scheduled
from ember.engine.core.sequence import Sequence
from ember.engine.description.expansion import expands
from ember.engine.layers.cache import KVCache
from ember.engine.models.decoder import Decoder
from ember_kernels.sampling import Workspace, sample
from ember_kernels.step import step_rows, store_tokens
from ember_kernels.step_update import Record


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
        num_groups = max(len(model.parts.groups()), 1)  # without attention, pages hold nothing
        self.rows = DeviceRows(max_num_seqs, num_groups, max_blocks, accelerator, self.tables)
        has_states = bool(cache.states)
        self.buffer = StepBuffer(max_num_seqs, max_num_batched_tokens, num_groups, accelerator, has_states)
        self.workspace = Workspace.create(max_num_seqs, vocab_size, device)
        self.inputs = StepInputs(self.rows, self.buffer, cache, limits)
        self._limits = torch.zeros((2, max_num_seqs), dtype=torch.int32, device=device)  # rows of tables and masks
        self.logits = torch.zeros((max_num_seqs, vocab_size), dtype=model.dtype, device=device)
        self._drawn = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._broken = torch.tensor(BROKEN, device=device)
        self.late_rows = LateRows(self.tables, self.logits, self.rows.last_tokens, self.workspace, accelerator)
        decode_sizes = [] if enforce_eager else DECODE.sizes_up_to(max_num_seqs)
        mixed_sizes = [] if enforce_eager else MIXED.sizes_up_to(max_num_batched_tokens)
        self.decode_graphs = StepGraphs(DECODE, decode_sizes, self._decode_body, self.inputs.clear, accelerator)
        self.mixed_graphs = StepGraphs(MIXED, mixed_sizes, self._mixed_body, self.inputs.clear, accelerator)
        self._max_mixed_tokens = mixed_sizes[-1] if mixed_sizes else 0
        self._max_chunks = min(MAX_CHUNKS, max_num_seqs)
        # What a recorded step with prompt chunks leaves for the launches after it.
        self._hidden = torch.zeros((self._max_mixed_tokens, config.hidden_size), dtype=model.dtype, device=device)

    @torch.inference_mode()
    def launch(self, step: list[Scheduled]) -> LaunchedStep:
        """Launch one step. Raises torch.OutOfMemoryError; the step may then be scheduled again."""
        decodes: list[Scheduled] = []
        chunks: list[Scheduled] = []
        for scheduled in step:
            (decodes if scheduled.num_tokens == 1 and is_last_chunk(scheduled) else chunks).append(scheduled)
        if self.model.config.latent is not None:
            chunks.sort(key=lambda chunk: chunk.num_tokens)  # those whose keys are expanded come last
        sequences = [scheduled.sequence for scheduled in decodes]
        sequences += [chunk.sequence for chunk in chunks if is_last_chunk(chunk)]
        states = [(move.read, move.write) for scheduled in decodes for move in scheduled.states]
        try:
            return self._launch(sequences, len(decodes), chunks, states)
        except RuntimeError:
            self.rows.distrust([scheduled.sequence for scheduled in step])
            raise

    def _launch(
        self, sequences: list[Sequence], num_decodes: int, chunks: list[Scheduled], states: list[tuple[int, int]]
    ) -> LaunchedStep:
        """Launch a step in which `sequences` get a token, the decodes first. `states`: slots of the decodes' states, to
        read and to write."""
        rows = [self.rows.row_of(sequence) for sequence in sequences]
        if chunks:
            prompts = self._launch_mixed(rows, num_decodes, chunks, states)
        else:
            prompts = self._launch_decodes(rows, states)
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
        return record_next((self.decode_graphs, self.mixed_graphs), is_idle)

    def _launch_decodes(self, rows: list[Row], states: list[tuple[int, int]]) -> list[tuple[Sequence, int, Underway]]:
        records, entries = self._changes(rows, len(rows))
        self._send([row.index for row in rows], records, entries, states)
        size = self.decode_graphs.size_for(len(rows))
        if size is not None:
            self.decode_graphs.launch(size)
        else:
            started = time.perf_counter()
            self._decode_body(len(rows))
            self.decode_graphs.observe_eager(time.perf_counter() - started)
        return []

    def _decode_body(self, num_rows: int) -> None:
        """A decode step of the first rows in the buffer, padding included."""
        inputs = self.inputs
        inputs.prepare(num_rows)
        hidden = self.model.run(inputs.step(Shape(num_rows, num_rows, num_chunks=0, max_queries=1)))
        self._draw(hidden, inputs.decode_lens[:num_rows], step_rows(self.buffer.update, num_rows))

    def _launch_mixed(
        self, rows: list[Row], num_decodes: int, chunks: list[Scheduled], states: list[tuple[int, int]]
    ) -> list[tuple[Sequence, int, Underway]]:
        """Decodes (the first of `rows`) and prompt chunks; `rows` are those that get a token."""
        records, entries = self._changes(rows, num_decodes)
        chunk_rows = [self.rows.row_of(chunk.sequence) for chunk in chunks]
        for row in chunk_rows:
            entries += self.rows.new_blocks(row)
        arrays = ChunkArrays.of(chunks, chunk_rows, num_decodes, self.cache.block_size)
        is_short = arrays.num_tokens <= self._max_mixed_tokens and len(chunks) <= self._max_chunks
        if is_short and self.model.config.latent is not None:  # which memory expanded keys take is decided on the host
            is_short = not any(expands(self.model.config.latent, chunk.num_tokens) for chunk in chunks)
        size = self.mixed_graphs.size_for(arrays.num_tokens) if is_short else None
        if size is not None:
            arrays = arrays.padded(size, self._max_chunks)
        last = [arrays.starts[i + 1] - 1 for i, chunk in enumerate(chunks) if is_last_chunk(chunk)]
        drawn = np.zeros((3, -(-len(rows) // 4) * 4), dtype=np.int64)  # rows of whole 16 bytes
        drawn[0, : len(rows)] = [row.index for row in rows]
        drawn[1, : len(rows)] = [*range(num_decodes), *last]
        drawn[2, : len(rows)] = [row.sequence.num_tokens + row.sequence.num_pending for row in rows]
        decode_rows = [row.index for row in rows[:num_decodes]]
        *sent, drawn_on_device = self._send(decode_rows, records, entries, states, (*arrays.sent, drawn))
        started = time.perf_counter()
        self.inputs.prepare(num_decodes if size is None else min(size, self.limits.max_num_seqs))
        self.inputs.place_chunks(num_decodes, *sent)
        if size is not None:
            self.mixed_graphs.launch(size)
            hidden = self._hidden
        else:
            most_queries = max(chunk.num_tokens for chunk in chunks)
            lens = tuple(chunk.sequence.num_computed_tokens + chunk.num_tokens for chunk in chunks)
            shape = Shape(arrays.num_tokens, num_decodes, len(chunks), most_queries, tuple(arrays.starts), lens)
            hidden = self.model.run(self.inputs.step(shape))
            if is_short:
                self.mixed_graphs.observe_eager(time.perf_counter() - started)
        prompts = self._score_prompts(chunks, arrays.starts, hidden)
        if rows:
            drawn_rows, drawn_from, positions = drawn_on_device[:, : len(rows)]
            words = self.rows.sampling.index_select(0, drawn_rows)
            self.inputs.sampling[:, : len(rows)].copy_(words.t())
            self._draw(hidden.index_select(0, drawn_from), positions, drawn_rows)
        return prompts

    def _mixed_body(self, num_tokens: int) -> None:
        """The forward pass of a step with prompt chunks, of so many tokens with padding. What it draws is launched
        after it, for exactly the rows that get a token."""
        num_decodes = min(num_tokens, self.limits.max_num_seqs)
        shape = Shape(num_tokens, num_decodes, self._max_chunks, max_queries=num_tokens)
        self._hidden[:num_tokens].copy_(self.model.run(self.inputs.step(shape)))

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
        self,
        rows: list[int],
        records: list[Record],
        entries: list[Entry],
        states: list[tuple[int, int]],
        arrays: Iterable[np.ndarray] = (),
    ) -> list[Tensor]:
        """Send the step's update, the slots of the decodes' states, and arrays. If many long prompts are scheduled at
        once, their pages are sent before."""
        while len(entries) > ENTRIES:
            self.inputs.prepare(0, self.buffer.pack_alone(entries[:ENTRIES]))
            entries = entries[ENTRIES:]
        return self.buffer.send(rows, records, entries, arrays, states)

    def _draw(self, hidden: Tensor, positions: Tensor, rows: Tensor) -> None:
        """Sample a token for each of `hidden` [rows, hidden] and store it in its row for the next step."""
        num_rows = len(hidden)
        logits = self.logits[:num_rows]
        logits.copy_(self.model.logits(hidden))
        limits = self._limits[:, :num_rows]
        torch.sub(self.inputs.sampling[TABLE_WORD : TABLE_WORD + 2, :num_rows], 1, out=limits)
        tokens, is_broken = sample(
            logits,
            self.inputs.sampling,
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
