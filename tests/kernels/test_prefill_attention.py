"""Prefill attention against the reference, in the interpreter or on the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels import dense_attention
from ember_kernels.prefill_attention import config, prefill_attention, prefill_attention_reference
from ember_kernels.specialisation import device_capability

NAN = float("nan")


def _problem(
    device: str,
    sequences: list[tuple[int, int]],
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
    before: int = 0,
) -> dict[str, Any]:
    """sequences: (cached, new) tokens of each. The cache is NaN wherever no context lies, and so is what block 0 holds,
    with which tables are padded. `before` rows of query belong to nobody."""
    lengths = [cached + new for cached, new in sequences]
    blocks = [-(-length // block_size) for length in lengths]
    total = sum(blocks) + 2
    order = torch.randperm(total - 1) + 1
    tables = torch.zeros(len(lengths), max(blocks, default=0) + 1, dtype=torch.int32)
    caches = torch.full((2, total, block_size, kv_heads, head_dim), NAN)
    for i, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        tables[i, :count], order = order[:count], order[count:]
        at = torch.arange(length)
        caches[:, tables[i].long()[at // block_size], at % block_size] = torch.randn(2, length, kv_heads, head_dim)
    keys, values = caches.to(device).to(cache_dtype or dtype)
    starts = torch.tensor([0] + [new for _, new in sequences]).cumsum(0) + before
    query = torch.randn(int(starts[-1]), (heads + 2 * kv_heads) * head_dim).to(device).to(dtype)
    return {
        "query": query[:, : heads * head_dim].unflatten(1, (heads, head_dim)),
        "keys": keys,
        "values": values,
        "block_tables": tables.to(device),
        "starts": starts.int().to(device),
        "seq_lens": torch.tensor(lengths, dtype=torch.int32, device=device),
        "max_queries": max((new for _, new in sequences), default=0),
    }


def _check(problem: dict[str, Any], **options: Any) -> torch.Tensor:
    query, before = problem["query"], int(problem["starts"][0])
    out = torch.full((query.shape[0] + 1, *query.shape[1:]), NAN, dtype=query.dtype, device=query.device)
    result = prefill_attention(**problem, **options, out=out[:-1])
    assert result.data_ptr() == out.data_ptr()
    assert out[-1].isnan().all() and out[:before].isnan().all(), "wrote rows of no sequence"
    expected = prefill_attention_reference(**problem, **options)
    tolerance = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}[query.dtype]
    torch.testing.assert_close(result[before:].float(), expected[before:].float(), rtol=tolerance, atol=tolerance)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matches_the_reference(device: str, has_gpu: bool, dtype: torch.dtype) -> None:
    _check(_problem(device, [(0, 70), (0, 1), (33, 20), (64, 64), (5, 3)], dtype=dtype))
    if has_gpu:
        for head_dim in (64, 128, 256):
            _check(_problem(device, [(0, 1500), (1000, 77), (2048, 1), (0, 64)], 32, 8, head_dim, dtype=dtype))


@pytest.mark.parametrize("ratio", [1, 2, 4, 5, 7, 8, 20])
def test_every_ratio_of_query_heads_to_kv_heads(device: str, ratio: int) -> None:
    problem = _problem(device, [(0, 30), (21, 9)], heads=2 * ratio, dtype=torch.float16)
    _check(problem)
    _check(problem, sinks=torch.randn(2 * ratio, device=device))


@pytest.mark.parametrize("head_dim", [16, 80, 96, 112, 128, 256, 512])
def test_every_head_dim(device: str, head_dim: int) -> None:
    _check(_problem(device, [(0, 40), (50, 3)], head_dim=head_dim, dtype=torch.float16))


@pytest.mark.parametrize("head_dim", [64, 512])
def test_a_cache_whose_slots_have_more_than_the_keys(device: str, head_dim: int) -> None:
    """Layers with smaller keys lie side by side in a row of the cache."""
    problem = _problem(device, [(0, 40), (50, 3)], head_dim=head_dim, dtype=torch.float16)
    for name in ("keys", "values"):
        wide = torch.full((*problem[name].shape[:2], 3 * 2 * head_dim), NAN, dtype=torch.float16, device=device)
        own = wide[:, :, 2 * head_dim : 4 * head_dim].unflatten(-1, (2, head_dim))
        problem[name] = own.copy_(problem[name])
    _check(problem)
    _check(problem, window=20)
    with pytest.raises(ValueError, match="must have one stride"):
        prefill_attention(**{**problem, "keys": problem["keys"].contiguous()})


@pytest.mark.parametrize("block_size", [8, 24, 32, 128])
def test_every_block_size(device: str, block_size: int) -> None:
    _check(_problem(device, [(0, 40), (130, 5)], block_size=block_size, dtype=torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [1, 7, 16, 50, 1000])
def test_window(device: str, window: int, dtype: torch.dtype) -> None:
    sequences = [(0, 100), (120, 10), (3, 1)]
    problem = _problem(device, sequences, dtype=dtype)
    for i, (cached, _) in enumerate(sequences):  # pages before the window of the first query may be given away
        problem["block_tables"][i, : max(0, cached + 1 - window) // 16] = 0
    _check(problem, window=window)


@pytest.mark.parametrize("chunk", [1, 16, 50, 128])
def test_chunks(device: str, chunk: int) -> None:
    sequences = [(0, 170), (120, 10), (3, 1), (150, 30)]
    problem = _problem(device, sequences, dtype=torch.float16)
    for i, (cached, _) in enumerate(sequences):  # pages before the chunk of the first query may be given away
        problem["block_tables"][i, : cached // chunk * chunk // 16] = 0
    _check(problem, window=chunk, is_chunk=True)


def test_alibi(device: str) -> None:
    problem = _problem(device, [(0, 170), (120, 10), (3, 1)], heads=8, dtype=torch.float16)
    slopes = torch.tensor([0.5**i for i in range(8)], device=device)
    _check(problem, slopes=slopes)
    _check(problem, slopes=8 * slopes, scale=0.5, window=50)


def test_fresh_prompts_by_the_dense_operator(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was measured to be faster, for prompts that are long enough and that it can compute."""
    problem = _problem(device, [(0, 40), (0, 70)], heads=8, dtype=torch.float16, before=3)
    bounds, seen = [3, 43, 113], []

    def watched(*arguments: Any) -> torch.Tensor:
        seen.append(len(arguments))
        return dense_attention.dense_attention(*arguments)

    monkeypatch.setattr("ember_kernels.prefill_attention.dense_attention", watched)
    monkeypatch.setitem(dense_attention.MEASURED, device_capability(problem["query"].device), 40)
    _check(problem, bounds=bounds)
    _check(problem, bounds=bounds, scale=0.3)
    assert len(seen) == 2
    _check(problem, bounds=bounds, window=9)
    _check(problem)
    _check(_problem(device, [(0, 39), (0, 70)], dtype=torch.float16), bounds=[0, 39, 109])
    assert len(seen) == 2


def test_a_prompt_in_chunks_is_the_prompt_at_once(device: str) -> None:
    whole = _problem(device, [(0, 150)], dtype=torch.float16)
    expected = _check(whole)
    for start, stop in ((0, 41), (41, 100), (100, 101), (101, 150)):
        chunk = {**whole, "query": whole["query"][start:stop], "max_queries": stop - start}
        chunk["starts"] = torch.tensor([0, stop - start], dtype=torch.int32, device=device)
        chunk["seq_lens"] = torch.tensor([stop], dtype=torch.int32, device=device)
        result = prefill_attention(**chunk)
        torch.testing.assert_close(result, expected[start:stop], rtol=3e-3, atol=3e-3)


def test_soft_cap_sinks_and_scale(device: str) -> None:
    problem = _problem(device, [(0, 40), (30, 11)], heads=8, dtype=torch.float16)
    sinks = torch.tensor([-30.0, -1.0, 0.0, 1.0, 3.0, 10.0, 40.0, 200.0], device=device)
    _check(problem, soft_cap=1.5)
    _check(problem, sinks=sinks)
    _check(problem, sinks=sinks, soft_cap=2.0, window=9, scale=0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float8_cache(device: str, dtype: torch.dtype) -> None:
    problem = _problem(device, [(0, 40), (20, 9)], dtype=dtype, cache_dtype=torch.float8_e4m3fn)
    _check(problem, k_scale=0.5, v_scale=3.0)
    _check(problem, k_scale=0.5, v_scale=3.0, soft_cap=4.0, window=12)


def test_rows_before_the_first_sequence_are_left_alone(device: str) -> None:
    """Decodes come first in a mixed batch, and are served by decode attention."""
    _check(_problem(device, [(0, 50), (17, 30)], before=37, dtype=torch.float16))


def test_many_short_and_empty_sequences(device: str) -> None:
    sequences = [(i % 5, i % 3) for i in range(30)]
    sequences += [(1, 0), (0, 0)]
    _check(_problem(device, sequences, heads=2, head_dim=16, block_size=8, dtype=torch.float16))


def test_sequences_beyond_one_load_of_starts(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ember_kernels.prefill_attention.STARTS_BLOCK", 4)
    _check(_problem(device, [(i, 3 + i) for i in range(9)], heads=2, head_dim=16, dtype=torch.float16))


def test_high_scores_do_not_overflow(device: str) -> None:
    problem = _problem(device, [(20, 40)], dtype=torch.float32)
    problem["query"] *= 1000
    _check(problem)
    _check(problem, window=10)


def test_nothing_to_do(device: str) -> None:
    assert prefill_attention(**_problem(device, [(3, 0)])).shape == (0, 4, 64)
    assert prefill_attention(**_problem(device, [])).shape == (0, 4, 64)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_tiles_hold_a_group_and_fit_shared_memory(capability: int) -> None:
    limit = {80: 163, 90: 227, 100: 227}.get(capability, 99) << 10
    for head_dim in (64, 128, 256):
        for rows in (1, 64, 65, 10_000):
            c = config(head_dim, 2, rows, capability)
            assert c.block_m == (64 if rows <= 64 else c.block_m)
            assert 2 * head_dim * (c.block_m + 2 * 2 * c.block_n) <= limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"starts": torch.zeros(1, dtype=torch.int32)}, r"starts must be \[2\] for 1 sequences and is \[1\]"),
        ({"values": torch.zeros(3, 16, 2, 32)}, "must be"),
        ({"query": torch.zeros(5, 4, 64).bfloat16()}, "cache must be torch.bfloat16 or float8_e4m3fn"),
    ],
)
def test_refuses_what_it_cannot_do(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prefill_attention(**{**_problem("cpu", [(0, 5)]), **change})


PROBE = """
import torch
from ember_kernels import prefill_attention as module
from ember_kernels.compile import compile_one, dry_run

for specialisation in module.specialisations(90):
    if specialisation.name in ("prefill_attention[bf16_cache_bf16_d64_p16_m64]",
                               "prefill_attention[bf16_cache_bf16_d64_p16_m128]"):
        compile_one("", specialisation, 90)
with dry_run(90) as misses:
    for new, heads, kv_heads, at in (([5], 8, 2, 0), ([16, 1, 0], 6, 1, 3), ([90, 100], 5, 5, 1)):
        seqs = len(new)
        tables = torch.zeros(seqs + 4, 9, dtype=torch.int32)[at : at + seqs]
        lengths = torch.tensor([0] * at + new, dtype=torch.int32)
        starts = torch.tensor([0] * at + new).cumsum(0).int()
        starts = torch.nn.functional.pad(starts, (1, 0))[at:]
        query = torch.zeros(sum(new), (heads + 2 * kv_heads) * 64).bfloat16()
        query = query[:, : heads * 64].unflatten(1, (heads, 64))
        cache = torch.zeros(9, 16, kv_heads, 64).bfloat16()
        module.prefill_attention(query, cache, cache, tables, starts, lengths[at:], max_queries=max(new))
assert not misses, misses
"""


def test_launches_ask_for_what_is_listed(tmp_path: Path) -> None:
    """Whatever the batch, a boot finds the binaries of an image: nothing but the listed ones is ever asked for."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
