"""Products with integers of 4 and 8 bits, over the linear layers of three models, beside torch's in bfloat16.

    python -m benchmarks.kernels.int_gemm

Up to 64 rows the codes are multiplied as they are stored; for more rows they are restored first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.kernels.common import SHAPES, Ceilings, Row, main, measure_graph

ROWS = (1, 16, 64, 512)
FORMS = (("w4", 4, 128), ("w8", 8, 0))  # bits, and inputs of a group; 0: all
COPIES_BYTES = 128 << 20  # weights of several layers in turn, as in a model: more than the level-2 cache


def cases() -> Iterator[tuple[str, int, int, int, int, int]]:
    """(name, m, n, k, bits, group)"""
    for shape in SHAPES:
        for layer, n, k in (("qkv", shape.qkv, shape.hidden), ("gate_up", 2 * shape.intermediate, shape.hidden)):
            for form, bits, group in FORMS:
                for m in ROWS:
                    yield f"{shape.name} {layer} {form} {n}x{k} m={m}", m, n, k, bits, group or k


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.int_gemm import MAX_ROWS, int_gemm, int_restore

    for name, m, n, k, bits, group in cases():
        copies = max(1, min(16, COPIES_BYTES // (n * k * bits // 8)))
        x = torch.randn(m, k, device="cuda").bfloat16()
        codes = [torch.randint(0, 256, (n, k * bits // 8), dtype=torch.uint8, device="cuda") for _ in range(copies)]
        scales = torch.rand(n, k // group, device="cuda").bfloat16()
        plain = [
            torch.randn(n, k, device="cuda").bfloat16() for _ in range(max(1, min(copies, COPIES_BYTES // (2 * n * k))))
        ]
        buffer = torch.empty(n, k, dtype=torch.bfloat16, device="cuda")

        def few(x: torch.Tensor, codes: list[torch.Tensor], scales: torch.Tensor, bits: int) -> None:
            for each in codes:
                int_gemm(x, each, scales, None, bits)

        def many(
            x: torch.Tensor, codes: list[torch.Tensor], scales: torch.Tensor, bits: int, buffer: torch.Tensor
        ) -> None:
            for each in codes:
                torch.nn.functional.linear(x, int_restore(each, scales, None, bits, buffer))

        def peer(x: torch.Tensor, weights: list[torch.Tensor]) -> None:
            for weight in weights:
                torch.nn.functional.linear(x, weight)

        ours: Callable[[], None] = partial(few, x, codes, scales, bits)
        if m > MAX_ROWS:
            ours = partial(many, x, codes, scales, bits, buffer)
        seconds = measure_graph(ours) / copies
        linear = measure_graph(partial(peer, x, plain)) / len(plain)
        moved = n * k * bits / 8 + 2.0 * (n * k / group + m * k + m * n)
        yield Row("int_gemm", name, seconds, moved, 2.0 * m * n * k, "torch linear, bfloat16", linear)


if __name__ == "__main__":
    main(run)
