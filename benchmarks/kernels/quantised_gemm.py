"""Products with quantised weights, over linear layers of three models, beside torch's in bfloat16.

    python -m benchmarks.kernels.quantised_gemm

Up to 64 rows the weights are multiplied as they are stored; for more rows they are restored first, or two matrices in
float8 are multiplied. The weights of several layers take turns, as in a model. What has to come out: integers of 4 bits
at 70 % of the bound with one row and never slower than bfloat16, float8 1.2 times as fast up to 64 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.common import SHAPES, Ceilings, Row, main, measure_graph

ROWS = (1, 4, 16, 64, 512)
FORMS = ("w4", "w8", "fp8", "fp8 of blocks", "Q4_K", "Q6_K", "Q8_0")
COPIES_BYTES = 128 << 20  # more than the level-2 cache

Product = Callable[[Tensor], Tensor]


def cases() -> Iterator[tuple[str, int, int, int, str]]:
    """(name, m, n, k, form)"""
    for shape in SHAPES:
        for layer, n, k in (("qkv", shape.qkv, shape.hidden), ("gate_up", 2 * shape.intermediate, shape.hidden)):
            for form in FORMS:
                for m in ROWS:
                    yield f"{shape.name} {layer} {form} {n}x{k} m={m}", m, n, k, form


def run(ceilings: Ceilings) -> Iterator[Row]:
    for name, m, n, k, form in cases():
        x = torch.randn(m, k, device="cuda").bfloat16()
        kernel, nbytes, make = _product(form, n, k, m)
        products = [make() for _ in range(_copies(nbytes))]
        seconds = measure_graph(partial(_all, products, x)) / len(products)
        del products
        weights = [torch.randn(n, k, device="cuda").bfloat16() for _ in range(_copies(2 * n * k))]
        linear = measure_graph(partial(_all, [partial(_linear, weight) for weight in weights], x)) / len(weights)
        moved = nbytes + 2.0 * (m * k + m * n)
        yield Row(kernel, name, seconds, moved, 2.0 * m * n * k, "torch linear, bfloat16", linear)


def _copies(nbytes: int) -> int:
    return max(1, min(16, COPIES_BYTES // nbytes))


def _all(products: list[Product], x: Tensor) -> None:
    for product in products:
        product(x)


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight)


def _product(form: str, n: int, k: int, m: int) -> tuple[str, int, Callable[[], Product]]:
    """The kernel, the bytes of a weight, and a function that makes one with its product."""
    if form in ("w4", "w8"):
        return _ints(4 if form == "w4" else 8, n, k, m)
    return _float8(form, n, k, m) if form.startswith("fp8") else _blocks(form, n, k, m)


def _ints(bits: int, n: int, k: int, m: int) -> tuple[str, int, Callable[[], Product]]:
    from ember_kernels.int_gemm import MAX_ROWS, int_gemm, int_restore

    groups = k // 128 if bits == 4 else 1
    buffer = torch.empty(n, k, dtype=torch.bfloat16, device="cuda")

    def make() -> Product:
        codes = torch.randint(0, 256, (n, k * bits // 8), dtype=torch.uint8, device="cuda")
        scales = torch.rand(n, groups, device="cuda").bfloat16()
        if m <= MAX_ROWS:
            return lambda x: int_gemm(x, codes, scales, None, bits)
        return lambda x: F.linear(x, int_restore(codes, scales, None, bits, buffer))

    return "int_gemm", n * k * bits // 8 + 2 * n * groups, make


def _float8(form: str, n: int, k: int, m: int) -> tuple[str, int, Callable[[], Product]]:
    from ember_kernels.float8_gemm import MAX_ROWS, float8_gemm, float8_restore, quantise_rows
    from ember_kernels.rounding import has_conversion

    block = (1, k) if form == "fp8" else (128, 128)
    buffer = torch.empty(n, k, dtype=torch.bfloat16, device="cuda")

    def make() -> Product:
        codes = torch.randint(0, 120, (n, k), dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
        scales = torch.rand(n // block[0], k // block[1], device="cuda")

        def scaled(x: Tensor) -> Tensor:
            rounded, factors = quantise_rows(x)
            rounded = rounded.view(torch.float8_e4m3fn)
            return torch._scaled_mm(rounded, codes.T, factors, scales.T.contiguous(), out_dtype=x.dtype)

        if m <= MAX_ROWS:
            return lambda x: float8_gemm(x, codes, scales, block)
        if form == "fp8" and has_conversion():
            return scaled
        return lambda x: F.linear(x, float8_restore(codes, scales, block, buffer))

    return "float8_gemm", n * k + 4 * n * k // (block[0] * block[1]), make


def _blocks(form: str, n: int, k: int, m: int) -> tuple[str, int, Callable[[], Product]]:
    from ember_kernels.block_gemm import MAX_ROWS, block_gemm, block_restore
    from ember_kernels.block_types import BLOCK_TYPES

    row = k // BLOCK_TYPES[form].elements * BLOCK_TYPES[form].size
    buffer = torch.empty(n, k, dtype=torch.bfloat16, device="cuda")

    def make() -> Product:
        blocks = torch.randint(0, 60, (n, row), dtype=torch.uint8, device="cuda")  # scales are finite numbers
        if m <= MAX_ROWS:
            return lambda x: block_gemm(x, blocks, form)
        return lambda x: F.linear(x, block_restore(blocks, form, buffer))

    return "block_gemm", n * row, make


if __name__ == "__main__":
    main(run)
