"""Products with weights in integers of 4 and 8 bits in Triton kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.int_linear import IntLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.scratch import scratch
from ember.engine.operators.triton_linear import LayoutKernels
from ember_kernels import int_gemm as ints
from ember_kernels.expert_blocks import ExpertBlocks
from ember_kernels.int_experts import gather_ints, grouped_ints


def _linear(weight: Linear, x: Tensor) -> Tensor | None:
    assert isinstance(weight, IntLinear)
    n, k = weight.out_features, weight.in_features
    if not ints.can_multiply(k, weight.group):
        return None
    x = x.contiguous() if weight.order is None else x.index_select(1, weight.order)
    held = weight.codes, weight.scales, weight.zeros, weight.bits
    if len(x) <= ints.MAX_ROWS:
        return ints.int_gemm(x, *held, weight.bias)
    return F.linear(x, ints.int_restore(*held, scratch(n, k, x.dtype, x.device)), weight.bias)


def _experts(
    weight: IntLinear, x: Tensor, ids: Tensor, count: int, blocks: ExpertBlocks | None, per_token: int
) -> Tensor:
    held = weight.codes, weight.scales, weight.zeros, weight.bits
    if blocks is None:
        return gather_ints(x, held, count, ids, per_token)
    return grouped_ints(x, held, count, blocks, per_token)


KERNELS = LayoutKernels(_linear, _experts)
