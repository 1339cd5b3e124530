"""Decode attention against the reference, in the interpreter or on the GPU."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from ember_kernels.attention import E4M3_TO_BF16
from ember_kernels.decode_attention import decode_attention, decode_attention_reference, plan_attention
from ember_kernels.decode_plan import HEADER, DecodePlan, plan_decodes, plan_reference

NAN = float("nan")


def _problem(
    device: str,
    lengths: list[int],
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Queries and a cache in which everything that belongs to no sequence is NaN, slots after a length included."""
    blocks = [-(-length // block_size) for length in lengths]
    total = sum(blocks) + 2
    order = torch.randperm(total - 1) + 1  # block 0 stays poisoned: tables are padded with it
    tables = torch.zeros(len(lengths), max(blocks, default=0) + 1, dtype=torch.int32)
    caches = torch.full((2, total, block_size, kv_heads, head_dim), NAN)
    for i, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        tables[i, :count], order = order[:count], order[count:]
        at = torch.arange(length)
        caches[:, tables[i].long()[at // block_size], at % block_size] = torch.randn(2, length, kv_heads, head_dim)
    keys, values = caches.to(device).to(cache_dtype or dtype)
    # Queries are a view of a wider row, as of a fused qkv.
    query = torch.randn(len(lengths), (heads + 2 * kv_heads) * head_dim).to(device).to(dtype)
    return {
        "query": query[:, : heads * head_dim].unflatten(1, (heads, head_dim)),
        "keys": keys,
        "values": values,
        "block_tables": tables.to(device),
        "seq_lens": torch.tensor(lengths, dtype=torch.int32, device=device),
    }


def _check(problem: dict[str, Any], **options: Any) -> torch.Tensor:
    query = problem["query"]
    seqs, heads, head_dim = query.shape
    out = torch.full((seqs + 1, heads, head_dim), NAN, dtype=query.dtype, device=query.device)
    window, programs = options.get("window"), options.get("programs")
    split = {"window": window, "is_chunk": options.get("is_chunk", False), "programs": programs}
    plan = plan_attention(problem["seq_lens"], heads, problem["keys"], **split)
    plan.parts.fill_(NAN)
    result = decode_attention(**problem, **options, plan=plan, out=out[:seqs])
    assert result.data_ptr() == out.data_ptr()
    assert out[seqs].isnan().all(), "wrote beyond the last row"
    expected = decode_attention_reference(**problem, **options)
    tolerance = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}[query.dtype]
    torch.testing.assert_close(result.float(), expected.float(), rtol=tolerance, atol=tolerance)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("programs", [1, 5])
def test_matches_the_reference(device: str, has_gpu: bool, dtype: torch.dtype, programs: int) -> None:
    _check(_problem(device, [1, 17, 130, 64], dtype=dtype), programs=programs)
    if has_gpu:
        for head_dim in (64, 128, 256):
            problem = _problem(device, [1, 4097, 700, 2048], 32, 8, head_dim, dtype=dtype)
            _check(problem, programs=programs)
            _check(problem)


@pytest.mark.parametrize("ratio", [1, 2, 4, 5, 7, 8, 20])
def test_every_ratio_of_query_heads_to_kv_heads(device: str, ratio: int) -> None:
    problem = _problem(device, [40, 5], heads=2 * ratio)
    _check(problem, programs=1)
    _check(problem, programs=3, sinks=torch.randn(2 * ratio, device=device))


@pytest.mark.parametrize("head_dim", [16, 80, 96, 112, 128, 256, 512])
def test_every_head_dim(device: str, head_dim: int) -> None:
    problem = _problem(device, [70, 3], head_dim=head_dim)
    _check(problem, programs=1)
    _check(problem, programs=7)


@pytest.mark.parametrize("head_dim", [64, 512])
def test_a_cache_whose_slots_have_more_than_the_keys(device: str, head_dim: int) -> None:
    """Layers with smaller keys lie side by side in a row of the cache."""
    problem = _problem(device, [70, 3], head_dim=head_dim, dtype=torch.float16)
    for name in ("keys", "values"):
        wide = torch.full((*problem[name].shape[:2], 3 * 2 * head_dim), NAN, dtype=torch.float16, device=device)
        own = wide[:, :, 2 * head_dim : 4 * head_dim].unflatten(-1, (2, head_dim))
        problem[name] = own.copy_(problem[name])
    _check(problem, programs=1)
    _check(problem, programs=3, window=20)
    with pytest.raises(ValueError, match="must have one stride"):
        decode_attention(**{**problem, "keys": problem["keys"].contiguous()})


@pytest.mark.parametrize("block_size", [8, 24, 32, 128])
def test_every_block_size(device: str, block_size: int) -> None:
    _check(_problem(device, [150, 1, 128], block_size=block_size), programs=3)


@pytest.mark.parametrize("programs", [1, 9])
@pytest.mark.parametrize("window", [1, 7, 16, 100])
def test_window(device: str, window: int, programs: int) -> None:
    problem = _problem(device, [150, 3, 16, 101], block_size=16)
    for i, length in enumerate([150, 3, 16, 101]):  # pages that lie before the window may have been given away
        problem["block_tables"][i, : max(0, length - window) // 16] = 0
    _check(problem, window=window, programs=programs)


@pytest.mark.parametrize("programs", [1, 9])
@pytest.mark.parametrize("chunk", [1, 16, 50])
def test_chunks(device: str, chunk: int, programs: int) -> None:
    lengths = [150, 3, 0, 16, 101, 51, 50]
    problem = _problem(device, lengths, block_size=16)
    for i, length in enumerate(lengths):  # pages that lie before the chunk may have been given away
        problem["block_tables"][i, : max(0, length - 1) // chunk * chunk // 16] = 0
    _check(problem, window=chunk, is_chunk=True, programs=programs)


@pytest.mark.parametrize("programs", [1, 7])
def test_alibi(device: str, programs: int) -> None:
    problem = _problem(device, [0, 290, 31], heads=8)
    slopes = torch.tensor([0.5**i for i in range(8)], device=device)
    _check(problem, slopes=slopes, programs=programs)
    _check(problem, slopes=8 * slopes, scale=0.5, window=100, programs=programs)


@pytest.mark.parametrize("programs", [1, 7])
def test_soft_cap_sinks_and_scale(device: str, programs: int) -> None:
    problem = _problem(device, [90, 31], heads=8)
    problem["query"] *= 8
    sinks = torch.tensor([-30.0, -1.0, 0.0, 1.0, 3.0, 10.0, 40.0, 200.0], device=device)
    _check(problem, soft_cap=5.0, programs=programs)
    _check(problem, sinks=sinks, programs=programs)
    _check(problem, sinks=sinks, soft_cap=20.0, window=20, scale=0.3, programs=programs)
    _check(problem, soft_cap=1e-3, scale=100.0, programs=programs)  # tanh far beyond where exp overflows


@pytest.mark.parametrize("programs", [1, 11])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_padding_rows_are_zero(device: str, programs: int, with_sinks: bool) -> None:
    sinks = torch.randn(4, device=device) if with_sinks else None
    problem = _problem(device, [0, 20, 0])
    result = _check(problem, programs=programs, sinks=sinks)
    assert not result[0].any() and not result[2].any()
    assert not _check(_problem(device, [0, 0]), programs=programs, sinks=sinks, window=5).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_float8_cache(device: str, dtype: torch.dtype) -> None:
    """In the interpreter and before sm_89 through the bytes; the hardware's own type elsewhere."""
    problem = _problem(device, [60, 9], dtype=dtype, cache_dtype=torch.float8_e4m3fn)
    _check(problem, programs=1, k_scale=0.5, v_scale=3.0)
    _check(problem, programs=3, k_scale=0.5, v_scale=3.0, soft_cap=4.0)


def test_every_float8_value_is_decoded_from_its_bits(device: str) -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    bits = bits[(bits & 0x7F) != 0x7F].view(torch.float8_e4m3fn)  # without the two NaNs: 254 values
    problem = _problem(device, [1] * 4, heads=2, kv_heads=2, head_dim=32, dtype=torch.float16)
    keys, values = problem["keys"], torch.zeros(6, 16, 2, 32, device=device)
    every = torch.cat([bits.float(), torch.zeros(2)]).to(device)
    at = problem["block_tables"][:, 0].long()
    values[at, 0] = every.view(4, 2, 32)  # the output of a context of one token is its value
    problem["keys"] = torch.zeros_like(keys).to(torch.float8_e4m3fn)
    problem["values"] = values.to(torch.float8_e4m3fn)
    assert torch.equal(decode_attention(**problem).flatten().float(), every)


def test_high_scores_do_not_overflow(device: str) -> None:
    problem = _problem(device, [80, 20])
    problem["query"] *= 1000
    _check(problem, programs=1)
    _check(problem, programs=3)


def test_no_sequences(device: str) -> None:
    assert decode_attention(**_problem(device, [])).shape == (0, 4, 64)


def test_a_plan_serves_all_layers_of_a_step(device: str) -> None:
    """Later layers find no zeros in the parts, and the same lengths."""
    problem = _problem(device, [150, 0, 40])
    plan = plan_attention(problem["seq_lens"], 4, problem["keys"], programs=6)
    for _ in range(2):
        problem |= {name: torch.randn_like(problem[name]) for name in ("query", "keys", "values")}
        result = decode_attention(**problem, plan=plan)
        torch.testing.assert_close(result, decode_attention_reference(**problem), rtol=1e-4, atol=1e-4)


def _pieces(plan: DecodePlan) -> list[int]:
    """The tiles of each program."""
    share, total = plan.words[:2].tolist()
    return [max(0, min(share, total - program * share)) for program in range(plan.num_programs)]


@pytest.mark.parametrize(("window", "is_chunk"), [(None, False), (1, False), (100, False), (100, True), (1000, True)])
@pytest.mark.parametrize("programs", [1, 7, 528])
def test_the_plan_is_that_of_its_specification(device: str, window: int | None, is_chunk: bool, programs: int) -> None:
    draw = random.Random(programs)
    for num_seqs in (1, 3, 255, 256, 257, 300):
        lengths = [draw.choice((0, 1, 31, 32, 33, draw.randrange(9000))) for _ in range(num_seqs)]
        seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
        split = {"block_n": 32, "num_programs": programs}
        plan = plan_decodes(seq_lens, 8, 2, 64, **split, window=window, is_chunk=is_chunk)
        words, expected = plan.words.tolist(), plan_reference(lengths, plan)
        num_busy = sum(length > 0 for length in lengths)
        begins = HEADER + 2 * num_seqs
        found = [*words[:2], *words[HEADER : HEADER + num_seqs + num_busy], *words[begins : begins + programs]]
        assert found == expected
        assert sum(_pieces(plan)) == words[1]


@pytest.mark.parametrize(
    ("lengths", "kv_heads"),
    [([512] * 63 + [16384], 8), ([1024] * 64, 8), ([32768], 8), ([131072] + [100] * 255, 8), ([77] * 9, 1)],
)
def test_no_program_has_more_than_its_share(device: str, lengths: list[int], kv_heads: int) -> None:
    """One long context beside short ones costs what its tokens cost, not what it would alone."""
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    plan = plan_decodes(seq_lens, 4 * kv_heads, kv_heads, 128, block_n=32, num_programs=528)
    tiles = sum(-(-length // 32) for length in lengths) * kv_heads
    assert max(_pieces(plan)) == max(-(-tiles // 528), 2)
    assert sum(_pieces(plan)) == tiles


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(4, 16, 2, 32)}, r"must be \[num_blocks, block_size, kv_heads, 64\]"),
        ({"query": torch.zeros(1, 3, 64)}, "3 heads of query are not a multiple of the cache's 2 KV heads"),
        ({"query": torch.zeros(1, 4, 64).half()}, "cache must be torch.float16 or float8_e4m3fn"),
        ({"query": torch.zeros(1, 64, 4).mT}, "must be contiguous"),
        ({"block_tables": torch.zeros(1, 1)}, "block_tables must be int32"),
        ({"plan": plan_attention(torch.ones(2, dtype=torch.int32), 4, torch.zeros(1, 16, 2, 64))}, "plan is for 2 seq"),
    ],
)
def test_refuses_what_it_cannot_do(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_attention(**{**_problem("cpu", [5]), **change})


PROBE = """
import torch
from ember_kernels import decode_attention as module, decode_plan
from ember_kernels.compile import compile_one, dry_run

for owner in (module, decode_plan):
    for specialisation in owner.specialisations(90):
        variant = specialisation.name.partition("[")[2]
        if variant in ("bf16_cache_bf16_d64_p16]", "n32]", "bf16_d64_n32]"):
            compile_one("", specialisation, 90)
with dry_run(90) as misses:
    for seqs, heads, kv_heads, window, at in ((3, 8, 2, None, 0), (4, 6, 1, 100, 3), (1, 5, 5, 1, 1)):
        tables = torch.zeros(seqs + 4, 9, dtype=torch.int32)
        lengths = torch.ones(seqs + 4, dtype=torch.int32)
        query = torch.zeros(seqs, (heads + 2 * kv_heads) * 64).bfloat16()[:, : heads * 64].unflatten(1, (heads, 64))
        cache = torch.zeros(9, 16, kv_heads, 64).bfloat16()
        rows = slice(at, at + seqs)
        for programs in (None, 1, 2, 16):
            module.decode_attention(
                query, cache, cache, tables[rows], lengths[rows], window=window, programs=programs
            )
assert not misses, misses
"""


def test_launches_ask_for_what_is_listed(tmp_path: Path) -> None:
    """Whatever the batch, a boot finds the binaries of an image: nothing but the listed ones is ever asked for."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]


def _emulate(text: str, inputs: dict[str, int]) -> dict[str, int]:
    """The registers after the instructions that `E4M3_TO_BF16` is made of; bfloat16 products are rounded by torch."""
    registers = dict(inputs)

    def value(name: str) -> int:
        return registers[name] if name in registers else int(name, 0)

    def halves(word: int) -> torch.Tensor:
        return torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.int32).to(torch.int16).view(torch.bfloat16)

    for line in text.strip("{}\n").splitlines():
        operation, _, rest = line.strip().rstrip(";").partition(" ")
        name, *operands = rest.split(", ")
        match operation.split("."):
            case ["prmt", _]:
                data = value(operands[0]).to_bytes(4, "little") + value(operands[1]).to_bytes(4, "little")
                chosen = [data[value(operands[2]) >> 4 * i & 7] for i in range(4)]
                registers[name] = int.from_bytes(bytes(chosen), "little")
            case ["and", _]:
                registers[name] = value(operands[0]) & value(operands[1])
            case ["or", _]:
                registers[name] = value(operands[0]) | value(operands[1])
            case ["shr", _]:
                registers[name] = value(operands[0]) >> value(operands[1])
            case ["mov", _]:
                registers[name] = value(operands[0])
            case ["fma", "rn", "bf16x2"]:
                a, b, c = (halves(value(operand)).double() for operand in operands)
                low, high = (a * b + c).bfloat16().view(torch.int16).tolist()
                registers[name] = low & 0xFFFF | (high & 0xFFFF) << 16
            case ["", "reg"]:
                pass
            case _:
                raise AssertionError(f"not emulated: {line}")
    return registers


def test_the_packed_conversion_of_float8_is_exact() -> None:
    codes = [code for code in range(256) if code & 0x7F != 0x7F]  # without NaN
    codes += codes[: -len(codes) % 4]
    expected = torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn).bfloat16().view(torch.int16)
    for at in range(0, len(codes), 4):
        found = _emulate(E4M3_TO_BF16, {"$2": int.from_bytes(bytes(codes[at : at + 4]), "little")})
        words = [found["$0"] & 0xFFFF, found["$0"] >> 16, found["$1"] & 0xFFFF, found["$1"] >> 16]
        assert words == [int(bits) & 0xFFFF for bits in expected[at : at + 4]], codes[at : at + 4]
