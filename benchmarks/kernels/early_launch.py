"""A decode step's layers with kernels that are started while the one before them still runs, and without.

`ember_kernels.early` describes the launches. The layers have the launches of a dense model in order, torch's products
among them, recorded in a graph. The results of both are compared. It ends with the entry for `early.CAPABILITIES`.
`python -m benchmarks.kernels.early_launch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure_graph

SEQUENCES = (1, 64)
CONTEXT = 512
LAYERS = 8
BLOCK_SIZE = 16


def step(shape: Shape, seqs: int) -> Callable[[], torch.Tensor]:
    """The layers of a decode step, all with the same weights. Returns the last layer's output."""
    from ember_kernels.activation import activation
    from ember_kernels.decode_attention import decode_attention, plan_attention
    from ember_kernels.norm import rms_norm
    from ember_kernels.rope_cache import rope_cache

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=torch.bfloat16, device="cuda") * sizes[-1] ** -0.5

    num_blocks = seqs * CONTEXT // BLOCK_SIZE
    keys, values = (normal(num_blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim) for _ in range(2))
    tables = torch.arange(num_blocks, dtype=torch.int32, device="cuda").view(seqs, -1)
    lens = torch.full((seqs,), CONTEXT, dtype=torch.int32, device="cuda")
    slots = torch.arange(1, seqs + 1, device="cuda") * CONTEXT - 1
    positions = torch.full((seqs,), CONTEXT - 1, device="cuda")
    angles = torch.randn(CONTEXT, shape.head_dim, device="cuda")
    weight, head_weight = torch.ones(shape.hidden, dtype=torch.bfloat16, device="cuda"), normal(shape.head_dim)
    norms: dict[str, Any] = {}
    if "qwen3" in shape.name:
        norms = {"query_weight": head_weight, "key_weight": head_weight}
    qkv, output = normal(shape.qkv, shape.hidden), normal(shape.hidden, shape.heads * shape.head_dim)
    up, down = normal(2 * shape.intermediate, shape.hidden), normal(shape.hidden, shape.intermediate)
    embedded = normal(seqs, shape.hidden)

    def run() -> torch.Tensor:
        plan = plan_attention(lens, shape.heads, keys)
        residual, delta = embedded.clone(), embedded
        for _ in range(LAYERS):
            x = rms_norm(delta, weight, 1e-6, residual=residual)
            query = rope_cache(x @ qkv.t(), keys, values, slots, positions, angles, **norms)
            mixed = decode_attention(query, keys, values, tables, lens, plan=plan)
            x = rms_norm(mixed.flatten(1) @ output.t(), weight, 1e-6, residual=residual)
            delta = activation(x @ up.t(), "silu") @ down.t()
        return delta

    return run


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels import early
    from ember_kernels.specialisation import device_capability

    capability = device_capability(torch.device("cuda"))
    if capability < early.LEAST_CAPABILITY:
        print(f"sm_{capability} cannot start a kernel early")
        return
    known, gains = early.CAPABILITIES.copy(), []
    for shape in SHAPES[:2]:
        for seqs in SEQUENCES:
            layers = step(shape, seqs)
            seconds, outputs = [], []
            try:
                for is_early in (False, True):
                    early.CAPABILITIES.discard(capability)
                    if is_early:
                        early.CAPABILITIES.add(capability)
                    outputs.append(layers())
                    seconds.append(measure_graph(layers))
            finally:
                early.CAPABILITIES.clear()
                early.CAPABILITIES.update(known)
            is_same = outputs[0].is_meta or torch.equal(*outputs)
            if not is_same:
                print(f"{shape.name} {seqs}: results differ, so early launches must not be used", flush=True)
            gains.append(seconds[0] / seconds[1] if is_same else 0.0)
            case = f"{shape.name} {seqs} x {CONTEXT}, {LAYERS} layers"
            yield Row("early launches", case, seconds[1], peer="launches in turn", peer_seconds=seconds[0])
    if min(gains) >= 1.0 and max(gains) >= 1.01:
        print(f"early.CAPABILITIES: {capability}, {min(gains):.3f} to {max(gains):.3f} times as fast", flush=True)
    else:
        print(f"early launches are not used on sm_{capability}: {min(gains):.3f} to {max(gains):.3f}", flush=True)


if __name__ == "__main__":
    main(run)
