"""Attention within whole texts beside torch's, which computes texts of equal length at once. One text of 512 tokens
beside 512 short ones shows that each costs its own tokens.

FLOPs count the visible pairs of query and key alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import accumulate, product

import torch

from benchmarks.kernels.common import Ceilings, Row, main, measure, measure_peer
from ember.engine.description.config import HeadSizes
from ember.engine.layers.block import Attention
from ember.engine.layers.linear import Linear
from ember.engine.operators.torch_texts import TextPlan, attend_texts

# Name, heads, head_dim, window.
MODELS = (
    ("minilm", 12, 32, None),
    ("modernbert-base", 12, 64, None),
    ("modernbert-base window", 12, 64, 65),
    ("embeddinggemma", 3, 256, None),
)
BATCHES = (
    ("64 x 512", [512] * 64),
    ("64 mixed", [8 * (i + 1) for i in range(64)]),
    ("512 x 16 + 1 x 512", [16] * 512 + [512]),
)


def visible_pairs(length: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees in a text."""
    if window is None or window >= length:
        return length * length
    return length * (2 * window - 1) - window * (window - 1)


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.text_attention import SMALL_ROWS, text_attention

    nothing = Linear(torch.empty(0, 0))
    for (name, heads, head_dim, window), (batch, lengths) in product(MODELS, BATCHES):
        bounds = list(accumulate(lengths, initial=0))
        query, keys, values = torch.randn(bounds[-1], 3 * heads, head_dim, device="cuda").bfloat16().split(heads, dim=1)
        plan = TextPlan(bounds, query.dtype, query.device)
        parts = plan.parts(SMALL_ROWS)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)

        def attend(
            query: torch.Tensor = query,
            keys: torch.Tensor = keys,
            values: torch.Tensor = values,
            parts: list[tuple[torch.Tensor, int]] = parts,
            window: int | None = window,
            out: torch.Tensor = out,
        ) -> None:
            for starts, longest in parts:
                own = None if window is None or window >= longest else window
                text_attention(query, keys, values, starts, longest=longest, window=own, out=out)

        seconds = measure(attend)
        sizes = HeadSizes(heads, heads, head_dim)
        layer = Attention(
            qkv=nothing,
            qk_norm=None,
            gate=None,
            output=nothing,
            rope=None,
            sinks=None,
            scale=None,
            soft_cap=None,
            window=window,
            window_is_chunk=False,
            group=0,
            place=0,
            sizes=sizes,
            value_norm=None,
            values_are_keys=False,
            has_own_kv=True,
        )
        peer = measure_peer(partial(attend_texts, plan, layer, query, keys, values))
        moved = 8.0 * bounds[-1] * heads * head_dim
        flops = 4.0 * heads * head_dim * sum(visible_pairs(length, window) for length in lengths)
        yield Row("text_attention", f"{name} {batch}", seconds, moved, flops, "torch", peer)


if __name__ == "__main__":
    main(run)
