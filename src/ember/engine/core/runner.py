"""The runner: it executes the scheduler's steps. It builds the flat batch, runs the model, and samples."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ember.engine.core.grammars.masks import MaskFiller
from ember.engine.core.sampler import OPTIONS, Sampled, describe_token, sample
from ember.engine.core.scheduler import Scheduled
from ember.engine.core.sequence import Sequence
from ember.engine.description.config import DecoderConfig
from ember.engine.layers.batch import Batch, StateRun
from ember.engine.layers.cache import KVCache
from ember.wire import Pooled, TokenLogprobs

SCORED_ROWS = 128  # rows of a prompt that are scored at a time, since logits are large


@dataclass(slots=True)
class StepResult:
    """The tokens of a step: `sequences[i]` continues with `token_ids[i]`, one or several. Prompts that are not complete
    have no row."""

    sequences: list[Sequence] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    is_broken: list[bool] = field(default_factory=list)  # whether the row's logits have NaN
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)  # row -> of each of its tokens, if requested
    errors: dict[int, str] = field(default_factory=dict)  # row -> why its grammar has failed
    late: set[int] = field(default_factory=set)  # rows whose mask was late; their tokens are meaningless
    given_up: set[int] = field(default_factory=set)  # rows that `Launched.draw_late` returned
    pooled: list[Pooled] = field(default_factory=list)  # of each sequence, in place of tokens, from a pooling model

    @classmethod
    def of(cls, sequences: list[Sequence], sampled: Sampled) -> StepResult:
        """The result of a step that samples one token for each sequence."""
        return cls(
            sequences,
            [[token_id] for token_id in sampled.token_ids],
            sampled.is_broken,
            {row: [entry] for row, entry in sampled.logprobs.items()},
            sampled.errors,
            sampled.late,
        )


class Model(Protocol):
    """A causal language model over a paged cache: `models.decoder.Decoder`, or one of transformers."""

    config: DecoderConfig
    dtype: torch.dtype
    num_parameters: int

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Run one step: K and V of the batch are written to the cache. Returns [T, hidden] after the final norm."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab_size] in the model's dtype, or float32."""


class Launched(Protocol):
    """A launched step."""

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences that get a token."""

    def draw_late(self) -> list[Sequence]:
        """Sample the deferred rows, when the tokens of the step before are known. Returns the sequences that cannot be
        sampled yet, since their masks are late. They have no row in the result."""

    def give_up_late(self) -> Sequence | None:
        """Give up one deferred row, after `draw_late` ran out of memory. None: no deferred row is left."""

    def result(self) -> StepResult:
        """Wait for the step and read its tokens."""


class StepRunner(Protocol):
    """The interface of runners."""

    @property
    def model(self) -> Model: ...

    device: torch.device
    runs_ahead: bool  # whether a step is launched before the tokens of the one before are read
    options: frozenset[str]  # the fields of `wire.SamplingParams` that it honours

    def launch(self, step: list[Scheduled]) -> Launched: ...


@dataclass(slots=True)
class Done:
    """A step that is complete when its launch returns."""

    outcome: StepResult

    @property
    def sequences(self) -> list[Sequence]:
        return self.outcome.sequences

    def draw_late(self) -> list[Sequence]:
        """This runner never defers sampling."""
        return []

    def give_up_late(self) -> Sequence | None:
        """This runner has no deferred rows."""
        return None

    def result(self) -> StepResult:
        return self.outcome


class Runner:
    """Runs the model and its cache on one device, one step at a time: for CPUs, and for decoders without kernels."""

    runs_ahead = False
    options = OPTIONS | {"prompt_logprobs"}

    def __init__(self, model: Model, cache: KVCache, device: torch.device) -> None:
        self.model = model
        self.cache = cache
        self.device = device
        self.masks = MaskFiller(device.type == "cuda", model.config.vocab_size if device.type == "cpu" else None)

    def launch(self, step: list[Scheduled]) -> Done:
        return Done(self.run(step))

    @torch.inference_mode()
    def run(self, step: list[Scheduled]) -> StepResult:
        """Run one forward pass over the scheduled tokens and sample for every sequence whose last token is among
        them."""
        sequences = [scheduled.sequence for scheduled in step if is_last_chunk(scheduled)]
        masks = self.masks.start(sequences)
        batch = self._batch(step)
        hidden = self.model.forward(batch, self.cache)  # [tokens, hidden]
        for scheduled, start in zip(step, batch.query_starts, strict=False):
            if scheduled.sequence.wants_prompt_logprobs and not scheduled.sequence.is_prefilled:
                self._add_prompt_logprobs(scheduled, hidden[start : start + scheduled.num_tokens])
        if not sequences:
            return StepResult()
        logits = self.model.logits(hidden[batch.logits_indices])  # [rows, vocab]
        return StepResult.of(sequences, sample(logits, sequences, self.model.config.eos_token_ids, masks()))

    def _batch(self, step: list[Scheduled]) -> Batch:
        token_ids: list[int] = []
        positions: list[int] = []
        query_starts = [0]
        context_lens: list[int] = []
        runs: list[StateRun] = []
        ends = []
        for scheduled in step:
            sequence = scheduled.sequence
            start = sequence.num_computed_tokens
            end = start + scheduled.num_tokens
            token_ids += sequence.token_ids[start:end]
            positions += range(start, end)
            first = query_starts[-1]
            for number, move in enumerate(scheduled.states):
                runs.append(StateRun(first, *move, number))
                first += move.num_tokens
            query_starts.append(query_starts[-1] + scheduled.num_tokens)
            context_lens.append(end)
            if is_last_chunk(scheduled):
                ends.append(query_starts[-1] - 1)
        groups = range(len(step[0].sequence.block_tables))
        return Batch(
            token_ids=self._upload(token_ids),
            positions=self._upload(positions),
            slot_mapping=self._upload(np.array(self._slots(step, groups)).reshape(len(groups), -1)),
            block_tables=self._upload(_block_tables(step, groups)),
            query_starts=query_starts,
            context_lens=context_lens,
            logits_indices=self._upload(ends),
            state_runs=runs,
        )

    def _slots(self, step: list[Scheduled], groups: range) -> list[int]:
        """Where each cache group keeps the step's tokens, group by group."""
        block_size = self.cache.block_size
        slots: list[int] = []
        for group in groups:
            for scheduled in step:
                first, table = scheduled.sequence.num_computed_tokens, scheduled.sequence.block_tables[group]
                if scheduled.num_tokens == 1:
                    slots.append(table[first // block_size] * block_size + first % block_size)
                else:
                    positions = range(first, first + scheduled.num_tokens)
                    slots += [table[i // block_size] * block_size + i % block_size for i in positions]
        return slots

    def _upload(self, values: list[int] | np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.asarray(values, dtype=np.int64))
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _add_prompt_logprobs(self, scheduled: Scheduled, hidden: Tensor) -> None:
        """Score the prompt tokens that follow the chunk's tokens. `hidden`: [chunk, hidden]."""
        sequence = scheduled.sequence
        count = sequence.sampling.prompt_logprobs
        assert count is not None
        first = sequence.num_computed_tokens + 1
        known = sequence.prompt_logprobs or [None]  # the first token has none
        sequence.prompt_logprobs = known[:first]  # drop what a failed chunk may have added
        targets = sequence.token_ids[first : min(first + scheduled.num_tokens, sequence.num_prompt_tokens)]
        if not targets:
            return
        for at in range(0, len(targets), SCORED_ROWS):
            piece = targets[at : at + SCORED_ROWS]
            logprobs = torch.log_softmax(self.model.logits(hidden[at : at + len(piece)]).float(), dim=-1)
            for row, token_id in enumerate(piece):
                sequence.prompt_logprobs.append(describe_token(logprobs[row], token_id, count))


def is_last_chunk(scheduled: Scheduled) -> bool:
    """Whether the scheduled tokens include the sequence's last one, so that a token is sampled."""
    return scheduled.num_tokens == scheduled.sequence.num_uncomputed_tokens


def _block_tables(step: list[Scheduled], groups: range) -> np.ndarray:
    """[groups, sequences, blocks of the longest sequence]"""
    longest = max(len(scheduled.sequence.block_tables[0]) for scheduled in step)
    padding, tables = array("q", bytes(8 * longest)), array("q")
    for group in groups:
        for scheduled in step:
            table = scheduled.sequence.block_tables[group]
            tables += table
            tables += padding[len(table) :]
    return np.frombuffer(tables, dtype=np.int64).reshape(len(groups), len(step), longest)
