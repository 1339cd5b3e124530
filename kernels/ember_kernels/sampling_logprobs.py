"""Log probabilities of the unmasked distribution: of the sampled token with its rank, and of the most likely tokens.

There are two launches. Programs over (row, chunk of the vocabulary) hold a chunk in registers, sum it and take its
largest tokens one by one. Then one program per row does the same with their results. Of equal logits the lower id is
first.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.launch import cdiv, direct
from ember_kernels.sampling_keys import key_index, key_value, pack
from ember_kernels.specialisation import Specialisation

MAX_TOP = 20
# The same on all architectures: a chunk is 16 values per thread; the largest tokens of a row's chunks fit one program.
CHUNK, WARPS = 4096, 8
FINALISTS, FINAL_WARPS = 2048, 8
NOT_SPECIALISED = ["num_top", "num_chunks"]


@direct
@triton.jit(do_not_specialize=NOT_SPECIALISED)
def _chunk_kernel(
    logits_ptr,
    token_ptr,
    keys_ptr,  # [rows, num_chunks * num_top] int64
    sums_ptr,  # [rows, num_chunks, 2] float32: largest, sum of exp(x - largest)
    higher_ptr,  # [rows, num_chunks] int32: logits above the drawn token's
    logits_stride,
    vocab,
    num_top,
    num_chunks,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    index = chunk * CHUNK + tl.arange(0, CHUNK)
    valid = index < vocab
    x = tl.load(logits_ptr + row * logits_stride + index, mask=valid, other=float("-inf")).to(tl.float32)
    drawn = tl.load(logits_ptr + row * logits_stride + tl.load(token_ptr + row)).to(tl.float32)
    at = row * num_chunks + chunk
    largest = tl.max(x, axis=0)
    base = tl.where(largest > float("-inf"), largest, 0.0)
    tl.store(sums_ptr + 2 * at, largest)
    tl.store(sums_ptr + 2 * at + 1, tl.sum(tl.exp(x - base), axis=0))
    tl.store(higher_ptr + at, tl.sum((x > drawn).to(tl.int32), axis=0))
    keys = tl.where(valid, pack(x, index), -1)
    for i in range(num_top):
        best = tl.max(keys, axis=0)
        tl.store(keys_ptr + at * num_top + i, best)
        keys = tl.where(keys == best, -1, keys)


@direct
@triton.jit(do_not_specialize=NOT_SPECIALISED)
def _row_kernel(
    logits_ptr,
    token_ptr,
    keys_ptr,
    sums_ptr,
    higher_ptr,
    logprob_ptr,
    rank_ptr,
    top_ids_ptr,
    top_logprobs_ptr,
    logits_stride,
    num_top,
    num_chunks,
    CHUNKS: tl.constexpr,
    FINALISTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, CHUNKS)
    mask = chunks < num_chunks
    at = row * num_chunks + chunks
    largest = tl.load(sums_ptr + 2 * at, mask=mask, other=float("-inf"))
    total = tl.load(sums_ptr + 2 * at + 1, mask=mask, other=0.0)
    base = tl.max(largest, axis=0)
    # A chunk without a finite logit has -inf for its largest and 0 for its sum.
    log_sum = base + tl.log(tl.sum(total * tl.exp(largest - base), axis=0))
    drawn = tl.load(logits_ptr + row * logits_stride + tl.load(token_ptr + row)).to(tl.float32)
    tl.store(logprob_ptr + row, drawn - log_sum)
    tl.store(rank_ptr + row, tl.sum(tl.load(higher_ptr + at, mask=mask, other=0), axis=0) + 1)
    finalists = tl.arange(0, FINALISTS)
    keys = tl.load(keys_ptr + row * num_chunks * num_top + finalists, mask=finalists < num_chunks * num_top, other=-1)
    for i in range(num_top):
        best = tl.max(keys, axis=0)
        tl.store(top_ids_ptr + row * num_top + i, key_index(best))
        tl.store(top_logprobs_ptr + row * num_top + i, key_value(best) - log_sum)
        keys = tl.where(keys == best, -1, keys)


def logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log probabilities (natural) of softmax(logits).

    logits: [rows, vocab] float32, bfloat16 or float16; rows may be strided. token_ids: [rows] int64. num_top: 0 to 20,
    at most vocab. Returns (of token_ids float32 [rows], its rank int32 [rows]: 1 + how many logits are larger,
    the most likely ids int64 [rows, num_top] in order, their log probabilities float32 [rows, num_top]).
    """
    rows, vocab = logits.shape
    num_chunks = cdiv(vocab, CHUNK)
    if not 0 <= num_top <= min(MAX_TOP, vocab):
        raise ValueError(f"num_top {num_top} is not between 0 and {min(MAX_TOP, vocab)}")
    if num_chunks * MAX_TOP > FINALISTS or logits.stride(1) != 1:
        raise ValueError(f"logits {tuple(logits.shape)}: up to {FINALISTS // MAX_TOP * CHUNK} contiguous values a row")
    device = logits.device
    drawn = torch.empty(rows, dtype=torch.float32, device=device)
    rank = torch.empty(rows, dtype=torch.int32, device=device)
    top_ids = torch.empty(rows, num_top, dtype=torch.int64, device=device)
    top_logprobs = torch.empty(rows, num_top, dtype=torch.float32, device=device)
    if not rows:
        return drawn, rank, top_ids, top_logprobs
    keys = torch.empty(rows, num_chunks, num_top, dtype=torch.int64, device=device)
    sums = torch.empty(rows, num_chunks, 2, dtype=torch.float32, device=device)
    higher = torch.empty(rows, num_chunks, dtype=torch.int32, device=device)
    stride = logits.stride(0) if rows > 1 else vocab
    _chunk_kernel[(rows, num_chunks)](
        logits,
        token_ids,
        keys,
        sums,
        higher,
        stride,
        vocab,
        num_top,
        num_chunks,
        CHUNK=CHUNK,
        num_warps=WARPS,
        num_stages=1,
    )
    _row_kernel[(rows,)](
        logits,
        token_ids,
        keys,
        sums,
        higher,
        drawn,
        rank,
        top_ids,
        top_logprobs,
        stride,
        num_top,
        num_chunks,
        CHUNKS=128,
        FINALISTS=FINALISTS,
        num_warps=FINAL_WARPS,
        num_stages=1,
    )
    return drawn, rank, top_ids, top_logprobs


def logprobs_reference(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The specification of `logprobs`, in torch."""
    raw = torch.log_softmax(logits.float(), dim=-1)
    at = token_ids[:, None]
    rank = (logits > logits.gather(1, at)).sum(dim=-1) + 1
    top_ids = logits.float().argsort(dim=-1, descending=True, stable=True)[:, :num_top]
    return raw.gather(1, at).squeeze(1), rank.to(torch.int32), top_ids, raw.gather(1, top_ids)


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Both kernels for each dtype and for rows that are and are not multiples of 16 tokens."""
    common = {"token_ptr": "*i64", "keys_ptr": "*i64", "sums_ptr": "*fp32", "higher_ptr": "*i32"}
    common |= {"logits_stride": "i32", "num_top": "i32", "num_chunks": "i32"}
    results = {"logprob_ptr": "*fp32", "rank_ptr": "*i32", "top_ids_ptr": "*i64", "top_logprobs_ptr": "*fp32"}
    for dtype in ("bf16", "fp16", "fp32"):
        for is_aligned in (True, False):
            skipped = set(NOT_SPECIALISED) | (set() if is_aligned else {"vocab", "logits_stride"})
            label = f"{dtype}{'' if is_aligned else ' odd'}"
            for name, kernel, signature, constants, warps in (
                ("chunk", _chunk_kernel, common | {"vocab": "i32"}, {"CHUNK": CHUNK}, WARPS),
                ("row", _row_kernel, common | results, {"CHUNKS": 128, "FINALISTS": FINALISTS}, FINAL_WARPS),
            ):
                types = {"logits_ptr": f"*{dtype}"} | signature
                yield Specialisation(
                    f"sampling_logprobs[{name} {label}]",
                    kernel,
                    types,
                    constants,
                    warps,
                    1,
                    tuple(argument for argument in types if argument not in skipped),
                    typical=is_aligned and dtype == "bf16",
                )
