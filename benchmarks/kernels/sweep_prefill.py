"""Configurations of prefill attention, for its `config`, beside torch's ways to compute the same.

Fresh prompts of one length are also given to cuDNN's attention and to torch's own, as a dense batch.
python -m benchmarks.kernels.sweep_prefill
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure
from benchmarks.kernels.decode_attention import paged_batch
from benchmarks.kernels.sweep import Case, sweep

CASES = ((8, 0, 1024), (1, 0, 8192), (1, 0, 32768), (1, 8192, 2048))  # sequences, cached and new tokens of each
CONFIGURATIONS: tuple[tuple[int, int, int, int], ...] = (
    (128, 64, 8, 3),
    (128, 64, 8, 5),
    (128, 32, 8, 5),
    (128, 128, 8, 3),
)
CONFIGURATIONS += ((64, 64, 4, 3), (64, 64, 4, 5), (64, 32, 4, 5))


def _cases(shape: Shape) -> Iterator[Case]:
    from ember_kernels.prefill_attention import prefill_attention

    for seqs, cached, new in CASES:
        batch = paged_batch(shape, seqs, cached + new, torch.bfloat16, 16)
        starts = torch.arange(0, (seqs + 1) * new, new, dtype=torch.int32, device="cuda")
        query = torch.randn(seqs * new, shape.heads, shape.head_dim, device="cuda").bfloat16()
        call = partial(prefill_attention, query, **batch, starts=starts, max_queries=new)
        pairs = seqs * (new * cached + new * (new + 1) / 2)
        moved = 4.0 * shape.head_dim * seqs * (new * shape.heads + (cached + new) * shape.kv_heads)
        peers = {} if cached else dict(_peers(shape, seqs, new))
        name = f"{shape.name} {seqs} x {new}" + (f" after {cached}" if cached else "")
        yield Case(name, call, moved, 4.0 * shape.heads * shape.head_dim * pairs, peers)


def _peers(shape: Shape, seqs: int, new: int) -> Iterator[tuple[str, Any]]:
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    query, key, value = (torch.randn(seqs, count, new, shape.head_dim, device="cuda").bfloat16() for count in heads)
    for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("torch flash", SDPBackend.FLASH_ATTENTION)):

        def call(backend: SDPBackend = backend) -> torch.Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

        yield name, call


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels import prefill_attention
    from ember_kernels.prefill_attention import Config

    configurations = [Config(*each) for each in CONFIGURATIONS]
    entry = "prefill_attention.config(head_dim=128, element_size=2)"
    yield from sweep("prefill", prefill_attention, configurations, _cases(SHAPES[1]), measure, entry)


if __name__ == "__main__":
    main(run)
