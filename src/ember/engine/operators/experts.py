"""Experts by way of a set's own matrix products: only the matrices of chosen experts are read."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.experts import Experts
from ember.engine.layers.mlp import MLP
from ember.engine.operators.base import Operators, Step

Ops = Operators[Any]


def route(ops: Ops, experts: Experts, hidden: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """The weights, float32, and the numbers, int64, of the experts of each token: both [T, experts per token]."""
    router = experts.router
    if experts.router_norm is not None:
        hidden, _ = ops.add_norm(experts.router_norm, hidden, None)
    if experts.config.wide_router:
        return experts.route(F.linear(hidden.float(), router.weight.float(), router.bias))
    return experts.route(ops.linear(router, hidden, step))


def compute_experts(ops: Ops, experts: Experts, hidden: Tensor, step: Step, routed: Tensor | None = None) -> Tensor:
    """The weighted sum of each token's experts and of the shared MLP, [T, hidden], or the sum of experts of weighted
    inputs.

    The tokens are sorted by expert, and `ops` computes each chosen expert's MLP of its tokens. The host reads the
    numbers of tokens. `routed`: what the router sees, if it is not `hidden`.
    """
    weights, ids = route(ops, experts, hidden if routed is None else routed, step)
    per_token, rows = ids.shape[1], inputs(ops, experts, hidden, step)
    order = ids.flatten().argsort(stable=True)  # of the pairs of token and expert
    counts = torch.bincount(ids.flatten(), minlength=len(experts.each)).tolist()
    sorted_hidden = rows[order // per_token]
    if experts.config.scales_input:
        sorted_hidden = (sorted_hidden * weights.flatten()[order, None]).to(hidden.dtype)
        weights = torch.ones_like(weights)
    computed, first = [], 0
    for mlp, count in zip(experts.each, counts, strict=True):
        if count:
            computed.append(compute_mlp(ops, mlp, sorted_hidden[first : first + count], step))
            first += count
    outputs = torch.empty(len(order), rows.shape[1], dtype=hidden.dtype, device=hidden.device)
    outputs[order] = torch.cat(computed)
    mixed = (outputs.unflatten(0, (-1, per_token)) * weights[..., None]).sum(1).to(hidden.dtype)
    return finish(ops, experts, mixed, hidden, step)


def inputs(ops: Ops, experts: Experts, hidden: Tensor, step: Step) -> Tensor:
    """What the experts compute with: the hidden states [T, hidden], or their projection [T, latent size]."""
    return hidden if experts.latent_down is None else ops.linear(experts.latent_down, hidden, step)


def compute_mlp(ops: Ops, mlp: MLP, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden] -> [T, hidden]."""
    if len(hidden) <= ops.max_mlp_rows:
        return _compute_mlp(ops, mlp, hidden, step)
    most = int(ops.max_mlp_rows)
    return torch.cat([_compute_mlp(ops, mlp, rows, step) for rows in hidden.split(most)])


def _compute_mlp(ops: Ops, mlp: MLP, hidden: Tensor, step: Step) -> Tensor:
    inner = None if mlp.gated else mlp.up.activated(hidden, mlp.activation)
    if inner is None:
        up = ops.linear(mlp.up, hidden, step)
        if mlp.gate_scale != 1.0:
            up[:, : up.shape[1] // 2] *= mlp.gate_scale
        inner = ops.gate(mlp, up)
    out = ops.linear(mlp.down, inner, step)
    return out if mlp.output_scale == 1.0 else out * mlp.output_scale


def finish(ops: Ops, experts: Experts, mixed: Tensor, hidden: Tensor, step: Step) -> Tensor:
    """The sum of the experts' outputs `mixed`, projected to [T, hidden] if they have another width, plus the output of
    the MLP that computes every token, if there is one."""
    if experts.latent_up is not None:
        mixed = ops.linear(experts.latent_up, mixed, step)
    if experts.shared is None:
        return mixed
    shared = compute_mlp(ops, experts.shared, hidden, step)
    if experts.shared_router is not None:
        shared = shared * F.linear(hidden, experts.shared_router.weight).sigmoid()
    return mixed + shared
