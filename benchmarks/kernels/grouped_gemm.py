"""The products of a mixture-of-experts layer: sorting, gate_up and down, grouped and gathered, by tokens in the step.

python -m benchmarks.kernels.grouped_gemm
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.kernels.common import Ceilings, Row, main, measure_graph

# name, experts, top_k, hidden, intermediate
MODELS = (("qwen3-30b-a3b", 128, 8, 2048, 768), ("mixtral-8x7b", 8, 2, 4096, 14336))
TOKENS = (1, 2, 4, 8, 16, 64, 256, 1024, 8192)


def cases() -> Iterator[tuple[str, int, int, int, int, int]]:
    """(name, tokens, experts, top_k, hidden, intermediate)"""
    for name, *sizes in MODELS:
        for tokens in TOKENS:
            yield f"{name} tokens={tokens}", tokens, sizes[0], sizes[1], sizes[2], sizes[3]


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.expert_blocks import expert_blocks
    from ember_kernels.grouped_gemm import block_rows, combine_experts, gather_gemm, grouped_gemm

    for name, tokens, experts, top_k, hidden, intermediate in cases():
        random = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        weights, ids = torch.randn(tokens, experts).softmax(-1).topk(top_k)
        hit = len(ids.unique())
        weights, ids = weights.cuda(), ids.cuda()
        pairs = ids.numel()
        block_m = block_rows(pairs, experts)
        sort = partial(expert_blocks, ids, experts, block_m)
        blocks = sort()
        yield Row("expert_blocks", name, measure_graph(sort), 12.0 * pairs)
        for layer, a, w, divisor in (
            ("gate_up", random(tokens, hidden), random(experts, 2 * intermediate, hidden), top_k),
            ("down", random(pairs, intermediate), random(experts, hidden, intermediate), 1),
        ):
            n, k = w.shape[1:]
            moved = 2.0 * (hit * n * k + a.numel() + pairs * n)
            flops = 2.0 * pairs * n * k
            grouped = measure_graph(partial(grouped_gemm, a, w, blocks, divisor))
            if tokens > 16:
                yield Row("grouped_gemm", f"{name} {layer}", grouped, moved, flops)
                continue
            gathered = measure_graph(partial(gather_gemm, a, w, ids, divisor))
            yield Row("grouped_gemm", f"{name} {layer}", grouped, moved, flops, "gather_gemm", gathered)
            yield Row("gather_gemm", f"{name} {layer}", gathered, moved, flops, "grouped_gemm", grouped)
        down = random(pairs, hidden)
        combine = measure_graph(partial(combine_experts, down, ids, weights, experts))
        yield Row("combine_experts", name, combine, 2.0 * (pairs + tokens) * hidden)


if __name__ == "__main__":
    main(run)
