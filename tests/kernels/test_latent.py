"""The kernels of latent attention against their references, in the interpreter or on the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.latent_cache import latent_cache, latent_cache_reference
from ember_kernels.latent_decode import latent_decode, latent_decode_reference, plan_latents
from ember_kernels.latent_expansion import Carried, expanded_attention, expanded_attention_reference
from ember_kernels.latent_pieces import gather_latents, gather_latents_reference, plan_pieces, upload_pieces
from ember_kernels.latent_prefill import latent_prefill, latent_prefill_reference

NAN = float("nan")
TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def _problem(
    device: str,
    lengths: list[int],
    queries: list[int],
    *,
    heads: int,
    rank: int,
    rotary_dim: int,
    dtype: torch.dtype,
    float8: bool = False,
    block_size: int = 16,
) -> dict[str, Any]:
    """Queries, and a cache of the second of two layers side by side, in which everything that belongs to no sequence is
    NaN."""
    size, blocks = rank + rotary_dim, [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(blocks) + 1) + 1  # block 0 stays poisoned: tables are padded with it
    tables = torch.zeros(len(lengths), max(blocks) + 1, dtype=torch.int32)
    rows = torch.full((sum(blocks) + 2, block_size, 2 * size), NAN)
    for i, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        tables[i, :count], order = order[:count], order[count:]
        at = torch.arange(length)
        rows[tables[i].long()[at // block_size], at % block_size, size:] = torch.randn(length, size)
    cache = rows.to(device).to(torch.float8_e4m3fn if float8 else dtype)[:, :, None, size:]
    return {
        "query": torch.randn(sum(queries), heads, size).to(device).to(dtype),
        "cache": cache,
        "block_tables": tables.to(device),
        "seq_lens": torch.tensor(lengths, dtype=torch.int32, device=device),
        "rank": rank,
        "scale": 0.07,
        "cache_scale": 0.5 if float8 else 1.0,
    }


CASES = [
    # heads, rank, rotary_dim, dtype, float8
    (20, 512, 64, torch.bfloat16, False),
    (5, 40, 12, torch.float32, False),
    (32, 64, 16, torch.bfloat16, True),
]


@pytest.mark.parametrize(("heads", "rank", "rotary_dim", "dtype", "float8"), CASES)
@pytest.mark.parametrize("programs", [1, 5])
def test_decodes(
    device: str, heads: int, rank: int, rotary_dim: int, dtype: torch.dtype, float8: bool, programs: int
) -> None:
    """Contexts that one program computes, and that several share; padding rows are zero."""
    sizes: dict[str, Any] = {"heads": heads, "rank": rank, "rotary_dim": rotary_dim, "dtype": dtype, "float8": float8}
    lengths = [1, 0, 17, 130]
    problem = _problem(device, lengths, [1] * 4, **sizes)
    plan = plan_latents(problem["seq_lens"], heads, problem["cache"], rank, programs)
    plan.parts.fill_(NAN)
    out = torch.full((5, heads, rank), NAN, dtype=dtype, device=device)
    found = latent_decode(**problem, plan=plan, out=out[:4])
    expected = latent_decode_reference(**problem)
    assert out[4].isnan().all() and (found[1] == 0).all()
    torch.testing.assert_close(found.float(), expected.float(), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize(("heads", "rank", "rotary_dim", "dtype", "float8"), CASES)
def test_prompts(device: str, heads: int, rank: int, rotary_dim: int, dtype: torch.dtype, float8: bool) -> None:
    """A fresh prompt, a chunk after a prefix, a sequence without rows and a single row, after two rows of decodes."""
    sizes: dict[str, Any] = {"heads": heads, "rank": rank, "rotary_dim": rotary_dim, "dtype": dtype, "float8": float8}
    problem = _problem(device, [19, 70, 8, 33], [2, 19, 21, 0, 1], **sizes)
    problem["starts"] = torch.tensor([2, 21, 42, 42, 43], dtype=torch.int32, device=device)
    out = torch.full((43, heads, rank), NAN, dtype=dtype, device=device)
    latent_prefill(**problem, out=out)
    expected = latent_prefill_reference(**problem)
    assert out[:2].isnan().all()
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(out[2:].float(), expected[2:].float(), rtol=tolerance, atol=tolerance)


def test_contexts_are_divided_into_pieces() -> None:
    assert plan_pieces([0, 2, 3], [4, 3], 9) == [(0, 7, [[0, 2, 3], [0, 4, 7], [0, 0, 0], [4, 3, 0]])]
    assert plan_pieces([0, 2, 3], [4, 3], 5) == [
        (0, 5, [[0, 2, 3], [0, 4, 5], [0, 0, 0], [4, 3, 0]]),
        (1, 2, [[0, 1], [0, 2], [1, 0], [3, 0]]),
    ]
    lens = [1, 40, 7, 7, 19]
    for most in range(1, 80):
        keys: list[list[int]] = [[] for _ in lens]
        for first, num_keys, (_, rows, positions, contexts) in plan_pieces([0, 1, 21, 28, 30, 31], lens, most):
            assert rows[-1] == num_keys <= most
            for i in range(len(rows) - 1):
                keys[first + i] += range(positions[i], positions[i] + rows[i + 1] - rows[i])
                assert contexts[i] == lens[first + i]
        assert keys == [list(range(length)) for length in lens]


EXPANDED = [
    # heads, rank, plain_dim, rotary_dim, value_dim, dtype, float8
    (3, 40, 24, 12, 40, torch.float32, False),
    (2, 64, 48, 16, 32, torch.bfloat16, True),
]


@pytest.mark.parametrize(("heads", "rank", "plain_dim", "rotary_dim", "value_dim", "dtype", "float8"), EXPANDED)
@pytest.mark.parametrize("most_keys", [200, 45])
def test_prompts_with_expanded_keys(
    device: str,
    heads: int,
    rank: int,
    plain_dim: int,
    rotary_dim: int,
    value_dim: int,
    dtype: torch.dtype,
    float8: bool,
    most_keys: int,
) -> None:
    """A fresh prompt, a chunk after a prefix and a single row, of whole contexts and of divided ones."""
    lengths, starts, tolerance = [19, 110, 33], [0, 19, 60, 61], TOLERANCES[dtype]
    sizes: dict[str, Any] = {"heads": heads, "rank": rank, "rotary_dim": rotary_dim, "dtype": dtype, "float8": float8}
    problem = _problem(device, lengths, [19, 41, 1], **sizes)
    query = torch.randn(starts[-1], heads, plain_dim + rotary_dim).to(device).to(dtype)
    matrix = (torch.randn(heads * (plain_dim + value_dim), rank) / rank**0.5).to(device).to(dtype)
    pieces = upload_pieces(starts, lengths, most_keys, torch.device(device))
    assert [piece.is_split for piece in pieces] == ([False] if most_keys == 200 else [True] * 4)
    found, expected = (torch.full((starts[-1], heads, value_dim), NAN, dtype=dtype, device=device) for _ in range(2))
    ours, theirs = Carried.like(found), Carried.like(expected)
    options: dict[str, Any] = {"rank": rank, "dtype": dtype, "cache_scale": problem["cache_scale"]}
    for piece in pieces:
        gathered = problem["cache"], problem["block_tables"], piece
        latent, turned = gather_latents(*gathered, **options)
        for made, wanted in zip((latent, turned), gather_latents_reference(*gathered, **options), strict=True):
            assert torch.equal(made, wanted)
        up = latent @ matrix.t()
        expanded_attention(query, up, turned, piece, scale=0.2, carried=ours, out=found)
        expanded_attention_reference(query, up, turned, piece, scale=0.2, carried=theirs, out=expected)
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)
    # The same as absorbed: queries times the keys' rows, mixed latents times the values' rows.
    if dtype == torch.float32:
        keys, values = matrix.unflatten(0, (heads, -1)).split((plain_dim, value_dim), dim=1)
        plain, rest = query.split((plain_dim, rotary_dim), dim=2)
        problem["query"] = torch.cat((torch.einsum("thp,hpr->thr", plain, keys), rest), dim=2)
        problem |= {"starts": torch.tensor(starts, dtype=torch.int32, device=device), "scale": 0.2}
        mixed = torch.einsum("thr,hvr->thv", latent_prefill_reference(**problem), values)
        torch.testing.assert_close(found, mixed, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize(("heads", "rank", "rotary_dim", "dtype", "float8"), CASES)
def test_the_cache_write(
    device: str, heads: int, rank: int, rotary_dim: int, dtype: torch.dtype, float8: bool, neox: bool
) -> None:
    size, tokens = rank + rotary_dim, 5
    rows = torch.zeros(3, 16, 2 * size, device=device).to(torch.float8_e4m3fn if float8 else dtype)
    wide = torch.randn(tokens, heads, 7 + rotary_dim).to(device).to(dtype)
    given: dict[str, Any] = {
        "query": wide[..., 7:],
        "latent": torch.randn(tokens, size + 9).to(device).to(dtype)[:, 9:],
        "weight": torch.rand(rank).to(device).to(dtype),
        "slot_mapping": torch.tensor([40, 3, -1, 17, 0], device=device),
        "positions": torch.tensor([5, 0, 3, 9, 2], device=device),
        "table": torch.rand(10, rotary_dim, device=device),
        "eps": 1e-6,
        "neox": neox,
        "scale": torch.tensor([0.03], device=device) if float8 else None,
    }
    results = []
    for function in (latent_cache, latent_cache_reference):
        own, out = rows.clone(), torch.full((tokens, heads, size), NAN, dtype=dtype, device=device)
        function(**given, cache=own[:, :, None, size:], out=out)
        assert out[2].isnan().all() and out[..., :rank].isnan().all()
        assert (own[..., :size].float() == 0).all(), "the other layer's part"
        results.append((own.float(), out[..., rank:].float()))
    tolerance = 0.07 if float8 else TOLERANCES[dtype]
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance, equal_nan=True)


def test_what_does_not_fit_is_refused(device: str) -> None:
    problem = _problem(device, [3], [1], heads=2, rank=16, rotary_dim=8, dtype=torch.float32)
    with pytest.raises(ValueError, match="does not fit query"):
        latent_decode(**problem | {"rank": 24})
    with pytest.raises(ValueError, match="the cache must be"):
        latent_decode(**problem | {"cache": problem["cache"].half()})
