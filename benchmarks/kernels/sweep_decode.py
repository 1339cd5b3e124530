"""Configurations of decode attention, for `config` in `ember_kernels.attention_tables`: tile, warps, stages.

python -m benchmarks.kernels.sweep_decode
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure_graph
from benchmarks.kernels.decode_attention import paged_batch
from benchmarks.kernels.sweep import Case, sweep

LLAMA = SHAPES[1]
# Contexts of each case: equal ones, and one long beside many short.
CONTEXTS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("64 x 1k", (1024,) * 64),
    ("256 x 1k", (1024,) * 256),
    ("1 x 32k", (32768,)),
    ("63 x 512 + 1 x 16k", (512,) * 63 + (16384,)),
)


def _cases(shape: Shape, dtype: torch.dtype) -> Iterator[Case]:
    from ember_kernels.decode_attention import decode_attention

    for name, contexts in CONTEXTS:
        seqs, longest = len(contexts), max(contexts)
        batch = paged_batch(shape, seqs, longest, dtype, 16)
        batch["seq_lens"] = torch.tensor(contexts, dtype=torch.int32, device="cuda")
        query = torch.randn(seqs, shape.heads, shape.head_dim, device="cuda").bfloat16()
        call = partial(decode_attention, query, **batch)
        moved = 2.0 * sum(contexts) * shape.kv_heads * shape.head_dim * dtype.itemsize
        yield Case(f"{shape.name} {name}", call, moved, 4.0 * sum(contexts) * shape.heads * shape.head_dim)


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels import decode_attention
    from ember_kernels.attention_tables import Config

    for dtype, size in ((torch.bfloat16, 2), (torch.float8_e4m3fn, 1)):
        configurations = [Config(*each) for each in product((16, 32, 64), (4,), (2, 3, 4, 5))]
        entry = f"attention_tables.config(head_dim=128, element_size={size})"
        cases = _cases(LLAMA, dtype)
        yield from sweep(f"decode {size} B", decode_attention, configurations, cases, measure_graph, entry)


if __name__ == "__main__":
    main(run)
