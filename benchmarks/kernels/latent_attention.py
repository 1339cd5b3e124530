"""Latent attention on cold latents, with the heads of GLM-4.7-Flash and of DeepSeek V3.

The bytes are those of the visible latents, read once, whatever the number of groups of heads that read them; the
percent is of the copy bandwidth measured in the same run. Prompts are compared with the matmul rate: absorbed ones, and
those whose keys and values are expanded, with the product that expands them.
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
SIZES = {"GLM-4.7-Flash": (192, 256), "DeepSeek V3": (128, 128)}  # of a head's key without rotation, and of its value
EXPANDED = ((1024, 1024), (8192, 8192), (2048, 65536))  # tokens, context


def paged_latents(seqs: int, context: int) -> dict[str, Any]:
    """A cache with the blocks of each sequence scattered; lengths are all `context`."""
    blocks = -(-context // BLOCK_SIZE)
    tables = torch.randperm(seqs * blocks, device="cuda", dtype=torch.int32).view(seqs, blocks)
    cache = torch.empty(seqs * blocks, BLOCK_SIZE, 1, RANK + ROTARY_DIM, dtype=torch.bfloat16, device="cuda").normal_()
    lengths = torch.full((seqs,), context, dtype=torch.int32, device="cuda")
    return {"cache": cache, "block_tables": tables, "seq_lens": lengths, "rank": RANK, "scale": 0.07}


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.latent_decode import latent_decode
    from ember_kernels.latent_prefill import latent_prefill

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
        for tokens, context in EXPANDED:
            yield _expanded(name, heads, tokens, context)


def _expanded(name: str, heads: int, tokens: int, context: int) -> Row:
    """The last `tokens` of a context, in the pieces that the engine makes."""
    from ember.engine.description.config import LatentConfig
    from ember.engine.description.expansion import keys_at_once
    from ember_kernels.latent_expansion import Carried, expanded_attention
    from ember_kernels.latent_pieces import gather_latents, upload_pieces

    sizes = SIZES[name]
    keys = keys_at_once(LatentConfig(RANK, ROTARY_DIM, *sizes, query_rank=None), heads, 2)
    plain_dim, value_dim = sizes
    pieces = upload_pieces([0, tokens], [context], keys, torch.device("cuda"))
    query = torch.randn(tokens, heads, plain_dim + ROTARY_DIM, device="cuda").bfloat16()
    matrix = torch.randn(heads * (plain_dim + value_dim), RANK, device="cuda").bfloat16()
    out = query.new_empty(tokens, heads, value_dim)
    carried = Carried.like(out)
    given = paged_latents(1, context)
    cache, tables = given["cache"], given["block_tables"]

    def attend() -> None:
        for piece in pieces:
            latent, turned = gather_latents(cache, tables, piece, rank=RANK, dtype=query.dtype)
            up = torch.nn.functional.linear(latent, matrix)
            expanded_attention(query, up, turned, piece, scale=0.07, carried=carried, out=out)

    pairs = tokens * (context - tokens / 2)
    products = pairs * (plain_dim + ROTARY_DIM + value_dim) + context * RANK * (plain_dim + value_dim)
    moved = 2.0 * context * (RANK + ROTARY_DIM)
    return Row("latent_expanded", f"{name} {tokens} of {context}", measure_graph(attend), moved, 2.0 * heads * products)


if __name__ == "__main__":
    main(run)
