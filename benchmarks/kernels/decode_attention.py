"""Decode attention on cold keys and values, as a step finds them.

The bytes are those of the visible context, read once; the percent is of the copy bandwidth measured in the same run.
For `programs_a_multiprocessor` in `ember_kernels.attention_tables`: rows with "programs=" compare numbers of programs a
multiprocessor with the chosen one. A call makes its plan, which in the engine all layers of a step share.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure_graph

BATCHES = ((1, 1024), (1, 32768), (8, 4096), (16, 1024), (64, 1024), (64, 4096), (256, 1024))  # sequences, context
PROGRAMS = (1, 2, 3, 4, 5, 8)
CACHE_BYTES = 24 << 30


def cases() -> Iterator[tuple[str, Shape, int, int, torch.dtype, int]]:
    """(name, shape, sequences, context, dtype of the cache, block size)"""
    for shape in SHAPES:
        for seqs, context in BATCHES:
            yield f"{shape.name} {seqs} x {context}", shape, seqs, context, torch.bfloat16, 16
    shape = SHAPES[1]
    for seqs, context in ((1, 32768), (64, 4096)):
        yield f"{shape.name} {seqs} x {context} float8", shape, seqs, context, torch.float8_e4m3fn, 16
        yield f"{shape.name} {seqs} x {context} blocks of 64", shape, seqs, context, torch.bfloat16, 64


def paged_batch(shape: Shape, seqs: int, context: int, dtype: torch.dtype, block_size: int) -> dict[str, Any]:
    """A cache with the blocks of each sequence scattered, as after hours of serving; lengths are all `context`."""
    blocks = -(-context // block_size)
    tables = torch.randperm(seqs * blocks, device="cuda", dtype=torch.int32).view(seqs, blocks)
    size = (seqs * blocks, block_size, shape.kv_heads, shape.head_dim)
    # Made in the cache's own type: a float32 copy of a large one would not fit.
    keys, values = (torch.randint(0, 56, size, dtype=torch.uint8, device="cuda") for _ in range(2))
    if dtype == torch.float8_e4m3fn:
        keys, values = keys.view(dtype), values.view(dtype)
    else:
        keys, values = (x.to(dtype).sub_(28).div_(28) for x in (keys, values))
    return {
        "keys": keys,
        "values": values,
        "block_tables": tables,
        "seq_lens": torch.full((seqs,), context, dtype=torch.int32, device="cuda"),
    }


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.decode_attention import decode_attention
    from ember_kernels.decode_plan import multiprocessors
    from ember_kernels.specialisation import device_capability

    for name, shape, seqs, context, dtype, block_size in cases():
        moved = 2.0 * seqs * context * shape.kv_heads * shape.head_dim * dtype.itemsize
        if 2 * moved > CACHE_BYTES:
            continue
        batch = paged_batch(shape, seqs, context, dtype, block_size)
        query = torch.randn(seqs, shape.heads, shape.head_dim, device="cuda").bfloat16()
        call = partial(decode_attention, query, **batch)
        flops = 4.0 * seqs * context * shape.heads * shape.head_dim
        seconds = measure_graph(call)
        yield Row("decode_attention", name, seconds, moved, flops)
        if shape is SHAPES[1] and block_size == 16 and dtype == torch.bfloat16:
            processors = multiprocessors(query.device, device_capability(query.device))
            for programs in PROGRAMS:
                fixed = measure_graph(partial(call, programs=programs * processors))
                yield Row("decode_attention", f"{name} programs={programs}", fixed, moved, flops, "chosen", seconds)


if __name__ == "__main__":
    main(run)
