"""Prefill attention of fresh prompts and of chunks after a cached prefix. `sweep_prefill` has what to compare it with.

FLOPs count the visible pairs of query and key alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure
from benchmarks.kernels.decode_attention import paged_batch


def cases() -> Iterator[tuple[str, Shape, list[tuple[int, int]]]]:
    """(name, shape, (cached, new) tokens of each sequence), fresh prompts from short to long."""
    for shape in SHAPES:
        for seqs, new in ((32, 64), (8, 512), (4, 1024), (2, 4096), (1, 16384)):
            yield f"{shape.name} {seqs} x {new}", shape, [(0, new)] * seqs
        yield f"{shape.name} mixed", shape, [(0, 128 * (i + 1)) for i in range(16)]
    for cached, new in ((1024, 1024), (8192, 2048), (30000, 16), (8192, 1)):
        yield f"{SHAPES[1].name} {new} after {cached}", SHAPES[1], [(cached, new)]


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.prefill_attention import prefill_attention

    for name, shape, sequences in cases():
        longest = max(cached + new for cached, new in sequences)
        batch = paged_batch(shape, len(sequences), longest, torch.bfloat16, 16)
        lengths = [cached + new for cached, new in sequences]
        batch["seq_lens"] = torch.tensor(lengths, dtype=torch.int32, device="cuda")
        new = torch.tensor([0] + [new for _, new in sequences])
        starts = new.cumsum(0).int().cuda()
        tokens, most = int(new.sum()), int(new.max())
        query = torch.randn(tokens, shape.heads, shape.head_dim, device="cuda").bfloat16()
        seconds = measure(partial(prefill_attention, query, **batch, starts=starts, max_queries=most))
        pairs = sum(new * cached + new * (new + 1) // 2 for cached, new in sequences)
        flops = 4.0 * shape.heads * shape.head_dim * pairs
        moved = 4.0 * shape.head_dim * (tokens * shape.heads + sum(lengths) * shape.kv_heads)
        yield Row("prefill_attention", name, seconds, moved, flops)


if __name__ == "__main__":
    main(run)
