"""Calls that a boot of a typical model makes, run by test_compile.py without a GPU and without launching anything.

    python tests/kernels/typical_launches.py CAPABILITY ...

prints each binary that these calls ask for and no module lists in its specialisations, so that the image lacks it.
Tensors are never read, so they are empty and as large as a model's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch

from ember_kernels import compile as kernels

# hidden, intermediate, heads, kv_heads, vocabulary: Qwen3-0.6B, Llama-3.1-8B, Qwen3-32B
SHAPES = ((1024, 3072, 16, 8, 151936), (4096, 14336, 32, 8, 128256), (5120, 25600, 64, 8, 151936))
BATCHES = (1, 2, 7, 16, 48, 256, 1000)
# experts, top_k, hidden, intermediate: Qwen3-30B-A3B, Mixtral-8x7B
EXPERTS = ((128, 8, 2048, 768), (8, 2, 4096, 14336))
half = partial(torch.empty, dtype=torch.bfloat16)
single = partial(torch.empty, dtype=torch.float32)
integers = partial(torch.empty, dtype=torch.int32)
longs = partial(torch.empty, dtype=torch.int64)


def small_gemm() -> None:
    from ember_kernels.small_gemm import NARROW, small_gemm

    for n, k in NARROW:
        for m in (1, 2, 7, 16):
            small_gemm(half(m, k), half(n, k))


def float8() -> None:
    from ember_kernels.float8_gemm import MAX_ROWS, float8_gemm, float8_restore, quantise_rows
    from ember_kernels.rounding import has_conversion

    float8_e4m3 = partial(torch.empty, dtype=torch.float8_e4m3fn)
    for hidden, intermediate, heads, kv_heads, _ in SHAPES:
        qkv, output = (128 * (heads + 2 * kv_heads), hidden), (hidden, 128 * heads)
        for n, k in (qkv, output, (2 * intermediate, hidden), (hidden, intermediate)):
            codes = float8_e4m3(n, k)
            for block in ((1, k), (128, 128)):
                scales = single(n // block[0], k // block[1])
                float8_restore(codes, scales, block, half(n, k))
                for m in BATCHES:
                    if m <= MAX_ROWS:
                        float8_gemm(half(m, k), codes, scales, block)
                        float8_gemm(half(m, k), codes, scales, block, half(n))
                    elif has_conversion():
                        quantise_rows(half(m, k))


def int_products() -> None:
    from ember_kernels.int_gemm import FORMS, MAX_ROWS, int_gemm, int_restore

    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    for hidden, intermediate, heads, kv_heads, _ in SHAPES:
        qkv, output = (128 * (heads + 2 * kv_heads), hidden), (hidden, 128 * heads)
        for n, k in (qkv, output, (2 * intermediate, hidden), (hidden, intermediate)):
            for bits, scale, has_zeros in FORMS:
                codes = torch.empty(n, k * bits // 8, dtype=torch.uint8)
                for group in (k,) if scale == "fp32" else (128, k):
                    scales = torch.empty(n, k // group, dtype=dtypes[scale])
                    zeros = torch.empty(scales.shape, dtype=torch.uint8) if has_zeros else None
                    int_restore(codes, scales, zeros, bits, half(n, k))
                    for m in BATCHES:
                        if m <= MAX_ROWS:
                            int_gemm(half(m, k), codes, scales, zeros, bits)
                            int_gemm(half(m, k), codes, scales, zeros, bits, half(n))


def int_experts() -> None:
    from ember_kernels.expert_blocks import expert_blocks
    from ember_kernels.grouped_gemm import block_rows
    from ember_kernels.int_experts import gather_ints, grouped_ints
    from ember_kernels.int_gemm import FORMS

    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    for num_experts, top_k, hidden, intermediate in EXPERTS:
        for bits, scale, has_zeros in FORMS:
            codes = torch.empty(num_experts * 2 * intermediate, hidden * bits // 8, dtype=torch.uint8)
            scales = torch.empty(len(codes), hidden // 128, dtype=dtypes[scale])
            zeros = torch.empty(scales.shape, dtype=torch.uint8) if has_zeros else None
            for tokens in (1, 48, 1000):
                ids = longs(tokens, top_k)
                gather_ints(half(tokens, hidden), (codes, scales, zeros, bits), num_experts, ids, top_k)
                blocks = expert_blocks(ids, num_experts, block_rows(ids.numel(), num_experts))
                grouped_ints(half(tokens, hidden), (codes, scales, zeros, bits), num_experts, blocks, top_k)


def quantised_experts() -> None:
    from ember_kernels.block_experts import gather_blocks, grouped_blocks
    from ember_kernels.expert_blocks import expert_blocks
    from ember_kernels.float8_experts import gather_float8, grouped_float8
    from ember_kernels.grouped_gemm import block_rows

    for num_experts, top_k, hidden, intermediate in EXPERTS:
        rows = num_experts * 2 * intermediate
        codes, gguf = torch.empty(rows, hidden, dtype=torch.float8_e4m3fn), in_blocks("Q4_K", rows, hidden)
        for tokens in (1, 48, 200, 1000):
            x, ids = half(tokens, hidden), longs(tokens, top_k)
            blocks = expert_blocks(ids, num_experts, block_rows(ids.numel(), num_experts))
            gather_blocks(x, gguf, "Q4_K", num_experts, ids, top_k)
            grouped_blocks(x, gguf, "Q4_K", num_experts, blocks, top_k)
            for block in ((1, hidden), (128, 128)):
                weight = codes, single(rows // block[0], hidden // block[1]), block
                gather_float8(x, weight, num_experts, ids, top_k)
                grouped_float8(x, weight, num_experts, blocks, top_k)


def in_blocks(name: str, n: int, k: int) -> torch.Tensor:
    from ember_kernels.block_types import BLOCK_TYPES

    return torch.empty(n, k // BLOCK_TYPES[name].elements * BLOCK_TYPES[name].size, dtype=torch.uint8)


def block_products() -> None:
    from ember_kernels.block_gemm import MAX_ROWS, block_gemm, block_restore
    from ember_kernels.block_types import BLOCK_TYPES

    for name in BLOCK_TYPES:
        for n, k in ((6144, 4096), (256, 2560), (28672, 4096)):
            blocks = in_blocks(name, n, k)
            block_restore(blocks, name, half(n, k))
            for m in (1, 17, MAX_ROWS):
                block_gemm(half(m, k), blocks, name)
                block_gemm(half(m, k), blocks, name, half(n))


def step() -> None:
    from ember_kernels import step
    from ember_kernels.step_update import SAMPLING_FIELDS

    words, capacity, rows, max_blocks = len(SAMPLING_FIELDS), 256, 300, 2560
    last_tokens, positions, tables = integers(rows), integers(rows), integers(1, rows, max_blocks)
    for count in (0, words):
        for batch in (1, 2, 8, 24, 256):
            update, lengths, out = integers(8192), integers(batch), integers(1, capacity, max_blocks)
            outputs = (longs(batch), longs(batch), longs(1, batch), lengths, integers(count, capacity))
            state = (last_tokens, positions, tables, integers(rows, count))
            step.prepare_step(update, *state, *outputs, capacity, 16)
            step.gather_block_tables(step.step_rows(update, batch), lengths, tables, out, 16)
            for sampled in (integers(batch), longs(batch)):
                step.store_tokens(sampled, step.step_rows(update, batch), last_tokens)


def experts() -> None:
    from ember_kernels.expert_blocks import expert_blocks
    from ember_kernels.grouped_gemm import block_rows, combine_experts, gather_gemm, grouped_gemm, uses_gather

    for num_experts, top_k, hidden, intermediate in EXPERTS:
        gate_up, down = half(num_experts, 2 * intermediate, hidden), half(num_experts, hidden, intermediate)
        for tokens in BATCHES:
            x, ids, weights = half(tokens, hidden), longs(tokens, top_k), single(tokens, top_k)
            act = half(tokens * top_k, intermediate)
            if uses_gather(tokens):
                gather_gemm(x, gate_up, ids, top_k)
                gather_gemm(act, down, ids)
            else:
                blocks = expert_blocks(ids, num_experts, block_rows(ids.numel(), num_experts))
                grouped_gemm(x, gate_up, blocks, top_k)
                grouped_gemm(act, down, blocks)
            combine_experts(half(tokens * top_k, hidden), ids, weights, num_experts)


def norm() -> None:
    from ember_kernels.norm import rms_norm
    from ember_kernels.rounding import has_conversion, new_rounded

    for hidden, *_ in SHAPES:
        for tokens in BATCHES:
            x, codes = half(tokens, hidden), new_rounded(half(1), tokens, hidden)
            for residual in (None, half(tokens, hidden)):
                for rounded_to in (None, codes) if has_conversion() else (None,):
                    rms_norm(x, half(hidden), 1e-6, residual=residual, rounded_to=rounded_to)


def activation() -> None:
    from ember_kernels.activation import activation
    from ember_kernels.rounding import has_conversion, new_rounded

    for _, intermediate, *_ in SHAPES:
        for tokens in BATCHES:
            codes = new_rounded(half(1), tokens, intermediate)
            for rounded_to in (None, codes) if has_conversion() else (None,):
                activation(half(tokens, 2 * intermediate), "silu", rounded_to=rounded_to)


def rope_cache() -> None:
    from ember_kernels.rope_cache import rope_cache

    for _, _, heads, kv_heads, _ in SHAPES:
        cache = half(4, 16, kv_heads, 128)
        for tokens in BATCHES:
            qkv = half(tokens, (heads + 2 * kv_heads) * 128)
            for weight in (None, half(128)):
                where = (longs(tokens), longs(tokens), single(1000, 128))
                rope_cache(qkv, cache, cache, *where, query_weight=weight, key_weight=weight)


def decode_attention() -> None:
    from ember_kernels.decode_attention import decode_attention

    for _, _, heads, kv_heads, _ in SHAPES:
        cache = half(4, 16, kv_heads, 128)
        for batch in BATCHES:
            tables, lengths = integers(batch, 2560), integers(batch)
            decode_attention(half(batch, heads, 128), cache, cache, tables, lengths)


def prefill_attention() -> None:
    from ember_kernels.prefill_attention import prefill_attention

    for _, _, heads, kv_heads, _ in SHAPES:
        cache = half(4, 16, kv_heads, 128)
        for seqs in (1, 3, 16):
            for queries in (1, 17, 200, 4000):
                where = (integers(seqs, 2560), integers(seqs + 1), integers(seqs))
                prefill_attention(half(seqs * queries, heads, 128), cache, cache, *where, max_queries=queries)


def text_attention() -> None:
    from ember_kernels.text_attention import text_attention

    for heads, kv_heads, head_dim in ((12, 12, 32), (12, 12, 64), (16, 16, 64), (3, 1, 256)):
        for length, window in ((8, None), (512, None), (512, 64)):
            qkv = half(3 * length, (heads + 2 * kv_heads) * head_dim).unflatten(1, (-1, head_dim))
            query, keys, values = qkv.split((heads, kv_heads, kv_heads), 1)
            text_attention(query, keys, values, integers(4), longest=length, window=window)


def logprobs() -> None:
    from ember_kernels.sampling_logprobs import logprobs

    for *_, vocabulary in SHAPES[:2]:
        for rows in (1, 3, 16):
            for num_top in (0, 1, 5, 20):
                logprobs(half(rows, vocabulary), longs(rows), num_top)


def sampling() -> None:
    from ember_kernels.sampling import Constraints, Workspace, sample
    from ember_kernels.step_update import SAMPLING_FIELDS

    for *_, vocabulary in SHAPES[:2]:
        workspace = Workspace.create(256, vocabulary, "cpu")
        parameters, logits = integers(len(SAMPLING_FIELDS), 256), half(256, vocabulary)
        limits, words = integers(2, 256), -(-vocabulary // 32)
        for rows in (1, 2, 7, 16, 256):
            constraints = Constraints(
                mask=integers(256, words),
                mask_rows=limits[1, :rows],
                bias_ids=integers(256, 512),
                bias_values=single(256, 512),
                bias_counts=integers(256),
                prompt_mask=integers(256, words),
                output_counts=torch.empty(256, vocabulary, dtype=torch.int16),
            )
            for positions in (integers(rows), integers(4096)[12 : 12 + rows]):  # a part of the step's buffer
                batch = logits[:rows], parameters, positions
                sample(*batch, slots=limits[0, :rows], constraints=constraints, workspace=workspace)


LAUNCHES: tuple[Callable[[], None], ...] = (
    small_gemm,
    float8,
    int_products,
    int_experts,
    block_products,
    quantised_experts,
    step,
    experts,
    norm,
    activation,
    rope_cache,
    decode_attention,
    prefill_attention,
    text_attention,
    sampling,
    logprobs,
)


def main() -> None:
    for capability in map(int, sys.argv[1:]):
        listed = kernels.listed(capability)
        for launches in LAUNCHES:
            with kernels.dry_run(capability) as launched:
                launches()
            assert launched, launches
            for identity in sorted(launched - listed):
                print(f"{launches.__name__} on sm_{capability}: {identity}")


if __name__ == "__main__":
    main()
