"""A layer of experts in Triton kernels, for each form that their weights have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ember.engine.layers.experts import Experts
from ember.engine.layers.linear import Linear
from ember.engine.operators.base import Operators, Step
from ember.engine.operators.experts import finish, inputs, route
from ember.engine.operators.triton_linear import kernels_of
from ember_kernels.expert_blocks import ExpertBlocks, expert_blocks
from ember_kernels.grouped_gemm import block_rows, combine_experts, gather_gemm, grouped_gemm, uses_gather

Matrices = Tensor | Linear
"""The matrices of all experts: a plain tensor [experts, out, in], or a quantised layer, expert after expert."""


def compute_experts(
    ops: Operators[Any], experts: Experts, hidden: Tensor, step: Step, routed: Tensor | None = None
) -> Tensor:
    """`Operators.experts`. Few tokens: each pair of token and expert reads the expert's matrices. Otherwise pairs are
    sorted by expert. The host reads nothing."""
    weights, ids = route(ops, experts, hidden if routed is None else routed, step)
    count, per_token = experts.config.count, ids.shape[1]
    rows = inputs(ops, experts, hidden, step)
    if experts.config.scales_input:
        rows = (rows[:, None] * weights[..., None]).to(hidden.dtype).flatten(0, 1)  # of each pair
        weights, per_token = torch.ones_like(weights), 1
    blocks = None if uses_gather(len(hidden)) else expert_blocks(ids, count, block_rows(ids.numel(), count))
    up = multiply_experts(experts.up, rows, ids, count, blocks, per_token)
    if experts.up_bias is not None:
        up = up + experts.up_bias[ids.flatten()]
    down = multiply_experts(experts.down, ops.gate(experts.each[0], up), ids, count, blocks)
    if experts.down_bias is not None:
        down = down + experts.down_bias[ids.flatten()]
    return finish(ops, experts, combine_experts(down, ids, weights, count), hidden, step)


def multiply_experts(
    matrices: Matrices | None, x: Tensor, ids: Tensor, count: int, blocks: ExpertBlocks | None, per_token: int = 1
) -> Tensor:
    """Row p // per_token of x times the matrix of pair p's expert, for all pairs: [pairs, out]. `blocks`: the pairs
    sorted by expert; None: each pair reads its expert's matrix."""
    if isinstance(matrices, Linear):
        kernels = kernels_of(type(matrices))
        assert kernels is not None, "the choice of operators leaves other experts to torch"
        return kernels.experts(matrices, x, ids, count, blocks, per_token)
    assert matrices is not None, "the choice of operators leaves other experts to torch"
    if blocks is None:
        return gather_gemm(x, matrices, ids, per_token)
    return grouped_gemm(x, matrices, blocks, per_token)
