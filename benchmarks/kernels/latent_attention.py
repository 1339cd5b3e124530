"""Latent attention on cold latents, with the heads of GLM-4.7-Flash and of DeepSeek V3.

The bytes are those of the visible latents, read once, whatever the number of groups of heads that read them; the
percent is of the copy bandwidth measured in the same run. Prompts are compared with the matmul rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.kernels.common import Ceilings, Row, main, measure_graph

RANK, ROTARY_DIM, BLOCK_SIZE = 512, 64, 16
HEADS = {"GLM-4.7-Flash": 20, "DeepSeek V3": 128}
BATCHES = ((1, 1024), (1, 32768), (16, 4096), (64, 4096), (256, 1024))  # sequences, context
PROMPTS = (1024, 8192)


def paged_latents(seqs: int, context: int) -> dict[str, Any]:
    """A cache with the blocks of each sequence scattered; lengths are all `context`."""
    blocks = -(-context // BLOCK_SIZE)
    tables = torch.randperm(seqs * blocks, device="cuda", dtype=torch.int32).view(seqs, blocks)
    cache = torch.empty(seqs * blocks, BLOCK_SIZE, 1, RANK + ROTARY_DIM, dtype=torch.bfloat16, device="cuda").normal_()
    lengths = torch.full((seqs,), context, dtype=torch.int32, device="cuda")
    return {"cache": cache, "block_tables": tables, "seq_lens": lengths, "rank": RANK, "scale": 0.07}


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.latent_attention import latent_decode, latent_prefill

    for name, heads in HEADS.items():
        for seqs, context in BATCHES:
            pairs, moved = seqs * context, 2.0 * seqs * context * (RANK + ROTARY_DIM)
            query = torch.randn(seqs, heads, RANK + ROTARY_DIM, device="cuda").bfloat16()
            seconds = measure_graph(partial(latent_decode, query, **paged_latents(seqs, context)))
            flops = 2.0 * pairs * heads * (2 * RANK + ROTARY_DIM)
            yield Row("latent_decode", f"{name} {seqs} x {context}", seconds, moved, flops)
        for tokens in PROMPTS:
            query = torch.randn(tokens, heads, RANK + ROTARY_DIM, device="cuda").bfloat16()
            starts = torch.tensor([0, tokens], dtype=torch.int32, device="cuda")
            seconds = measure_graph(partial(latent_prefill, query, starts=starts, **paged_latents(1, tokens)))
            flops = float(tokens * tokens * heads * (2 * RANK + ROTARY_DIM))
            moved = 2.0 * tokens * (RANK + ROTARY_DIM)
            yield Row("latent_prefill", f"{name} {tokens}", seconds, moved, flops)


if __name__ == "__main__":
    main(run)
