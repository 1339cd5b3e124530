"""Products with GGUF's blocks in Triton kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.scratch import scratch
from ember.engine.operators.triton_linear import LayoutKernels
from ember_kernels.block_experts import gather_blocks, grouped_blocks
from ember_kernels.block_gemm import MAX_ROWS, block_gemm, block_restore
from ember_kernels.expert_blocks import ExpertBlocks


def _linear(weight: Linear, x: Tensor) -> Tensor:
    assert isinstance(weight, BlockLinear)
    if len(x) <= MAX_ROWS:
        return block_gemm(x.contiguous(), _blocks(weight), weight.type, weight.bias)
    buffer = scratch(weight.out_features, weight.in_features, x.dtype, x.device)
    return F.linear(x, block_restore(_blocks(weight), weight.type, buffer), weight.bias)


def _experts(
    weight: BlockLinear, x: Tensor, ids: Tensor, count: int, blocks: ExpertBlocks | None, per_token: int
) -> Tensor:
    if blocks is None:
        return gather_blocks(x, _blocks(weight), weight.type, count, ids, per_token)
    return grouped_blocks(x, _blocks(weight), weight.type, count, blocks, per_token)


def _blocks(weight: BlockLinear) -> Tensor:
    """The rows of blocks as one tensor, as they are loaded on a GPU."""
    return weight.rows[0] if len(weight.rows) == 1 else torch.cat(weight.rows)


KERNELS = LayoutKernels(_linear, _experts)
