"""The sampling limits of rows in the tables of the sampling kernels: penalties, biases and masks.

There are three kinds of rows:
- plain rows have only temperature and filters, which are words of the row's record;
- rows with table entries have penalties (the prompt's tokens, and counts of output tokens that the kernel updates),
  biases, or a mask that the host knows beforehand (allowed ids, single bad words, no end before `min_tokens`);
- late rows have a mask that depends on earlier tokens (a grammar, a thinking budget, a bad word of several tokens), or
  limits that do not fit the tables. They are deferred: sampled when the tokens of the step before have been read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ember.engine.core.gpu.accelerator import Accelerator
from ember.engine.core.sequence import Sequence
from ember.wire import SamplingParams
from ember_kernels.sampling import BIAS_WIDTH, Constraints
from ember_kernels.step_update import SAMPLING_FIELDS, sampling_words

OPTIONS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        *("logit_bias", "allowed_token_ids", "bad_words", "min_tokens"),
    }
)
"""The options of `wire.SamplingParams` that are words of a row's record or entries in tables."""
TABLE_WORD, MASK_WORD = SAMPLING_FIELDS.index("table"), SAMPLING_FIELDS.index("mask")

Words = NDArray[np.int32]


@dataclass(slots=True)
class Limits:
    """The limits of one row, valid until it has `changes_at` output tokens."""

    words: tuple[int, ...]  # of `SAMPLING_FIELDS`; for a late row without table and mask
    is_late: bool
    mask: Words | None  # tokens forbidden independently of the output; None: no token
    changes_at: int | None  # number of output tokens at which `mask` changes


class RowTables:
    """The tables on the device, with one row for every row of the step's state."""

    def __init__(self, num_rows: int, vocab_size: int, eos_token_ids: list[int], accelerator: Accelerator) -> None:
        device = accelerator.device
        self._accelerator = accelerator
        self._eos_token_ids = eos_token_ids
        self.vocab_size = vocab_size
        self.mask_width = -(-vocab_size // 32)
        self.masks = torch.full((num_rows, self.mask_width), -1, dtype=torch.int32, device=device)
        self._bias_ids = torch.zeros((num_rows, BIAS_WIDTH), dtype=torch.int32, device=device)
        self._bias_values = torch.zeros((num_rows, BIAS_WIDTH), dtype=torch.float32, device=device)
        self._bias_counts = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._prompt_masks = torch.zeros((num_rows, self.mask_width), dtype=torch.int32, device=device)
        self._output_counts = torch.zeros((num_rows, vocab_size), dtype=torch.int16, device=device)

    def constraints(self, masks: Tensor, mask_rows: Tensor) -> Constraints:
        """The tables in the form of the sampler's argument, with these masks."""
        return Constraints(
            mask=masks,
            mask_rows=mask_rows,
            bias_ids=self._bias_ids,
            bias_values=self._bias_values,
            bias_counts=self._bias_counts,
            prompt_mask=self._prompt_masks,
            output_counts=self._output_counts,
        )

    def place(self, sequence: Sequence, row: int) -> Limits:
        """Fill the tables for a sequence that gets a row. All of its tokens are known."""
        if uses_table(sequence.sampling):
            self._fill_bias(sequence.sampling, row)
            self._fill_counts(sequence, row)
        return self.renew(sequence, row)

    def renew(self, sequence: Sequence, row: int) -> Limits:
        """The limits of a sequence's next sampling."""
        params = sequence.sampling
        num_output = sequence.num_output_tokens + sequence.num_pending
        mask = self._mask(params, num_output)
        is_late = _is_late(sequence)
        if mask is not None and not is_late:
            self.masks[row].copy_(self._accelerator.upload(mask), non_blocking=True)
        words = sampling_words(
            params.temperature,
            params.top_p,
            params.min_p,
            params.top_k,
            sequence.seed,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
            table=row + 1 if uses_table(params) and not is_late else 0,
            mask=row + 1 if mask is not None and not is_late else 0,
        )
        return Limits(words, is_late, mask, params.min_tokens if num_output < params.min_tokens else None)

    def _mask(self, params: SamplingParams, num_output: int) -> Words | None:
        banned = [word[0] for word in params.bad_words if len(word) == 1]
        if num_output < params.min_tokens:
            banned += params.stop_token_ids
            banned += self._eos_token_ids
        if not banned and params.allowed_token_ids is None:
            return None
        if params.allowed_token_ids is None:
            mask = np.full(self.mask_width, -1, dtype=np.int32)
        else:
            mask = bitmask(params.allowed_token_ids, self.mask_width)
        return mask & ~bitmask(banned, self.mask_width)

    def _fill_bias(self, params: SamplingParams, row: int) -> None:
        bias = params.logit_bias if len(params.logit_bias) <= BIAS_WIDTH else {}
        self._bias_counts[row] = len(bias)
        if bias:
            upload = self._accelerator.upload
            ids, values = zip(*sorted(bias.items()), strict=True)
            self._bias_ids[row, : len(bias)].copy_(upload(np.array(ids, dtype=np.int32)))
            self._bias_values[row, : len(bias)].copy_(upload(np.array(values, dtype=np.float32)))

    def _fill_counts(self, sequence: Sequence, row: int) -> None:
        if not has_penalties(sequence.sampling):
            return
        upload = self._accelerator.upload
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        self._prompt_masks[row].copy_(upload(bitmask(prompt, self.mask_width)), non_blocking=True)
        output = sequence.token_ids[sequence.num_prompt_tokens :]
        if output:  # the sequence was preempted
            counts = np.bincount(output, minlength=self.vocab_size).clip(max=32767).astype(np.int16)
            self._output_counts[row].copy_(upload(counts), non_blocking=True)
        else:
            self._output_counts[row].zero_()


def bitmask(token_ids: list[int], width: int) -> Words:
    """[width] int32: bit i of word w is set when token 32 w + i is among the ids."""
    bits = np.zeros(width * 32, dtype=np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32, copy=False)


def has_penalties(params: SamplingParams) -> bool:
    return bool(params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty)


def uses_table(params: SamplingParams) -> bool:
    return bool(params.logit_bias) or has_penalties(params)


def _is_late(sequence: Sequence) -> bool:
    params = sequence.sampling
    return (
        sequence.grammar is not None
        or any(len(word) > 1 for word in params.bad_words)
        or len(params.logit_bias) > BIAS_WIDTH
    )
