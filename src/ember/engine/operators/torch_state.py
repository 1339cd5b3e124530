"""Mixers with a state, in torch operators: the causal convolution, the gated delta rule and Mamba 2.

`plan_states` makes a plan once per step, on the host, and every layer runs it. A run is some consecutive tokens of a
sequence that start from one slot's state and end in another's (`layers.batch.StateRun`). The runs of a round do not
depend on each other. There are two kinds:

- single tokens, which change their state directly. Where their slots are adjacent, they do so in place;
- longer runs, in chunks. What a chunk computes by itself is computed for all chunks of all runs at once, and then the
  states go from chunk to chunk, for all runs side by side (arXiv 2412.06464, section 3.3). Mamba 2 is the same without
  the delta rule's correction of the values (arXiv 2405.21060, section 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.description.mixers import STATE_CHUNK
from ember.engine.layers.batch import StateRun
from ember.engine.layers.cache import StateCache
from ember.engine.layers.mixers import Convolution, Delta, GatedNorm, Ssd

_MAX_PIECES = 4  # of single tokens with adjacent slots, above which states are copied


class Piece(NamedTuple):
    """Single tokens whose states are changed by the same calls."""

    tokens: slice  # of the round's single tokens
    slots: slice | None  # adjacent slots, whose states are changed in place; None: those of `reads` and `writes`


@dataclass(slots=True)
class Singles:
    """The runs of one token that have a state."""

    rows: Tensor  # [n] int64, of the batch
    reads: Tensor  # [n] int64, slots
    writes: Tensor
    pieces: list[Piece]


class Extended(NamedTuple):
    """The inputs of a convolution with the last ones of each run's state in front of the run's."""

    size: int
    tokens: Tensor  # [tokens] int64, where those of the runs are
    windows: Tensor  # [runs, window] int64, where those of the states are
    last: Tensor  # [runs, window] int64, the last inputs of each run


@dataclass(slots=True)
class Longer:
    """Runs with chunks of one size, the longest first. The chunks are in the order of their number, then of runs."""

    rows: Tensor  # [tokens] int64, of the batch
    lengths: list[int]  # in tokens
    reads: Tensor  # [runs] int64, slots
    writes: Tensor
    has_state: Tensor  # [runs] bool, whether a run continues a state
    chunks: Tensor  # [chunks, size] int64, indices of `rows`, padded with 0
    is_token: Tensor  # [chunks, size] float32: 1, or 0 for padding
    steps: list[slice]  # the chunks of each number
    places: Tensor  # [tokens] int64, of each token in the flat chunks
    extended: dict[int, Extended] = field(default_factory=dict)  # by the window's length

    def initial(self, states: Tensor) -> Tensor:
        """The states that the runs begin with, of a layer's [slots, ...]: zeros where there is none."""
        found = states[self.reads]
        found[~self.has_state] = 0.0
        return found

    def extend(self, window: int) -> Extended:
        """The layout of a convolution's inputs, whose states have `window` of them."""
        found = self.extended.get(window)
        if found is None:
            device = self.rows.device
            starts = list(accumulate((length + window for length in self.lengths), initial=0))
            first = torch.tensor(starts[:-1], device=device)
            lengths = torch.tensor(self.lengths, device=device)
            within = torch.arange(window, device=device)
            tokens = torch.arange(len(self.rows), device=device)
            tokens += window * (1 + torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths))
            found = Extended(starts[-1], tokens, first[:, None] + within, (first + lengths)[:, None] + within)
            self.extended[window] = found
        return found


@dataclass(slots=True)
class Round:
    """Runs that do not depend on each other."""

    singles: Singles | None
    longer: list[Longer]  # by the sizes of their chunks, so that a short run has little padding


def plan_states(runs: Sequence[StateRun], device: torch.device) -> list[Round]:
    """The plan of a step, in rounds that follow each other."""
    rounds: dict[int, list[StateRun]] = {}
    for run in runs:
        rounds.setdefault(run.round, []).append(run)
    return [_round(rounds[number], device) for number in sorted(rounds)]


def _round(runs: list[StateRun], device: torch.device) -> Round:
    singles = sorted((run for run in runs if run.num_tokens == 1 and run.read >= 0), key=lambda run: run.read)
    longer = sorted((run for run in runs if run.num_tokens > 1 or run.read < 0), key=lambda run: -run.num_tokens)
    by_size = groupby(longer, key=lambda run: _chunk_size(run.num_tokens))
    return Round(
        _singles(singles, device) if singles else None,
        [_longer(list(same), size, device) for size, same in by_size],
    )


def _chunk_size(num_tokens: int) -> int:
    """A power of two from 8 on, not much larger than a run."""
    return min(STATE_CHUNK, max(8, 1 << (num_tokens - 1).bit_length()))


def _singles(runs: list[StateRun], device: torch.device) -> Singles:
    pieces: list[Piece] = []
    for i, run in enumerate(runs):
        slots = slice(run.read, run.read + 1) if run.read == run.write else None
        if pieces and slots is not None and pieces[-1].slots is not None and pieces[-1].slots.stop == run.read:
            pieces[-1] = Piece(slice(pieces[-1].tokens.start, i + 1), slice(pieces[-1].slots.start, slots.stop))
        elif pieces and slots is None and pieces[-1].slots is None:
            pieces[-1] = Piece(slice(pieces[-1].tokens.start, i + 1), None)
        else:
            pieces.append(Piece(slice(i, i + 1), slots))
    if len(pieces) > _MAX_PIECES:
        pieces = [Piece(slice(0, len(runs)), None)]
    rows, reads, writes = _columns(((run.first, run.read, run.write) for run in runs), device)
    return Singles(rows, reads, writes, pieces)


def _longer(runs: list[StateRun], size: int, device: torch.device) -> Longer:
    counts = [-(-run.num_tokens // size) for run in runs]
    chunks: list[list[int]] = []
    steps: list[slice] = []
    firsts = list(accumulate((run.num_tokens for run in runs), initial=0))
    for number in range(counts[0]):
        before = len(chunks)
        for run, count, begins in zip(runs, counts, firsts, strict=False):
            if number < count:
                chunks.append([begins + number * size, min(size, run.num_tokens - number * size)])
        steps.append(slice(before, len(chunks)))
    rows = [row for run in runs for row in range(run.first, run.first + run.num_tokens)]
    first, length = _columns(chunks, device)
    within = torch.arange(size, device=device)
    is_token = within < length[:, None]
    indices = torch.where(is_token, first[:, None] + within, 0)
    places = torch.empty(len(rows), dtype=torch.int64, device=device)
    places[indices[is_token]] = is_token.flatten().nonzero().squeeze(1)
    reads, writes = _columns(((max(run.read, 0), run.write) for run in runs), device)
    return Longer(
        rows=torch.tensor(rows, device=device),
        lengths=[run.num_tokens for run in runs],
        reads=reads,
        writes=writes,
        has_state=torch.tensor([run.read >= 0 for run in runs], device=device),
        chunks=indices,
        is_token=is_token.float(),
        steps=steps,
        places=places,
    )


def _columns(rows: Iterable[Iterable[int]], device: torch.device) -> Sequence[Tensor]:
    return torch.tensor(list(map(list, rows)), dtype=torch.int64).to(device).unbind(1)


def convolve(conv: Convolution, x: Tensor, rounds: Sequence[Round], cache: StateCache, layer: int) -> Tensor:
    """The causal convolution of x [T, channels] in x's dtype, computed in float32. `layer`: the index of the layer in
    the group of states."""
    windows = cache.windows[layer]  # [slots, window, channels]
    output = torch.empty_like(x, memory_format=torch.contiguous_format)
    for each in rounds:
        if each.singles is not None:
            singles = each.singles
            current = x[singles.rows].float()
            window = windows[singles.reads]
            made = torch.addcmul((window * conv.weight[:-1]).sum(1), current, conv.weight[-1])
            output[singles.rows] = _finish(conv, made).to(x.dtype)
            windows[singles.writes] = torch.cat((window[:, 1:], current[:, None]), dim=1)
        for longer in each.longer:
            width = windows.shape[1]
            extended = longer.extend(width)
            inputs = x.new_empty(extended.size, x.shape[1], dtype=torch.float32)
            inputs[extended.tokens] = x[longer.rows].float()
            inputs[extended.windows] = longer.initial(windows)
            made = inputs[width:] * conv.weight[-1]
            for tap in range(width):
                made.addcmul_(inputs[tap : tap + len(made)], conv.weight[tap])
            output[longer.rows] = _finish(conv, made[extended.tokens - width]).to(x.dtype)
            windows[longer.writes] = inputs[extended.last]
    return output


def _finish(conv: Convolution, made: Tensor) -> Tensor:
    if conv.bias is not None:
        made = made + conv.bias
    return F.silu(made) if conv.has_silu else made


def delta_rule(part: Delta, qkv: Tensor, rates: Tensor, rounds: Sequence[Round], cache: StateCache) -> Tensor:
    """The gated delta rule. qkv [T, channels] after the convolution, rates [T, 2 * value_heads] (beta, alpha):
    [T, value_heads, value_dim] in their dtype."""
    config, states = part.config, cache.matrices[part.state[1]]  # [slots, heads, key_dim, value_dim]
    query, key, value = qkv.float().split([config.key_size, config.key_size, config.value_size], dim=-1)
    shared = config.value_heads // config.key_heads
    query, key = (_unit(x.unflatten(1, (config.key_heads, -1))) for x in (query, key))
    if config.tiled:
        query, key = query.repeat(1, shared, 1), key.repeat(1, shared, 1)
    else:
        query, key = query.repeat_interleave(shared, 1), key.repeat_interleave(shared, 1)
    query *= config.key_dim**-0.5
    value = value.unflatten(1, (config.value_heads, -1))
    beta, alpha = rates.float().chunk(2, dim=-1)
    beta, log_decay = beta.sigmoid(), part.decay * F.softplus(alpha + part.dt_bias)  # [T, heads]
    output = qkv.new_empty(value.shape)
    for each in rounds:
        if each.singles is not None:
            rows = each.singles.rows
            made = _single_tokens(
                each.singles, query[rows], key[rows], value[rows], beta[rows], log_decay[rows].exp(), states
            )
            output[rows] = made.to(output.dtype)
        for longer in each.longer:
            rows = longer.rows
            made = _in_chunks(longer, query[rows], key[rows], value[rows], beta[rows], log_decay[rows], states)
            output[rows] = made.to(output.dtype)
    return output


def _unit(x: Tensor) -> Tensor:
    """x divided by its length."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def scan(part: Ssd, x: Tensor, dt: Tensor, rounds: Sequence[Round], cache: StateCache) -> Tensor:
    """Mamba 2's recurrence. x [T, channels] after the convolution, dt [T, heads]: [T, heads, head_dim] float32."""
    config, states = part.config, cache.matrices[part.state[1]]  # [slots, heads, state_dim, head_dim]
    x, b, c = x.float().split([config.inner_size, config.group_size, config.group_size], dim=-1)
    shared = config.heads // config.groups
    key, query = (each.unflatten(1, (config.groups, -1)).repeat_interleave(shared, 1) for each in (b, c))
    x = x.unflatten(1, (config.heads, -1))
    dt = F.softplus(dt.float() + part.dt_bias).clamp(config.least_dt, config.most_dt)
    value, log_decay = x * dt[..., None], dt * part.decay
    output = torch.empty_like(x)
    for each in rounds:
        if each.singles is not None:
            rows = each.singles.rows
            output[rows] = _single_tokens(
                each.singles, query[rows], key[rows], value[rows], None, log_decay[rows].exp(), states
            )
        for longer in each.longer:
            rows = longer.rows
            output[rows] = _in_chunks(longer, query[rows], key[rows], value[rows], None, log_decay[rows], states)
    return output.addcmul_(x, part.skip[:, None])


def _single_tokens(
    plan: Singles, query: Tensor, key: Tensor, value: Tensor, beta: Tensor | None, decay: Tensor, states: Tensor
) -> Tensor:
    """One token of each run: query and key [n, heads, key_dim], value [n, heads, value_dim], beta and decay
    [n, heads]. Without beta, the values are added to the state as they are. Returns [n, heads, value_dim]."""
    made = torch.empty_like(value)
    both = query[:, :, None] if beta is None else torch.stack((query, key), dim=2)  # [n, heads, 1 or 2, key_dim]
    overlap = (key * query).sum(-1, keepdim=True)
    for tokens, slots in plan.pieces:
        state = states[plan.reads[tokens]] if slots is None else states[slots]
        faded = decay[tokens, :, None]
        read = both[tokens] @ state  # of the state before the token, [n, heads, 1 or 2, value_dim]
        new = value[tokens]
        if beta is not None:
            new = (new - read[:, :, 1] * faded) * beta[tokens, :, None]
        made[tokens] = torch.addcmul(read[:, :, 0] * faded, new, overlap[tokens])
        state.mul_(faded[..., None])
        state.view(-1, *state.shape[2:]).baddbmm_(key[tokens].flatten(0, 1)[:, :, None], new.flatten(0, 1)[:, None])
        if slots is None:
            states[plan.writes[tokens]] = state
    return made


def _in_chunks(
    plan: Longer, query: Tensor, key: Tensor, value: Tensor, beta: Tensor | None, log_decay: Tensor, states: Tensor
) -> Tensor:
    """All tokens of the runs, [tokens, heads, ...] as in `_single_tokens`."""

    def chunked(x: Tensor) -> Tensor:
        """[tokens, heads, dim] -> [chunks, heads, size, dim]; padding is zero."""
        return (x[plan.chunks] * plan.is_token[..., None, None]).transpose(1, 2).contiguous()

    query, key, value, total = chunked(query), chunked(key), chunked(value), chunked(log_decay[..., None]).cumsum(2)
    size = total.shape[2]
    later = torch.ones(size, size, dtype=torch.bool, device=total.device).triu_(1)
    between = (total - total.transpose(2, 3)).masked_fill_(later, float("-inf")).exp_()  # decay from each token to each
    faded, turned = total.exp(), key.transpose(2, 3)
    from_state: Tensor | None = None
    if beta is not None:  # the values that the tokens of a chunk add, as far as the chunk decides, and the state's part
        rates = chunked(beta[..., None])
        weighted = key * rates
        value, from_state = torch.ops.aten.linalg_solve_triangular(
            (weighted @ turned).mul_(between),
            torch.cat((value.mul_(rates), weighted.mul_(faded)), dim=-1),
            upper=False,
            unitriangular=True,
        ).split([value.shape[-1], key.shape[-1]], dim=-1)
    scores = (query @ turned).mul_(between)
    query = query.mul_(faded)
    kept = total[:, :, -1:].exp()  # of the state, by the whole chunk
    turned = (key * (total[:, :, -1:] - total).exp()).transpose(2, 3)
    state = plan.initial(states)
    made = torch.empty_like(value)
    for step in plan.steps:
        running = state[: step.stop - step.start]
        new = value[step] if from_state is None else value[step] - from_state[step] @ running
        made[step] = (query[step] @ running).add_(scores[step] @ new)
        running.mul_(kept[step]).add_(turned[step] @ new)
    states[plan.writes] = state
    return made.transpose(1, 2).flatten(0, 1)[plan.places]


def gated_norm(norm: GatedNorm, x: Tensor, gate: Tensor) -> Tensor:
    """RMSNorm of x [..., size] and the SiLU of the gate, which is applied in float32."""
    wide = x.float()
    if norm.gate_first:
        return (F.rms_norm(wide * F.silu(gate.float()), x.shape[-1:], None, norm.eps) * norm.weight).to(gate.dtype)
    normed = F.rms_norm(wide, x.shape[-1:], None, norm.eps).to(gate.dtype) * norm.weight
    return (normed * F.silu(gate.float())).to(gate.dtype)
