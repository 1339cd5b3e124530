"""Configurations of prefill attention, for its `config`, beside torch's ways to compute the same.

Fresh prompts of one length are also given to cuDNN's attention and to torch's own, as a dense batch, and single ones to
`dense_attention`, which reads them from pages: from which length on it is faster is printed as an entry of its table.
python -m benchmarks.kernels.sweep_prefill
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure, measure_peer
from benchmarks.kernels.decode_attention import paged_batch
from benchmarks.kernels.sweep import Case, sweep

PROMPTS = (1024, 2048, 4096, 8192, 16384, 32768)  # tokens of single prompts
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
    yield from _dense(SHAPES[1])


def _dense(shape: Shape) -> Iterator[Row]:
    from ember_kernels import dense_attention
    from ember_kernels.prefill_attention import prefill_attention
    from ember_kernels.specialisation import device_capability

    capability, least = device_capability(torch.device("cuda")), None
    for new in PROMPTS:
        batch = paged_batch(shape, 1, new, torch.bfloat16, 16)
        query = torch.randn(new, shape.heads, shape.head_dim, device="cuda").bfloat16()
        starts = torch.tensor([0, new], dtype=torch.int32, device="cuda")
        call = partial(prefill_attention, query, **batch, starts=starts, max_queries=new, bounds=(0, new))
        expected, usual = call(), measure(call)
        with patch.dict(dense_attention.MEASURED, {capability: 1}):
            seconds = measure_peer(call)
            is_same = seconds > 0 and (query.is_meta or torch.allclose(call(), expected, rtol=2e-2, atol=2e-2))
        least = (least or new) if is_same and seconds < usual else None
        if seconds:
            flops = 2.0 * shape.heads * shape.head_dim * new * (new + 1)
            moved = 4.0 * shape.head_dim * new * (shape.heads + shape.kv_heads)
            name = f"{shape.name} 1 x {new}" + ("" if is_same else ", another result")
            yield Row("prefill: cuDNN from pages", name, seconds, moved, flops, "kernel", usual)
    entry = "stays empty: the kernel is faster" if least is None else f"{{{capability}: {least}}} is the measured entry"
    print(f"dense_attention.MEASURED {entry}", flush=True)


if __name__ == "__main__":
    main(run)
