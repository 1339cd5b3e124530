"""torch's own varlen attention for fresh prompts, where it was measured to beat the paged kernel.

`torch.nn.attention.varlen` (torch 2.10 and newer) runs FlashAttention on contiguous ragged batches. It has neither soft
cap nor sinks, and what it accepts differs between torch releases; what this release lacks is not used.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch

# {capability: {head_dim: the shortest longest prompt at which torch's varlen attention beat this kernel}}, from
# `python -m benchmarks.kernels.prefill_attention` on that device. Empty until it was measured: then this kernel serves
# everything. Its first use imports torch._dynamo (a second and more of a boot), so a small gain is not worth an entry.
MEASURED_VARLEN: dict[int, dict[int, int]] = {}


def uses_varlen(capability: int, head_dim: int, max_queries: int, dtype: torch.dtype) -> bool:
    """Whether torch's varlen attention is there and was measured to be faster for such a batch."""
    least = MEASURED_VARLEN.get(capability, {}).get(head_dim)
    if least is None or max_queries < least or dtype not in (torch.bfloat16, torch.float16):
        return False
    return varlen_function() is not None


@cache
def varlen_function() -> Callable[..., Any] | None:
    """torch's function, or None where torch has none or one without what is needed here."""
    try:
        function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError, RuntimeError):
        return None
    known = set(inspect.signature(function).parameters)
    return function if {"scale"} <= known and ({"window_size"} <= known or {"is_causal"} <= known) else None


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    *,
    max_queries: int,
    scale: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal self-attention of each prompt.

    query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim], starts int32 [seqs + 1] from 0.
    """
    function = varlen_function()
    if function is None:
        raise RuntimeError(f"torch {torch.__version__} has no varlen attention that can be used here")
    known = inspect.signature(function).parameters
    options: dict[str, Any] = {"scale": scale}
    options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    group = query.shape[1] // key.shape[1]
    if "enable_gqa" in known:
        options["enable_gqa"] = group > 1
    elif group > 1:  # a copy, where torch's function does not share heads
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    result = function(query, key, value, starts, starts, max_queries, max_queries, **options)
    return result if out is None else out.copy_(result)


def varlen_attention_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    *,
    max_queries: int,
    scale: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `varlen_attention`, in float32, one prompt after the other."""
    result = torch.empty_like(query, memory_format=torch.contiguous_format)
    bounds = starts.tolist()
    for start, stop in pairwise(bounds):
        q, k, v = (x[start:stop].float().transpose(0, 1) for x in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=True
        )
        result[start:stop] = attended.transpose(0, 1).to(result.dtype)
    return result if out is None else out.copy_(result)
