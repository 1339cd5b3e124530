"""Attention within texts against the reference, in the interpreter or on the GPU."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.text_attention import text_attention, text_attention_reference

LENGTHS = (5, 1, 70, 33, 64)
TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def _check(
    device: str,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    texts: tuple[int, ...] = LENGTHS,
    **options: Any,
) -> None:
    """Queries, keys and values are views of one matrix; after its rows there is NaN."""
    bounds = list(accumulate(texts, initial=0))
    qkv = torch.randn(bounds[-1] + 1, (heads + 2 * kv_heads) * head_dim).to(device).to(dtype)
    qkv[-1] = torch.nan
    query, keys, values = qkv[:-1].unflatten(1, (-1, head_dim)).split((heads, kv_heads, kv_heads), dim=1)
    starts = torch.tensor(bounds, dtype=torch.int32, device=device)
    result = text_attention(query, keys, values, starts, longest=max(texts), **options)
    expected = text_attention_reference(query, keys, values, bounds, **options)
    torch.testing.assert_close(result.float(), expected.float(), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("window", [None, 1, 20])
def test_matches_the_reference(device: str, has_gpu: bool, window: int | None, dtype: torch.dtype) -> None:
    _check(device, 4, 4, 32, dtype, window=window)
    if has_gpu:
        for head_dim in (32, 64, 128, 256):
            _check(device, 12, 4, head_dim, dtype, (512, 3, 1500, 512), window=window)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 1, 48), (4, 2, 64), (10, 2, 16)])
def test_groups_and_sizes_of_heads(device: str, heads: int, kv_heads: int, head_dim: int) -> None:
    _check(device, heads, kv_heads, head_dim, torch.float16, scale=0.3)
    _check(device, heads, kv_heads, head_dim, torch.float16, window=9)


def test_biases_of_distances(device: str) -> None:
    """The farthest distances share the bias of the table's ends."""
    biases = torch.randn(4, 2 * 20 + 1).to(device)
    _check(device, 4, 4, 32, torch.float32, biases=biases)
    _check(device, 4, 2, 64, torch.bfloat16, biases=biases)


def test_a_part_of_the_texts_is_written_to_its_rows(device: str) -> None:
    query = torch.randn(10, 2, 32).to(device)
    starts = torch.tensor([0, 2, 7, 10], dtype=torch.int32, device=device)
    out = torch.zeros_like(query)
    text_attention(query, query, query, starts[1:3], longest=5, out=out)
    expected = text_attention_reference(query, query, query, (0, 2, 7, 10))
    torch.testing.assert_close(out[2:7], expected[2:7], rtol=1e-4, atol=1e-4)
    assert not out[:2].any()
    assert not out[7:].any()


def test_more_texts_than_are_counted_at_once(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ember_kernels.text_attention.STARTS_BLOCK", 4)
    _check(device, 2, 1, 16, torch.float32, tuple(1 + i % 3 for i in range(9)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head_dim": 24}, "multiple of 16"),
        ({"kv_heads": 3}, "do not fit"),
        ({"dtype": torch.float16}, "torch.float16"),
        ({"turned": True}, "contiguous"),
        ({"biases": torch.zeros(3, 5)}, r"biases must be float32 \[4"),
    ],
)
def test_what_it_cannot_compute(change: dict[str, Any], said: str) -> None:
    query = torch.zeros(5, 4, change.get("head_dim", 32))
    keys = torch.zeros(5, change.get("kv_heads", 4), query.shape[2], dtype=change.get("dtype", torch.float32))
    if change.get("turned"):
        query = torch.zeros(4, 5, 32).transpose(0, 1)
    with pytest.raises(ValueError, match=said):
        text_attention(
            query, keys, keys, torch.tensor([0, 5], dtype=torch.int32), longest=5, biases=change.get("biases")
        )
