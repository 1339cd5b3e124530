"""Sampling of tokens from logits, with all options of `wire.SamplingParams`, which each row of a batch has for itself.

The order of operations is that of vLLM: allowed ids, bad words, logit bias, minimum length, penalties, temperature,
min-p, top-k, top-p. Log probabilities are those of the distribution before all of these.

A token is sampled by inverting the row's cumulative distribution with one uniform number, a function of (seed,
position) alone. Rows are grouped by their own parameters only, never by other rows', so a request samples the same
tokens alone and in a full batch.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from torch import Tensor

from ember.engine.core.bad_words import completed_words
from ember.engine.core.grammars.constraint import NOTHING_LEFT
from ember.engine.core.grammars.masks import FEW, Masks, Values
from ember.engine.core.sequence import Sequence
from ember.engine.core.token_counts import TokenCounts
from ember.wire import SamplingParams, TokenLogprobs

NUCLEUS_CANDIDATES = 1024  # tokens that top-p sorts before it sorts the whole vocabulary
FIRST_CHOICES = 8  # tokens looked up in a row's mask before the whole mask is applied
OPTIONS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty"),
        *("logit_bias", "allowed_token_ids", "bad_words", "min_tokens"),
        *("logprobs", "logprob_token_ids"),
        *("grammar", "thinking"),  # as masks
    }
)
"""The options of `wire.SamplingParams` that this module honours."""
_ALL, _NUCLEUS = 0, -1  # widths, see `_width`
_MASK64 = (1 << 64) - 1


@dataclass(slots=True)
class Sampled:
    """Results for the rows of one step."""

    token_ids: list[int]
    is_broken: list[bool]  # whether the row's logits have NaN
    logprobs: dict[int, TokenLogprobs]  # row -> log probabilities at the sampled token, if requested
    errors: dict[int, str] = field(default_factory=dict)  # row -> why its grammar cannot be followed any further
    late: set[int] = field(default_factory=set)  # rows whose mask was not there: their tokens mean nothing


def uniform(seed: int, position: int) -> float:
    """A uniform number in [0, 1) from seed and position: the top 53 bits of two rounds of SplitMix64 (Steele, Lea,
    Flood: "Fast splittable pseudorandom number generators", 2014)."""
    state = _splitmix64((seed & _MASK64) ^ 0x5851F42D4C957F2D)
    return (_splitmix64(state ^ (position & _MASK64)) >> 11) / (1 << 53)


def _splitmix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def sample(logits: Tensor, sequences: list[Sequence], eos_token_ids: list[int], masks: Masks | None = None) -> Sampled:
    """Sample one token for each row of `logits` [rows, vocab]. Row i continues sequences[i]."""
    logits = logits.float()
    logprob_rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.logprobs is not None]
    raw = torch.log_softmax(logits[logprob_rows], dim=-1) if logprob_rows else None
    is_host = logits.device.type == "cpu"
    if (masks is not None and not is_host) or any(_changes_logits(sequence.sampling) for sequence in sequences):
        logits = logits.clone()
    for row, sequence in enumerate(sequences):
        if _changes_logits(sequence.sampling):
            _process_row(logits[row], sequence, eos_token_ids)
    if masks is not None and not is_host:
        masks.apply(logits)

    token_ids, best_values = _best_on_host(logits, masks) if is_host else _best(logits)
    is_broken = [math.isnan(value) for value in best_values]
    errors = dict(masks.errors) if masks is not None else {}
    for row in masks.rows if masks is not None else ():
        if best_values[row] == -math.inf:
            errors.setdefault(row, NOTHING_LEFT)
    random_rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
    few = masks.few if masks is not None and is_host else {}
    for (width, has_few), rows in _group(random_rows, sequences, logits.shape[-1], few).items():
        drawing = [sequences[row] for row in rows]
        if has_few:
            assert masks is not None
            drawn = _draw_few(logits, rows, masks, drawing, width)
        else:
            values = logits[rows]
            if masks is not None and is_host:
                _forbid(values, rows, masks)
            drawn = _draw(values, drawing, width)
        for row, token_id in zip(rows, drawn, strict=True):
            token_ids[row] = token_id
    logprobs = {}
    if raw is not None:
        for i, row in enumerate(logprob_rows):
            params = sequences[row].sampling
            assert params.logprobs is not None
            logprobs[row] = describe_token(raw[i], token_ids[row], params.logprobs, params.logprob_token_ids)
    return Sampled(token_ids, is_broken, logprobs, errors, masks.late if masks is not None else set())


def describe_token(logprobs: Tensor, token_id: int, count: int, asked: list[int] | None = None) -> TokenLogprobs:
    """The log probability and rank of one token, the `count` most likely ones (-1 = all), and those `asked` for.
    `logprobs`: [vocab]."""
    chosen = logprobs[token_id]
    rank = int((logprobs > chosen).sum()) + 1
    top = logprobs.topk(logprobs.shape[-1] if count < 0 else min(count, logprobs.shape[-1]))
    top_logprobs = [_finite(value) for value in top.values.tolist()]
    described = TokenLogprobs(token_id, _finite(float(chosen)), rank, top.indices.tolist(), top_logprobs)
    if asked:
        values = logprobs[torch.tensor(asked, device=logprobs.device)].tolist()
        described = msgspec.structs.replace(
            described, asked_ids=asked, asked_logprobs=[_finite(value) for value in values]
        )
    return described


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -9999.0


def _changes_logits(params: SamplingParams) -> bool:
    return bool(
        params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.logit_bias
        or params.bad_words
        or params.min_tokens
        or params.allowed_token_ids is not None
    )


def _process_row(logits: Tensor, sequence: Sequence, eos_token_ids: list[int]) -> None:
    """Apply a row's biases, forbidden tokens and penalties in place. `logits`: [vocab]."""
    params = sequence.sampling
    if params.allowed_token_ids is not None:
        allowed = torch.tensor(params.allowed_token_ids, device=logits.device)
        kept = logits[allowed]
        logits.fill_(-math.inf)
        logits[allowed] = kept
    output = sequence.token_ids[sequence.num_prompt_tokens :]
    banned = [word[0] for word in params.bad_words if len(word) == 1] + completed_words(sequence)
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device)
    if len(output) < params.min_tokens:
        banned += params.stop_token_ids
        banned += eos_token_ids
    if banned:
        logits[torch.tensor(banned, device=logits.device)] = -math.inf
    if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty:
        counts = _counts_of(sequence, logits)
        if params.repetition_penalty != 1.0:
            penalised = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
            logits.copy_(torch.where(counts.seen, penalised, logits))
        logits -= params.frequency_penalty * counts.output
        logits -= params.presence_penalty * (counts.output > 0)


def _counts_of(sequence: Sequence, like: Tensor) -> TokenCounts:
    """The sequence's token counts, updated to its tokens."""
    if sequence.token_counts is None:
        sequence.token_counts = TokenCounts.create(like)
    sequence.token_counts.update(sequence.token_ids, sequence.num_prompt_tokens)
    return sequence.token_counts


def _best(logits: Tensor) -> tuple[list[int], list[float]]:
    """The most likely token of each row and its logit, NaN where there is any. `logits`: [rows, vocab]."""
    best = logits.max(dim=-1)
    return best.indices.tolist(), best.values.tolist()


def _best_on_host(logits: Tensor, masks: Masks | None) -> tuple[list[int], list[float]]:
    """The same under masks, with numpy, which is several times as fast. `logits` are unchanged when this returns."""
    places = {row: i for i, row in enumerate(masks.rows)} if masks is not None else {}
    token_ids: list[int] = []
    best_values: list[float] = []
    for row, values in enumerate(logits.numpy()):
        if masks is None or row not in places:
            token_id = int(values.argmax())
            value = float(values[token_id])
        elif row in masks.few:
            few = masks.few[row]
            token_id = int(few[values[few].argmax()]) if len(few) else 0
            value = float(values[token_id]) if len(few) else -math.inf
        else:
            token_id, value = _best_allowed(values, masks, places[row])
        token_ids.append(token_id)
        best_values.append(value)
    return token_ids, best_values


def _best_allowed(values: Values, masks: Masks, i: int) -> tuple[int, float]:
    """The most likely token that mask i allows, and its logit. Usually it is one of the first choices, so that the mask
    need not be applied. `values`: [vocab], unchanged when this returns."""
    taken: list[tuple[int, float]] = []
    try:
        for _ in range(FIRST_CHOICES):
            token_id = int(values.argmax())
            value = float(values[token_id])
            if masks.allows(i, token_id):
                return token_id, value
            taken.append((token_id, value))
            values[token_id] = -np.inf
    finally:
        for token_id, value in reversed(taken):  # a row of only -inf takes its first token repeatedly
            values[token_id] = value
    values = values.copy()
    masks.forbid(i, values)
    token_id = int(values.argmax())
    return token_id, float(values[token_id])


def _forbid(values: Tensor, rows: list[int], masks: Masks) -> None:
    """Apply masks in place. `values`: [len(rows), vocab], on the host, those of `rows` of the step."""
    places = {row: i for i, row in enumerate(masks.rows)}
    for row, own in zip(rows, values.numpy(), strict=True):
        if row in places:
            masks.forbid(places[row], own)


def _group(
    rows: list[int], sequences: list[Sequence], vocab_size: int, few: Collection[int]
) -> dict[tuple[int, bool], list[int]]:
    """Groups of rows that are sampled alike: by their width, and whether they are in `few`."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for row in rows:
        groups.setdefault((_width(sequences[row].sampling, vocab_size), row in few), []).append(row)
    return groups


def _width(params: SamplingParams, vocab_size: int) -> int:
    """How many of its most likely tokens a row needs: top_k, as many as top-p needs (`_NUCLEUS`), or all tokens in the
    order of the vocabulary (`_ALL`)."""
    if 0 < params.top_k < vocab_size:
        return params.top_k
    return _NUCLEUS if params.top_p < 1.0 else _ALL


def _draw_few(logits: Tensor, rows: list[int], masks: Masks, sequences: list[Sequence], width: int) -> list[int]:
    """Sample from the few tokens that these rows' masks allow. `logits`: [all rows, vocab], on the host. There are
    always `FEW` columns, so that a row's sums do not depend on other rows."""
    values = np.full((len(rows), FEW), -np.inf, dtype=np.float32)
    token_ids = np.zeros((len(rows), FEW), dtype=np.int64)
    all_values = logits.numpy()
    for i, row in enumerate(rows):
        ids = masks.few[row]
        token_ids[i, : len(ids)] = ids
        values[i, : len(ids)] = all_values[row, ids]
    columns = _draw(torch.from_numpy(values), sequences, width)
    return [int(token_ids[i, column]) for i, column in enumerate(columns)]


def _draw(logits: Tensor, sequences: list[Sequence], width: int) -> list[int]:
    """Sample from rows of one width (see `_width`). Returns column indices. `logits`: [rows, columns]."""
    num_columns = logits.shape[-1]
    scaled = logits / _column([sequence.sampling.temperature for sequence in sequences], logits)
    for_min_p = [sequence.sampling.min_p for sequence in sequences]
    if any(for_min_p):
        floor = scaled.amax(dim=-1, keepdim=True) + _column(
            [math.log(min_p) if min_p > 0 else -math.inf for min_p in for_min_p], logits
        )
        scaled = scaled.masked_fill(scaled < floor, -math.inf)
    top_p = _column([sequence.sampling.top_p for sequence in sequences], logits)
    if width == _ALL:
        return _invert(scaled.softmax(dim=-1), sequences).tolist()
    if width != _NUCLEUS:
        values, ids = scaled.topk(min(width, num_columns), dim=-1)
        probabilities = _nucleus(values.softmax(dim=-1), top_p)
    else:
        num_candidates = min(NUCLEUS_CANDIDATES, num_columns)
        values, ids = scaled.topk(num_candidates, dim=-1)
        masses = (values - scaled.logsumexp(dim=-1, keepdim=True)).exp()
        is_covered = masses.sum(dim=-1, keepdim=True) >= top_p
        probabilities = _nucleus(masses, top_p)
        if num_candidates < num_columns and not bool(is_covered.all()):
            tokens = ids.gather(-1, _invert(probabilities, sequences).unsqueeze(-1)).squeeze(-1).tolist()
            for row in (~is_covered.squeeze(-1)).nonzero().squeeze(-1).tolist():  # a very flat distribution
                row_values, row_ids = scaled[row : row + 1].sort(dim=-1, descending=True)
                row_probabilities = _nucleus(row_values.softmax(dim=-1), top_p[row : row + 1])
                tokens[row] = int(row_ids[0, int(_invert(row_probabilities, [sequences[row]]))])
            return tokens
    return ids.gather(-1, _invert(probabilities, sequences).unsqueeze(-1)).squeeze(-1).tolist()


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Keep the shortest prefix of each descending row whose mass reaches top_p, at least one token."""
    before = probabilities.cumsum(dim=-1) - probabilities
    return probabilities.masked_fill(before >= top_p, 0.0)


def _invert(probabilities: Tensor, sequences: list[Sequence]) -> Tensor:
    """Inverse transform sampling. `probabilities`: [rows, width], not normalised. Returns column indices [rows]."""
    cumulative = probabilities.double().cumsum(dim=-1)
    noise = [uniform(sequence.seed, sequence.num_tokens) for sequence in sequences]
    targets = torch.tensor(noise, dtype=torch.float64, device=probabilities.device).unsqueeze(-1) * cumulative[:, -1:]
    columns = torch.searchsorted(cumulative, targets, right=True).squeeze(-1)
    # Rounding may put the target beyond the end: then the last token with any mass is taken.
    last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).to(torch.uint8).argmax(dim=-1)
    return torch.minimum(columns, last)
