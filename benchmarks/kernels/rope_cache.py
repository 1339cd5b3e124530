"""QK norm + rotary + cache write in one launch, bfloat16 and float8 caches, against the same in torch operations.

Bytes: the fused projection read, queries and the cache written. `python -m benchmarks.kernels.rope_cache`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernels.common import SHAPES, Ceilings, Row, Shape, main, measure, measure_peer

TOKENS = (1, 64, 8192)
BLOCK_SIZE = 16


def cases() -> Iterator[tuple[Shape, int]]:
    for shape in SHAPES:
        for tokens in TOKENS:
            yield shape, tokens


def run(ceilings: Ceilings) -> Iterator[Row]:
    from ember_kernels.rope_cache import rope_cache, rope_cache_reference

    for shape, tokens in cases():
        blocks = tokens // BLOCK_SIZE + 64
        qkv = torch.randn(tokens, shape.qkv, dtype=torch.bfloat16, device="cuda")
        slots = torch.randperm(blocks * BLOCK_SIZE, device="cuda")[:tokens]
        positions = torch.randint(0, 4096, (tokens,), dtype=torch.int32, device="cuda")
        table = torch.randn(4096, shape.head_dim, device="cuda")
        weight = torch.ones(shape.head_dim, dtype=torch.bfloat16, device="cuda")
        weights = {"query_weight": weight, "key_weight": weight} if "qwen3" in shape.name else {}
        cache = torch.zeros(2, blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim, dtype=torch.bfloat16, device="cuda")
        cache8 = torch.zeros(cache.shape, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
        scale = torch.full((1,), 0.05, device="cuda")
        scales = {"key_scale": scale, "value_scale": scale}
        inputs = (slots, positions, table)
        seconds = measure(lambda a=(qkv, *cache, *inputs), w=weights: rope_cache(*a, **w))  # type: ignore[misc]
        seconds8 = measure(lambda a=(qkv, *cache8, *inputs), w=weights | scales: rope_cache(*a, **w))  # type: ignore[misc]
        peer = measure_peer(lambda a=(qkv, *cache, *inputs), w=weights: rope_cache_reference(*a, **w))  # type: ignore[misc]
        case = f"{shape.name} {tokens} x ({shape.heads} + 2 x {shape.kv_heads}) x {shape.head_dim}"
        key_values = tokens * 2 * shape.kv_heads * shape.head_dim
        moved = 4 * qkv.numel()
        yield Row("rope_cache", case, seconds, bytes=moved, peer="torch", peer_seconds=peer)
        yield Row("rope_cache fp8", case, seconds8, bytes=moved - key_values)


if __name__ == "__main__":
    main(run)
