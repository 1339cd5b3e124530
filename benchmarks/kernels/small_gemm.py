"""The few-row linear layer against torch's, over the linear layers of three models.

    python -m benchmarks.kernels.small_gemm

Afterwards it prints the table for `MEASURED_GAINS` of kernels/ember_kernels/small_gemm.py: the shapes that gained at
least 5 % at every number of rows up to the one given.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.kernels.common import SHAPES, Ceilings, Row, main, measure_graph

ROWS = (1, 2, 4, 8, 16)
GAIN = 1.05
COPIES_BYTES = 128 << 20  # weights of several layers in turn, as in a model: more than the level-2 cache


def cases() -> Iterator[tuple[str, int, int, int]]:
    """(name, m, n, k)"""
    for shape in SHAPES:
        attention = shape.heads * shape.head_dim
        for layer, n, k in (
            ("qkv", shape.qkv, shape.hidden),
            ("o", shape.hidden, attention),
            ("gate_up", 2 * shape.intermediate, shape.hidden),
            ("down", shape.hidden, shape.intermediate),
        ):
            for m in ROWS:
                yield f"{shape.name} {layer} {n}x{k} m={m}", m, n, k


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.small_gemm import small_gemm

    gains: dict[tuple[int, int], int] = {}
    lost = set()
    for name, m, n, k in cases():
        copies = max(1, min(16, COPIES_BYTES // (2 * n * k)))
        x = torch.randn(m, k, device="cuda").bfloat16()
        weights = [torch.randn(n, k, device="cuda").bfloat16() for _ in range(copies)]

        def ours(x: torch.Tensor, weights: list[torch.Tensor]) -> None:
            for w in weights:
                small_gemm(x, w)

        def peer(x: torch.Tensor, weights: list[torch.Tensor]) -> None:
            for w in weights:
                torch.nn.functional.linear(x, w)

        seconds = measure_graph(partial(ours, x, weights)) / copies
        linear = measure_graph(partial(peer, x, weights)) / copies
        moved = 2.0 * (n * k + m * k + m * n)
        yield Row("small_gemm", name, seconds, moved, 2.0 * m * n * k, "torch linear", linear)
        if linear < GAIN * seconds:
            lost.add((n, k))
        elif (n, k) not in lost:
            gains[n, k] = m
    major, minor = torch.cuda.get_device_capability()
    print(f"MEASURED_GAINS of {ceilings.device}: {{{10 * major + minor}: {gains}}}")


if __name__ == "__main__":
    main(run)
