"""Log probabilities of many rows: computed and copied to the host in the stream's order, read one step later."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.engine.core.gpu.accelerator import Accelerator
from ember.wire import TokenLogprobs
from ember_kernels.sampling_logprobs import MAX_TOP, logprobs


@dataclass(frozen=True, slots=True)
class Wanted:
    """The request for one row of logits."""

    row: int
    key: int  # key of the result
    count: int  # number of most likely tokens; -1: the whole vocabulary
    asked: list[int]  # further tokens whose log probabilities are needed


class Underway:
    """Log probabilities that are being copied to the host. They may be read after a later event."""

    def __init__(self, logits: Tensor, token_ids: Tensor, wanted: list[Wanted], accelerator: Accelerator) -> None:
        """logits: [rows, vocab], raw; token_ids: [rows] int64, the tokens to be described."""
        vocab_size = logits.shape[-1]
        counts = [vocab_size if item.count < 0 else min(item.count, vocab_size) for item in wanted]
        few = [i for i, count in enumerate(counts) if count <= MAX_TOP]
        many = [i for i, count in enumerate(counts) if count > MAX_TOP]
        self._groups = [
            _Group([wanted[i] for i in indices], [counts[i] for i in indices], logits, token_ids, accelerator)
            for indices in (few, many)
            if indices
        ]

    def read(self) -> dict[int, TokenLogprobs]:
        """The results by their keys."""
        return {key: described for group in self._groups for key, described in group.read()}


class _Group:
    """Rows with the same number of most likely tokens."""

    def __init__(
        self, wanted: list[Wanted], counts: list[int], logits: Tensor, token_ids: Tensor, accelerator: Accelerator
    ) -> None:
        self._wanted, self._counts = wanted, counts
        rows = accelerator.upload([item.row for item in wanted])
        raw, tokens = logits.index_select(0, rows), token_ids.index_select(0, rows)
        num_top = max(counts)
        if num_top <= MAX_TOP:
            own, ranks, ids, values = logprobs(raw, tokens, num_top)
        else:
            own, ranks, ids, values = _by_sorting(raw, tokens, num_top)
        width = max(len(item.asked) for item in wanted)
        asked = None
        if width:
            index = accelerator.upload([value for item in wanted for value in [*item.asked, *[0] * width][:width]])
            log_sum = raw.gather(1, tokens[:, None]).float() - own[:, None]
            asked = raw.gather(1, index.view(-1, width)).float() - log_sum
        self._tokens, self._own, self._ranks, self._ids, self._values = (
            accelerator.download(tensor) for tensor in (tokens, own, ranks, ids, values)
        )
        self._asked = None if asked is None else accelerator.download(asked)

    def read(self) -> list[tuple[int, TokenLogprobs]]:
        columns = (self._tokens, self._own, self._ranks, self._ids, self._values)
        tokens, own, ranks, ids, values = (tensor.tolist() for tensor in columns)
        asked = None if self._asked is None else self._asked.tolist()
        described = []
        for i, (item, count) in enumerate(zip(self._wanted, self._counts, strict=True)):
            top = [_finite(value) for value in values[i][:count]]
            extra = [] if asked is None else [_finite(value) for value in asked[i][: len(item.asked)]]
            entry = TokenLogprobs(tokens[i], _finite(own[i]), ranks[i], ids[i][:count], top, item.asked, extra)
            described.append((item.key, entry))
        return described


def _by_sorting(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `logprobs`; for any `num_top`."""
    raw = torch.log_softmax(logits.float(), dim=-1)
    own = raw.gather(1, token_ids[:, None])
    ranks = (raw > own).sum(dim=-1) + 1
    values, ids = raw.topk(num_top, dim=-1)
    return own.squeeze(1), ranks, ids, values


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -9999.0
