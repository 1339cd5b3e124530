"""Products of all experts of a layer in Triton kernels, for each form that their weights have."""

from __future__ import annotations

import torch
from torch import Tensor

from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.table_linear import TableLinear
from ember.engine.operators.triton_linear import table_weight
from ember_kernels.expert_blocks import ExpertBlocks
from ember_kernels.grouped_gemm import gather_gemm, grouped_gemm
from ember_kernels.int_experts import gather_ints, grouped_ints
from ember_kernels.table_experts import gather_table, grouped_table

Matrices = Tensor | Linear
"""The matrices of all experts: a plain tensor [experts, out, in], or a quantised layer, expert after expert."""


def multiply_experts(
    matrices: Matrices | None, x: Tensor, ids: Tensor, count: int, blocks: ExpertBlocks | None, per_token: int = 1
) -> Tensor:
    """Row p // per_token of x times the matrix of pair p's expert, for all pairs: [pairs, out]. `blocks`: the pairs
    sorted by expert; None: each pair reads its expert's matrix."""
    if isinstance(matrices, TableLinear):
        weight = table_weight(matrices)
        if blocks is None:
            return gather_table(x, weight, count, ids, per_token)
        found: Tensor = grouped_table(x, weight, count, blocks, per_token)
        return found
    if isinstance(matrices, IntLinear):
        held = matrices.codes, matrices.scales, matrices.zeros, matrices.bits
        if blocks is None:
            return gather_ints(x, held, count, ids, per_token)
        return grouped_ints(x, held, count, blocks, per_token)
    assert isinstance(matrices, torch.Tensor), "the choice of operators leaves other experts to torch"
    if blocks is None:
        return gather_gemm(x, matrices, ids, per_token)
    return grouped_gemm(x, matrices, blocks, per_token)
