"""The pooler: from the hidden states of texts to their vectors or classes, in float32.

The hidden states of a step are those of many texts, and of chunks of long texts. What the chunks of a text leave for
the next ones is a `Partial`. The layers after pooling compute all texts of a step at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.description.pooling import PoolingActivation, PoolingConfig, PoolingType
from ember.engine.layers.norm import LayerNorm, unit_rows
from ember.wire import Pool

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}
_OF_EVERY_TOKEN = ("token_embed", "token_classify")


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer after pooling, and its activation."""

    weight: Tensor  # [out, in] float32
    bias: Tensor | None = None  # [out] float32
    activation: str = "identity"
    norm: LayerNorm | None = None
    normalizes_inputs: bool = False

    @property
    def outputs(self) -> int:
        return len(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        x = unit_rows(x) if self.normalizes_inputs else x
        x = ACTIVATIONS[self.activation](F.linear(x, self.weight, self.bias))
        return x if self.norm is None else self.norm(x)


@dataclass(slots=True)
class Partial:
    """What the chunks of a text have left."""

    num_pooled: int = 0  # tokens
    weight: float = 0.0  # of the weighted mean
    pooled: dict[PoolingType, Tensor] = field(default_factory=dict)  # [hidden]: sums, or the largest values
    rows: list[Tensor] = field(default_factory=list)  # of a task of every token: the outputs, [tokens, outputs] each


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of a text in a step."""

    request: Pool
    first: int  # its first token in the text
    num_tokens: int
    is_last: bool
    before: Partial | None  # what the chunks before it left; None: it begins the text, or they are not needed


@dataclass(frozen=True, slots=True)
class PoolOutput:
    """What one chunk gives."""

    partial: Partial | None  # for the next chunks of the text
    output: Tensor | None  # on the CPU, float32, if the text is complete


class Pooler:
    """Pools hidden states as `config` says. `dense`: the layers after pooling; `outputs`: the width after them."""

    def __init__(self, config: PoolingConfig, dense: Sequence[Dense], outputs: int, device: torch.device) -> None:
        self.config = config
        self.dense = dense
        self.outputs = outputs
        self.device = device
        self.num_parameters = sum(
            tensor.numel() for each in dense for tensor in (each.weight, each.bias) if tensor is not None
        )

    def pool(self, hidden: Tensor, chunks: Sequence[Chunk]) -> list[PoolOutput]:
        """hidden [T, hidden]: the tokens of the chunks, one chunk after the other."""
        starts = list(accumulate((chunk.num_tokens for chunk in chunks), initial=0))
        partials: list[Partial | None] = [None] * len(chunks)
        outputs: list[Tensor | None] = [None] * len(chunks)
        whole = [i for i, chunk in enumerate(chunks) if chunk.request.task not in _OF_EVERY_TOKEN]
        if whole:
            self._pool_texts(hidden, chunks, starts, whole, partials, outputs)
        for i, chunk in enumerate(chunks):
            if chunk.request.task in _OF_EVERY_TOKEN:
                partials[i] = partial = self._token_rows(hidden[starts[i] : starts[i + 1]], chunk)
                if chunk.is_last:
                    outputs[i] = torch.cat(partial.rows).cpu()
        return [PoolOutput(*pair) for pair in zip(partials, outputs, strict=True)]

    def _pool_texts(
        self,
        hidden: Tensor,
        chunks: Sequence[Chunk],
        starts: Sequence[int],
        rows: list[int],
        partials: list[Partial | None],
        outputs: list[Tensor | None],
    ) -> None:
        """Pool the chunks numbered `rows`. Fills in `partials`, and the outputs of complete texts."""
        complete = [i for i in rows if chunks[i].is_last]
        if self.config.reads_last_token_alone:
            if not complete:
                return
            ends = torch.tensor([starts[i + 1] - 1 for i in complete], device=hidden.device)
            pooled = hidden.index_select(0, ends).float()
        elif self.config.is_sparse:  # of an encoder, whose texts are whole
            weights = torch.stack([self._weights(hidden[starts[i] : starts[i + 1]]) for i in rows])
            self._activate(weights, [chunks[i].request for i in rows], rows, outputs)
            return
        else:
            self._accumulate(hidden, chunks, starts, rows, partials)
            if not complete:
                return
            pooled = torch.stack([self._finish(partial) for i in complete if (partial := partials[i]) is not None])
        for dense in self.dense:
            pooled = dense(pooled)
        self._activate(pooled, [chunks[i].request for i in complete], complete, outputs)

    def _weights(self, hidden: Tensor) -> Tensor:
        """The weights of the vocabulary in a text whose hidden states are [tokens, hidden]. Texts are computed one by
        one, as a row of each token is much larger than its hidden states."""
        values = hidden.float()
        for dense in self.dense:
            values = dense(values)
        return torch.log1p(torch.relu(values.amax(0)))  # which grows with the value

    def _activate(
        self, pooled: Tensor, requests: Sequence[Pool], places: Sequence[int], outputs: list[Tensor | None]
    ) -> None:
        """Cut and activate pooled [texts, outputs], those with equal options at once."""
        by_options: dict[tuple[int | None, PoolingActivation], list[int]] = {}
        for row, request in enumerate(requests):
            dimensions = request.dimensions or self.config.dimensions
            by_options.setdefault((dimensions, self._activation(request)), []).append(row)
        for (dimensions, activation), rows in by_options.items():
            values = pooled if len(rows) == len(pooled) else pooled[rows]
            values = self._finished(values, dimensions, activation).cpu()
            for row, value in zip(rows, values, strict=True):
                outputs[places[row]] = value

    def _activation(self, request: Pool) -> PoolingActivation:
        own = self.config.activation
        if request.use_activation is None or (request.use_activation and own != "none"):
            return own
        if not request.use_activation:
            return "none"
        return "normalize" if self.config.convert == "embed" else "sigmoid" if self.outputs < 2 else "softmax"

    def _finished(self, values: Tensor, dimensions: int | None, activation: PoolingActivation) -> Tensor:
        """The last steps, for values [rows, outputs]."""
        if dimensions is not None:
            values = values[:, :dimensions]
        if self.config.logit_mean or self.config.logit_sigma != 1.0:
            values = (values - self.config.logit_mean) / self.config.logit_sigma
        if activation == "normalize":
            return unit_rows(values)
        if activation == "softmax":
            return torch.softmax(values, dim=-1)
        return torch.sigmoid(values) if activation == "sigmoid" else values

    def _token_rows(self, hidden: Tensor, chunk: Chunk) -> Partial:
        """What a task of every token has after the chunk, whose hidden states [tokens, hidden] are given."""
        config, request = self.config, chunk.request
        if config.step_tag_id is not None:
            token_ids = request.prompt_token_ids[chunk.first : chunk.first + chunk.num_tokens]
            hidden = hidden[[i for i, token_id in enumerate(token_ids) if token_id == config.step_tag_id]]
        values = hidden.float()
        if len(config.types) == 1:  # dense layers after several kinds of pooling do not fit one token
            for dense in self.dense:
                values = dense(values)
        if config.returned_token_ids and request.task == "token_classify":
            values = values[:, list(config.returned_token_ids)]
        values = self._finished(values, request.dimensions or config.dimensions, self._activation(request))
        return Partial(rows=[*(chunk.before.rows if chunk.before is not None else []), values])

    def _accumulate(
        self,
        hidden: Tensor,
        chunks: Sequence[Chunk],
        starts: Sequence[int],
        rows: list[int],
        partials: list[Partial | None],
    ) -> None:
        """Add the chunks numbered `rows` to what the chunks before them left."""
        spans = []
        for i in rows:
            chunk = chunks[i]
            skipped = 0 if self.config.includes_prompt else chunk.request.num_instruction_tokens
            spans.append((min(starts[i] + max(skipped - chunk.first, 0), starts[i + 1]), starts[i + 1]))
        lengths = torch.tensor([stop - start for start, stop in spans], device=hidden.device)
        is_all = len(rows) == len(chunks) and int(lengths.sum()) == len(hidden)
        values = (hidden if is_all else torch.cat([hidden[start:stop] for start, stop in spans])).float()
        found: dict[PoolingType, Tensor] = {}
        if {"mean", "mean_sqrt_len"} & set(self.config.types):
            found["mean"] = _reduce(values, "sum", lengths)
        if "max" in self.config.types:
            found["max"] = _reduce(values, "max", lengths)
        if "weighted_mean" in self.config.types:
            positions = [
                range(chunks[i].first + start - starts[i] + 1, chunks[i].first + stop - starts[i] + 1)
                for i, (start, stop) in zip(rows, spans, strict=True)
            ]
            weights = torch.tensor([float(each) for run in positions for each in run], device=hidden.device)
            found["weighted_mean"] = _reduce(values * weights[:, None], "sum", lengths)
        for row, (i, (start, stop)) in enumerate(zip(rows, spans, strict=True)):
            chunk = chunks[i]
            before = chunk.before or Partial()
            pooled = {kind: sums[row] for kind, sums in found.items()}
            for kind, value in before.pooled.items():
                if kind in pooled:
                    pooled[kind] = torch.maximum(value, pooled[kind]) if kind == "max" else value + pooled[kind]
                else:
                    pooled[kind] = value
            if "cls" in self.config.types and before.num_pooled == 0 and (start < stop or chunk.first == 0):
                pooled["cls"] = hidden[start if start < stop else starts[i]].float()
            if "last" in self.config.types:
                pooled["last"] = hidden[starts[i + 1] - 1].float()
            first = chunk.first + start - starts[i]
            weight = before.weight + (stop - start) * (2 * first + stop - start + 1) / 2
            partials[i] = Partial(before.num_pooled + stop - start, weight, pooled)

    def _finish(self, partial: Partial) -> Tensor:
        """The results of all kinds of pooling of a complete text, joined."""
        pooled, count = partial.pooled, max(partial.num_pooled, 1)
        parts = []
        for kind in self.config.types:
            if kind == "mean":
                parts.append(pooled["mean"] / count)
            elif kind == "mean_sqrt_len":
                parts.append(pooled["mean"] / count**0.5)
            elif kind == "weighted_mean":
                parts.append(pooled["weighted_mean"] / max(partial.weight, 1.0))
            else:
                parts.append(pooled[kind])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _reduce(values: Tensor, how: str, lengths: Tensor) -> Tensor:
    """values [T, hidden] in segments: the sum or the largest value of each, [segments, hidden]."""
    return torch.segment_reduce(values, how, lengths=lengths, axis=0, unsafe=True)
