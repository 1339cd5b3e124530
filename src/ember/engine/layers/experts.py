"""A layer of experts in place of the MLP (mixture of experts, arXiv 1701.06538)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.engine.description.config import ExpertsConfig
from ember.engine.layers.linear import Linear
from ember.engine.layers.mlp import MLP
from ember.engine.layers.norm import RMSNorm
from ember.engine.layers.restored import RestoredLinear


@dataclass(slots=True)
class Experts:
    """The router's choice of experts, each of them an MLP, and an MLP that computes every token."""

    config: ExpertsConfig
    router: Linear  # [experts, hidden]
    correction: Tensor | None  # [experts] float32, added to the scores for the choice alone
    each: list[MLP]
    # Of all experts, if they are one: a plain tensor [experts, intermediate or twice it, hidden], or a quantised layer,
    # expert after expert.
    up: Tensor | RestoredLinear | None
    down: Tensor | RestoredLinear | None  # the same, [experts, hidden, intermediate]
    up_bias: Tensor | None  # [experts, intermediate or twice it]
    down_bias: Tensor | None  # [experts, hidden]
    shared: MLP | None
    latent_down: Linear | None  # [latent size, hidden], of the experts' inputs; None: they are the hidden states
    latent_up: Linear | None  # [hidden, latent size], of the sum of the experts' outputs
    shared_router: Linear | None  # [1, hidden]
    router_norm: RMSNorm | None = None  # of the router's input
    scales: Tensor | None = None  # [experts] float32, factors of the experts' outputs

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token by the router's `logits` [T, experts]: their weights, float32, and their numbers,
        int64, both [T, experts per token]. Nothing is read on the host."""
        config, logits = self.config, logits.float()
        if config.scores == "sparsemixer":
            return _sparsemixer(logits, config.per_token, config.jitter_eps)
        scores = logits.softmax(-1) if config.scores == "softmax" else logits.sigmoid()
        ranked = scores if self.correction is None else scores + self.correction
        if config.scales_input:
            ranked = logits  # of which no two become the same score
        if config.groups > 1:
            ranked = _best_groups(ranked, config.groups, config.groups_per_token, config.best_of_group)
        ids = ranked.topk(config.per_token, dim=-1).indices
        weights = scores.gather(1, ids)
        if config.normalised:
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(config.norm_min)
        if self.scales is not None:
            weights = weights * self.scales[ids]
        return weights * config.scale if config.scale != 1.0 else weights, ids


def _best_groups(scores: Tensor, groups: int, count: int, summed: int) -> Tensor:
    """The scores [T, experts], with -inf outside the `count` groups whose `summed` best scores have the largest
    sums."""
    grouped = scores.unflatten(1, (groups, -1))
    best = grouped.topk(min(summed, grouped.shape[-1]), dim=-1).values.sum(-1).topk(count, dim=-1).indices  # [T, count]
    is_best = torch.zeros(grouped.shape[:2], dtype=torch.bool, device=scores.device).scatter_(1, best, True)
    return grouped.masked_fill(~is_best[..., None], -torch.inf).flatten(1)


def _sparsemixer(logits: Tensor, count: int, eps: float) -> tuple[Tensor, Tensor]:
    """Sparsemixer (arXiv 2409.12136) without its noise: one expert after the other, each weighted by a softmax over the
    logits that are close to its own."""
    weights, ids, left = [], [], logits
    for _ in range(count):
        largest, index = left.max(dim=-1, keepdim=True)
        is_far = (largest - logits) / logits.abs().clamp(min=largest) > 2 * eps
        weights.append(left.masked_fill(is_far, -torch.inf).softmax(-1).gather(1, index))
        ids.append(index)
        left = left.scatter(1, index, -torch.inf)
    return torch.cat(weights, dim=1), torch.cat(ids, dim=1)
