"""The split of K that products of few rows share."""

from __future__ import annotations

from itertools import product

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.split_k import add_splits, split_config, workspace


def test_splits_fill_the_device_and_have_all_tiles() -> None:
    for n, k, block_k in product((8, 1024, 4096, 151936), (16, 128, 256, 1024, 3072, 11008, 14336), (32, 64, 128, 256)):
        c = split_config(n, k, 64, block_k, 90)
        tiles = -(-k // block_k)
        assert tiles <= c.split_k * c.slice_tiles(k) < tiles + c.split_k and c.slice_tiles(k) >= min(2, tiles)
    assert split_config(1024, 2048, 32, 128, 90).split_k >= 4
    assert split_config(151936, 1024, 64, 128, 90).split_k == 1
    assert split_config(2048, 4096, 64, 128, 90, per_processor=4).split_k == 16


@pytest.mark.parametrize("bias", [False, True])
def test_sums_are_added_in_order_and_rounded_once(device: str, bias: bool) -> None:
    out = torch.empty(3, 100, dtype=torch.bfloat16, device=device)
    assert workspace(out, 1) is out and add_splits(out, None, out) is out
    partial = workspace(out, 4)
    assert (partial.shape, partial.dtype) == ((4, 3, 100), torch.float32)
    partial.copy_(torch.randn(partial.shape))
    b = torch.randn(100, device=device).bfloat16() if bias else None
    expected = ((partial[0] + partial[1]) + partial[2]) + partial[3]
    assert torch.equal(add_splits(partial, b, out), (expected if b is None else expected + b.float()).bfloat16())
