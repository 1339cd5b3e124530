"""Residual add + RMSNorm, also with float8 output, against torch's two operations.

Bytes: x and the residual read, the residual and the result written. `python -m benchmarks.kernels.norm`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure

TOKENS = (1, 64, 8192)


def cases() -> Iterator[tuple[Shape, int]]:
    for shape in SHAPES:
        for tokens in TOKENS:
            yield shape, tokens


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.norm import rms_norm
    from ember_kernels.rounding import new_rounded

    for shape, tokens in cases():
        x = torch.randn(tokens, shape.hidden, dtype=torch.bfloat16, device="cuda")
        residual = torch.randn_like(x)
        weight = torch.ones(shape.hidden, dtype=torch.bfloat16, device="cuda")

        def torch_norm(x=x, residual=residual, weight=weight, size=shape.hidden) -> None:  # type: ignore[no-untyped-def]
            residual.add_(x)
            torch.nn.functional.rms_norm(residual, (size,), weight, 1e-6)

        def kernel(rounded_to=None, x=x, residual=residual, weight=weight) -> None:  # type: ignore[no-untyped-def]
            rms_norm(x, weight, 1e-6, residual=residual, rounded_to=rounded_to)

        codes = new_rounded(x, *x.shape)

        peer = measure(torch_norm)
        case = f"{shape.name} {tokens} x {shape.hidden}"
        moved = tokens * shape.hidden * 2
        yield Row("add + rms_norm", case, measure(kernel), bytes=4 * moved, peer="torch", peer_seconds=peer)
        yield Row("add + rms_norm fp8", case, measure(lambda run=kernel, to=codes: run(to)), bytes=4.5 * moved)  # type: ignore[misc]


if __name__ == "__main__":
    main(run)
