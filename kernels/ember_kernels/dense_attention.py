"""Attention of fresh prompts by torch's dense operator, which is cuDNN's on a GPU, where it was measured to be faster.

Keys and values are read from the pages first: 4 * kv_heads * head_dim bytes a token, which is little beside the
arithmetic of a long prompt. The operator has no windows, soft caps, sinks or slopes, and no float8.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

MEASURED: dict[int, int] = {}
"""The tokens of a prompt from which on this is faster than the kernel, by capability. It is empty until a GPU has run
`benchmarks.kernels.sweep_prefill`, which prints the entry."""
MAX_HEAD_DIM = 128


def uses_dense(query: Tensor, keys: Tensor, bounds: Sequence[int], capability: int) -> bool:
    """Whether the prompts query[bounds[i] : bounds[i + 1]] are all long enough, and their sizes are taken."""
    least = MEASURED.get(capability)
    if least is None or len(bounds) < 2 or keys.dtype != query.dtype or query.dtype == torch.float32:
        return False
    return query.shape[2] <= MAX_HEAD_DIM and min(stop - start for start, stop in pairwise(bounds)) >= least


def dense_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_tables: Tensor,
    bounds: Sequence[int],
    scale: float | None,
    out: Tensor,
) -> Tensor:
    """Causal attention of prompts of which nothing was cached before: rows bounds[i] to bounds[i + 1] of query
    [tokens, heads, head_dim] are the context of block_tables[i]. Other tensors are those of `prefill_attention`."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    for table, (start, stop) in zip(block_tables, pairwise(bounds), strict=True):
        length = stop - start
        pages = table[: -(-length // keys.shape[1])].long()
        key, value = (cache[pages].flatten(0, 1)[:length].transpose(0, 1)[None] for cache in (keys, values))
        with sdpa_kernel(backends, set_priority=True):
            mixed = F.scaled_dot_product_attention(
                query[start:stop].transpose(0, 1)[None],
                key,
                value,
                is_causal=True,
                scale=scale,
                enable_gqa=query.shape[1] != keys.shape[2],
            )
        out[start:stop] = mixed[0].transpose(0, 1)
    return out
