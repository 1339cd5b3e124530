"""Mamba 1's selective scan in torch operators.

Each channel of a state fades at its own rate, so that a chunk has no form of matrix products as the other mixers' have
(`operators.torch_state`). The places of a chunk follow each other, for all chunks side by side:

1. every chunk begins with an empty state, which gives what it adds;
2. the states go from chunk to chunk;
3. every chunk begins with its own state, and gives its outputs.

A step whose runs have one chunk each needs the last part alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.cache import StateCache
from ember.engine.layers.mixers import Selective
from ember.engine.operators.torch_state import Longer, Round, Singles


def selective_scan(
    part: Selective, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, rounds: Sequence[Round], cache: StateCache
) -> Tensor:
    """The recurrence of `description.mixers.SelectiveConfig`. x [T, inner] after the convolution, dt [T, inner] before
    the softplus, b and c [T, state_dim]: [T, inner] float32."""
    states = cache.matrices[part.state[1]].squeeze(1)  # [slots, state_dim, inner]
    x, dt, b, c = x.float(), F.softplus(dt.float()), b.float(), c.float()
    new = dt * x
    output = torch.empty_like(x)
    for each in rounds:
        if each.singles is not None:
            rows = each.singles.rows
            output[rows] = _single_tokens(each.singles, part.decay, dt[rows], new[rows], b[rows], c[rows], states)
        for longer in each.longer:
            rows = longer.rows
            output[rows] = _in_chunks(longer, part.decay, dt[rows], new[rows], b[rows], c[rows], states)
    return output.addcmul_(x, part.skip)


def _single_tokens(
    plan: Singles, decay: Tensor, dt: Tensor, new: Tensor, b: Tensor, c: Tensor, states: Tensor
) -> Tensor:
    """One token of each run: dt and new [n, inner], b and c [n, state_dim]. Returns [n, inner]."""
    made = torch.empty_like(new)
    for tokens, slots in plan.pieces:
        state = states[plan.reads[tokens]] if slots is None else states[slots]
        made[tokens] = _advance(state, decay, dt[tokens], new[tokens], b[tokens], c[tokens])
        if slots is None:
            states[plan.writes[tokens]] = state
    return made


def _in_chunks(plan: Longer, decay: Tensor, dt: Tensor, new: Tensor, b: Tensor, c: Tensor, states: Tensor) -> Tensor:
    """All tokens of the runs, [tokens, ...] as in `_single_tokens`."""

    def chunked(x: Tensor) -> Tensor:
        """[tokens, dim] -> [size, chunks, dim]; padding is zero, which leaves a state as it is."""
        return (x[plan.chunks] * plan.is_token[..., None]).transpose(0, 1).contiguous()

    dt, new, b, c = (chunked(x) for x in (dt, new, b, c))
    state = plan.initial(states)
    running = state
    if len(plan.steps) > 1:
        added = state.new_zeros(dt.shape[1], *state.shape[1:])
        for place in zip(dt, new, b, strict=True):
            _advance(added, decay, *place)
        kept = (decay * dt.sum(0)[:, None]).exp_()  # of the state, by the whole chunk
        running = torch.empty_like(added)
        for step in plan.steps:
            current = state[: step.stop - step.start]
            running[step] = current
            current.mul_(kept[step]).add_(added[step])
    made = torch.stack([_advance(running, decay, *place) for place in zip(dt, new, b, c, strict=True)], dim=1)
    states[plan.writes] = state
    return made.flatten(0, 1)[plan.places]


def _advance(state: Tensor, decay: Tensor, dt: Tensor, new: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Change each state [n, state_dim, inner] by its token, and return c times the new state, [n, inner]."""
    state.mul_((decay * dt[:, None]).exp_()).baddbmm_(b[:, :, None], new[:, None])
    return new if c is None else torch.bmm(c[:, None], state).squeeze(1)
