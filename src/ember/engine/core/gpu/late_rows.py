"""Sampling of deferred rows, which depend on their last token: grammars, thinking budgets, bad words of several tokens.

Their logits are computed by a forward pass that has been launched. Their masks are computed meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.engine.core.bad_words import completed_words
from ember.engine.core.gpu import row_limits
from ember.engine.core.gpu.accelerator import Accelerator
from ember.engine.core.gpu.device_logprobs import Underway, Wanted
from ember.engine.core.gpu.device_rows import Row
from ember.engine.core.gpu.row_limits import BIAS_WIDTH, MASK_WORD, TABLE_WORD, RowTables, Words, bitmask, uses_table
from ember.engine.core.grammars.constraint import NOTHING_LEFT
from ember.engine.core.grammars.masks import MaskFiller, Masks
from ember.engine.core.sequence import Sequence
from ember_kernels.sampling import Workspace, sample
from ember_kernels.step import store_tokens
from ember_kernels.step_update import SAMPLING_FIELDS

OPTIONS = row_limits.OPTIONS | {"grammar", "thinking"}
"""The options of `wire.SamplingParams` that a late draw honours."""
BROKEN = -1  # in place of a token: the logits have NaN, or no token is allowed
LateRow = tuple[int, Row]  # the row of the step's logits, and the row of the device's state


@dataclass(slots=True)
class LateDraw:
    """Tokens that are being copied to the host."""

    rows: list[int]  # of the step's logits
    token_ids: Tensor  # [len(rows)] int64 on the host
    masked: set[int]  # those of `rows` that a grammar or budget restricts
    errors: dict[int, str]  # row -> why its grammar has failed
    logprobs: Underway | None
    undrawn: list[LateRow]  # rows whose masks are late

    def read(self, token_ids: list[int], errors: dict[int, str]) -> None:
        """Add the tokens and errors to those of the step's other rows."""
        errors.update(self.errors)
        for row, token_id in zip(self.rows, self.token_ids.tolist(), strict=True):
            token_ids[row] = token_id
            if token_id == BROKEN and row in self.masked:
                errors.setdefault(row, NOTHING_LEFT)


class LateRows:
    """Samples deferred rows with the tables, logits and state of their step."""

    def __init__(
        self, tables: RowTables, logits: Tensor, last_tokens: Tensor, workspace: Workspace, accelerator: Accelerator
    ) -> None:
        self._tables = tables
        self._logits = logits  # [max rows, vocab], of the last step
        self._last_tokens = last_tokens
        self._workspace = workspace
        self._accelerator = accelerator
        self._masks = MaskFiller(pin_memory=accelerator.is_cuda)
        self._broken = torch.tensor(BROKEN, device=accelerator.device)

    def draw(self, late: list[LateRow]) -> LateDraw | None:
        """Sample the rows whose sequences have not ended. All earlier tokens are known. Rows whose mask is late are
        left out and are in `LateDraw.undrawn`."""
        late = [(row, held) for row, held in late if not held.sequence.is_finished]
        if not late:
            return None
        masks = self._masks.start([held.sequence for _, held in late])()
        undrawn: list[LateRow] = []
        if masks is not None and masks.late:
            undrawn = [late[i] for i in sorted(masks.late)]
            kept = [i for i in range(len(late)) if i not in masks.late]
            late, masks = [late[i] for i in kept], masks.only(kept)
        if not late:
            return LateDraw([], torch.empty(0, dtype=torch.int64), set(), {}, None, undrawn)
        count = len(late)
        sequences = [held.sequence for _, held in late]
        bits = self._bits(late, masks)
        words = np.array([held.limits.words for _, held in late], dtype=np.int32)
        words[:, TABLE_WORD] = [held.index + 1 if uses_table(held.sequence.sampling) else 0 for _, held in late]
        words[:, MASK_WORD] = range(1, count + 1)
        columns = np.empty((len(SAMPLING_FIELDS) + 3, -(-count // 4) * 4), dtype=np.int32)  # rows of whole 16 bytes
        columns[:-3, :count] = words.T
        columns[-3, :count] = [row for row, _ in late]
        columns[-2, :count] = [held.index for _, held in late]
        columns[-1, :count] = [sequence.num_tokens for sequence in sequences]  # positions of the sampled tokens
        sent = self._accelerator.upload(columns)
        raw = self._logits.index_select(0, sent[-3, :count])
        limits = sent[TABLE_WORD : TABLE_WORD + 2] - 1
        drawn, is_broken = sample(
            self._with_long_biases(raw, sequences),
            sent,
            sent[-1, :count],
            slots=limits[0, :count],
            constraints=self._tables.constraints(self._accelerator.upload(bits), limits[1, :count]),
            workspace=self._workspace,
        )
        store_tokens(drawn, sent[-2, :count], self._last_tokens)
        described = [
            Wanted(i, row, sequence.sampling.logprobs, sequence.sampling.logprob_token_ids)
            for i, ((row, _), sequence) in enumerate(zip(late, sequences, strict=True))
            if sequence.sampling.logprobs is not None
        ]
        return LateDraw(
            rows=[row for row, _ in late],
            token_ids=self._accelerator.download(torch.where(is_broken, self._broken, drawn)),
            masked=set() if masks is None else {late[i][0] for i in masks.rows},
            errors={} if masks is None else {late[i][0]: error for i, error in masks.errors.items()},
            logprobs=Underway(raw, drawn, described, self._accelerator) if described else None,
            undrawn=undrawn,
        )

    def _bits(self, late: list[LateRow], masks: Masks | None) -> Words:
        """The masks [rows, words] of the rows."""
        width = self._tables.mask_width
        bits = np.full((len(late), width), -1, dtype=np.int32)
        if masks is not None:
            found: Words = masks.bits.numpy()[:, :width]  # the tokenizer may have more tokens than the logits have
            bits[masks.rows, : found.shape[1]] = found
        for row_bits, (_, held) in zip(bits, late, strict=True):
            if held.limits.mask is not None:
                row_bits &= held.limits.mask
            banned = completed_words(held.sequence)
            if banned:
                row_bits &= ~bitmask(banned, width)
        return bits

    def _with_long_biases(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """The logits with the biases that do not fit the tables; the same tensor if there are none."""
        for i, sequence in enumerate(sequences):
            bias = sequence.sampling.logit_bias
            if len(bias) > BIAS_WIDTH:
                logits = logits.float() if logits.dtype != torch.float32 else logits.clone()
                ids = self._accelerator.upload(list(bias))
                values = self._accelerator.upload(np.array(list(bias.values()), dtype=np.float32))
                logits[i].index_add_(0, ids, values)
        return logits
