"""Products with weights in codes of 4 bits in Triton kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.linear import Linear
from ember.engine.layers.scratch import scratch
from ember.engine.layers.table_linear import TableLinear
from ember.engine.operators.triton_linear import LayoutKernels
from ember_kernels import table_gemm as table
from ember_kernels.expert_blocks import ExpertBlocks
from ember_kernels.table_experts import gather_table, grouped_table


def _linear(weight: Linear, x: Tensor) -> Tensor | None:
    assert isinstance(weight, TableLinear)
    if not table.can_multiply(weight.in_features, weight.block):
        return None
    if len(x) <= table.MAX_ROWS:
        return table.table_gemm(x.contiguous(), _weight(weight), weight.bias)
    buffer = scratch(weight.out_features, weight.in_features, x.dtype, x.device)
    return F.linear(x, table.table_restore(_weight(weight), buffer), weight.bias)


def _experts(
    weight: TableLinear, x: Tensor, ids: Tensor, count: int, blocks: ExpertBlocks | None, per_token: int
) -> Tensor:
    if blocks is None:
        return gather_table(x, _weight(weight), count, ids, per_token)
    found: Tensor = grouped_table(x, _weight(weight), count, blocks, per_token)
    return found


def _weight(weight: TableLinear) -> table.TableWeight:
    """The weight as the kernels take it."""
    return table.TableWeight(weight.codes, weight.scales, None if weight.is_e2m1 else weight.table, weight.factors)


KERNELS = LayoutKernels(_linear, _experts)
