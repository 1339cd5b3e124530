"""SiLU-and-multiply, also with float8 output, against torch's two operations.

Bytes: gate and up read, the product written. `python -m benchmarks.kernels.activation`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure

TOKENS = (1, 64, 4096)


def cases() -> Iterator[tuple[Shape, int]]:
    for shape in SHAPES:
        for tokens in TOKENS:
            yield shape, tokens


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.activation import activation
    from ember_kernels.rounding import new_rounded

    for shape, tokens in cases():
        x = torch.randn(tokens, 2 * shape.intermediate, dtype=torch.bfloat16, device="cuda")
        gate, up = x.chunk(2, dim=-1)
        peer = measure(lambda gate=gate, up=up: torch.nn.functional.silu(gate) * up)  # type: ignore[misc]
        plain = measure(lambda x=x: activation(x, "silu"))  # type: ignore[misc]
        codes = new_rounded(x, tokens, shape.intermediate)
        quantised = measure(lambda x=x, to=codes: activation(x, "silu", rounded_to=to))  # type: ignore[misc]
        case = f"{shape.name} {tokens} x {shape.intermediate}"
        moved = tokens * shape.intermediate * 2
        yield Row("silu_and_mul", case, plain, bytes=3 * moved, peer="torch", peer_seconds=peer)
        yield Row("silu_and_mul fp8", case, quantised, bytes=3.5 * moved)


if __name__ == "__main__":
    main(run)
