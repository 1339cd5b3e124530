# mypy: disable-error-code="no-untyped-def"
"""Linear layer for few rows: y = x @ w.T + bias with at most 16 rows, split along the reduction.

A decode step of few sequences reads each weight once and computes little, so the memory bandwidth is its limit if
enough programs read at once. A narrow matrix (1024 to 3072 outputs) has too few tiles along N to occupy the device.
Splitting K as well gives the missing programs. Each writes its float32 partial sums, and a second kernel adds them in
a fixed order, so that the result does not depend on the order in which programs end, as it would with atomics.

Bytes: N * K weights + 2 * SPLIT_K * M * N * 4 partial sums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.compile import Specialisation, device_capability
from ember_kernels.launch import cdiv, direct

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
MAX_ROWS = 16
REDUCE_BLOCK = 256

# {capability: {(N, K): the most rows at which this kernel beat torch's linear}}, from `python -m
# benchmarks.kernels.small_gemm` on that device. Empty until it was measured: then torch's linear serves everything.
MEASURED_GAINS: dict[int, dict[tuple[int, int], int]] = {}

# Streaming multiprocessors of a common device of each capability; the number of programs aimed at is twice that.
MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}


@dataclass(frozen=True)
class Config:
    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int


def uses_small_gemm(m: int, n: int, k: int, capability: int) -> bool:
    """Whether `small_gemm` was measured to be faster than torch's linear for x [m, k], w [n, k]."""
    return m <= MEASURED_GAINS.get(capability, {}).get((n, k), 0)


def config(n: int, k: int, capability: int) -> Config:
    """The launch configuration: as many splits (a power of two, at most 16) as give two programs a multiprocessor."""
    block_n, block_k = 32, 128
    wanted = 2 * MULTIPROCESSORS.get(capability, 132)
    split_k, most = 1, min(16, max(1, k // (2 * block_k)))
    while 2 * split_k <= most and split_k * cdiv(n, block_n) < wanted:
        split_k *= 2
    return Config(block_n, block_k, split_k, num_warps=4, num_stages=4 if capability in (80, 90, 100) else 3)


@direct
@triton.jit(do_not_specialize=["m", "n"])
def small_gemm_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One tile of N, one slice of K. With SPLIT_K > 1, y is the workspace [SPLIT_K, m, n] in float32."""
    split = tl.program_id(1)
    rows = tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows beyond the matrices repeat the last one, so loads need no mask. Their results are not stored.
    x_rows = tl.minimum(rows, m - 1)
    w_rows = tl.minimum(columns, n - 1).to(tl.int64)
    offsets = tl.arange(0, BLOCK_K)
    slice_k = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT_K) * BLOCK_K
    start = split * slice_k
    end = tl.minimum(start + slice_k, k)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(start, end, BLOCK_K):
        at = first + offsets
        if EVEN_K:
            x = tl.load(x_ptr + x_rows[:, None] * k + at[None, :])
            w = tl.load(w_ptr + w_rows[None, :] * k + at[:, None])
        else:
            x = tl.load(x_ptr + x_rows[:, None] * k + at[None, :], mask=at[None, :] < k, other=0.0)
            w = tl.load(w_ptr + w_rows[None, :] * k + at[:, None], mask=at[:, None] < k, other=0.0)
        if INTERPRET:  # the interpreter's dot of bfloat16 is wrong
            x, w = x.to(tl.float32), w.to(tl.float32)
        sums = tl.dot(x, w, sums)
    mask = (rows < m)[:, None] & (columns < n)[None, :]
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    y_ptr += split.to(tl.int64) * m * n
    tl.store(y_ptr + rows[:, None] * n + columns[None, :], sums.to(y_ptr.dtype.element_ty), mask=mask)


@direct
@triton.jit(do_not_specialize=["size", "n"])
def add_splits_kernel(partial_ptr, bias_ptr, y_ptr, size, n, SPLIT_K: tl.constexpr, BLOCK: tl.constexpr):
    """y[i] = the sum over splits of partial[split, i], in the order of the splits, + bias[i % n]; i < size = m * n."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    sums = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLIT_K):
        sums += tl.load(partial_ptr + split * size + at, mask=mask, other=0.0)
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + at % n, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, sums.to(y_ptr.dtype.element_ty), mask=mask)


def add_splits(partial: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Write the sums over the splits of K to `out` [m, n]: partial [splits, m, n] float32, plus bias [n]."""
    size, n = out.numel(), out.shape[1]
    add_splits_kernel[(cdiv(size, REDUCE_BLOCK),)](
        partial, bias, out, size, n, SPLIT_K=len(partial), BLOCK=REDUCE_BLOCK, num_warps=4, num_stages=1
    )


def add_splits_specialisation(name: str, dtype: str, split_k: int, bias: bool, typical: bool) -> Specialisation:
    """The launch of `add_splits` for sums of `dtype` (Triton's name) over `split_k` splits."""
    pointers = {"partial_ptr": "*fp32", "y_ptr": f"*{dtype}"} | ({"bias_ptr": f"*{dtype}"} if bias else {})
    return Specialisation(
        name,
        add_splits_kernel,
        {**pointers, "size": "i32", "n": "i32"},
        {"SPLIT_K": split_k, "BLOCK": REDUCE_BLOCK} | ({} if bias else {"bias_ptr": None}),
        4,
        1,
        tuple(pointers),
        typical,
    )


def small_gemm(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [m, k] @ w [n, k].T + bias [n] -> [m, n], all contiguous and of one dtype, bfloat16 or float16.

    1 <= m <= 16, k a multiple of 16. Sums are float32, rounded once, and the same in every run.
    """
    (m, k), n = x.shape, w.shape[0]
    if not 1 <= m <= MAX_ROWS:
        raise ValueError(f"small_gemm takes 1 to {MAX_ROWS} rows and was given {m}")
    if k % 16 or w.shape[1] != k:
        raise ValueError(f"small_gemm needs k to be a multiple of 16 and the same in x {x.shape} and w {w.shape}")
    if x.dtype not in (torch.bfloat16, torch.float16) or w.dtype != x.dtype:
        raise ValueError(f"small_gemm takes bfloat16 or float16 and was given {x.dtype} and {w.dtype}")
    if not (x.is_contiguous() and w.is_contiguous()):
        raise ValueError("small_gemm needs contiguous x and w")
    if out is None:
        out = x.new_empty((m, n))
    c = config(n, k, device_capability(x.device))
    split = c.split_k > 1
    partial = torch.empty((c.split_k, m, n), dtype=torch.float32, device=x.device) if split else out
    small_gemm_kernel[(cdiv(n, c.block_n), c.split_k)](
        x,
        w,
        None if split else bias,
        partial,
        m,
        n,
        k,
        BLOCK_M=MAX_ROWS,
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        SPLIT_K=c.split_k,
        EVEN_K=k % c.block_k == 0,
        INTERPRET=INTERPRET,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    if split:
        add_splits(partial, bias, out)
    return out


def small_gemm_reference(
    x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The specification of `small_gemm`, in float32."""
    y = torch.nn.functional.linear(x.float(), w.float(), None if bias is None else bias.float()).to(x.dtype)
    return y if out is None else out.copy_(y)


# (N, K) of the linear layers of Qwen3-0.6B that are narrow: qkv, o, gate_up, down.
NARROW = ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072))


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Kernels for the shapes with a measured gain; for the narrow ones of Qwen3-0.6B if none was measured yet."""
    measured = set(MEASURED_GAINS.get(capability, {}))
    seen = set()
    for n, k in sorted(measured or NARROW):
        c = config(n, k, capability)
        for dtype in ("bf16", "fp16"):
            for bias in (False, True):
                key = (dtype, bias, c, k % c.block_k == 0)
                if key in seen:
                    continue
                seen.add(key)
                yield from _specialisations(c, k, dtype, bias, typical=dtype == "bf16" and not bias)


def _specialisations(c: Config, k: int, dtype: str, bias: bool, typical: bool) -> Iterator[Specialisation]:
    split = c.split_k > 1
    name = f"{dtype}{'_bias' if bias else ''}_n{c.block_n}_k{c.block_k}_s{c.split_k}"
    pointers = {"x_ptr": f"*{dtype}", "w_ptr": f"*{dtype}", "y_ptr": "*fp32" if split else f"*{dtype}"}
    constants: dict[str, Any] = {
        "BLOCK_M": MAX_ROWS,
        "BLOCK_N": c.block_n,
        "BLOCK_K": c.block_k,
        "SPLIT_K": c.split_k,
        "EVEN_K": k % c.block_k == 0,
        "INTERPRET": False,
    }
    if bias and not split:
        pointers["bias_ptr"] = f"*{dtype}"
    else:
        constants["bias_ptr"] = None
    if not (bias and split):  # then the kernel is the one without a bias
        signature = {**pointers, "m": "i32", "n": "i32", "k": "i32"}
        yield Specialisation(
            f"small_gemm[{name}]",
            small_gemm_kernel,
            signature,
            constants,
            c.num_warps,
            c.num_stages,
            (*pointers, "k"),
            typical,
        )
    if split:
        yield add_splits_specialisation(f"add_splits[{name}]", dtype, c.split_k, bias, typical)
