# mypy: disable-error-code="no-untyped-def"
"""Linear layer for few rows: y = x @ w.T + bias with at most 16 rows, split along the reduction (`split_k`).

Bytes: N * K weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import INTERPRET
from ember_kernels.specialisation import Specialisation, device_capability
from ember_kernels.split_k import SPLIT, Config, add_splits, endings, no_bias, split_config, store_sums, workspace

MAX_ROWS = 16
BLOCK_K = 128
_INTERPRET: tl.constexpr = tl.constexpr(INTERPRET)

# {capability: {(N, K): the most rows at which this kernel beat torch's linear}}, from `python -m
# benchmarks.kernels.small_gemm` on that device. Empty until it was measured: then torch's linear serves everything.
MEASURED_GAINS: dict[int, dict[tuple[int, int], int]] = {}


def uses_small_gemm(m: int, n: int, k: int, capability: int) -> bool:
    """Whether `small_gemm` was measured to be faster than torch's linear for x [m, k], w [n, k]."""
    return m <= MEASURED_GAINS.get(capability, {}).get((n, k), 0)


def config(n: int, k: int, capability: int) -> Config:
    """The launch configuration."""
    return split_config(n, k, 32, BLOCK_K, capability)


@triton.jit
def plain_sums(
    x_rows_at,
    w_ptr,
    w_rows,
    k,
    start,
    end,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """The products [BLOCK_M, BLOCK_N] over the inputs from `start` to `end`. `x_rows_at` [BLOCK_M, 1]: rows of inputs;
    `w_rows` [BLOCK_N]: rows of the weight."""
    offsets = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(start, end, BLOCK_K):
        at = first + offsets
        if EVEN_K:
            x = tl.load(x_rows_at + at[None, :])
            w = tl.load(w_ptr + w_rows[None, :] * k + at[:, None])
        else:
            x = tl.load(x_rows_at + at[None, :], mask=at[None, :] < k, other=0.0)
            w = tl.load(w_ptr + w_rows[None, :] * k + at[:, None], mask=at[:, None] < k, other=0.0)
        if _INTERPRET:  # whose dot of bfloat16 is wrong
            x, w = x.to(tl.float32), w.to(tl.float32)
        sums = tl.dot(x, w, sums)
    return sums


@direct
@triton.jit(do_not_specialize=["m", "n", "slice_tiles"])
def small_gemm_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    m,
    n,
    k,
    slice_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """One tile of N, one slice of K. With several slices y is the workspace [slices, m, n] in float32."""
    split = tl.program_id(1)
    rows = tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows beyond the matrices repeat the last one, so loads need no mask. Their results are not stored.
    x_rows_at = x_ptr + tl.minimum(rows, m - 1)[:, None] * k
    w_rows = tl.minimum(columns, n - 1).to(tl.int64)
    start = split * (slice_tiles * BLOCK_K)
    end = tl.minimum(start + slice_tiles * BLOCK_K, k)
    sums = plain_sums(x_rows_at, w_ptr, w_rows, k, start, end, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
    store_sums(y_ptr, sums, bias_ptr, rows, columns, m, n, split)


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
    partial = workspace(out, c.split_k)
    small_gemm_kernel[(cdiv(n, c.block_n), c.split_k)](
        x,
        w,
        bias if partial is out else None,
        partial,
        m,
        n,
        k,
        c.slice_tiles(k),
        BLOCK_M=MAX_ROWS,
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        EVEN_K=k % c.block_k == 0,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return add_splits(partial, bias, out)


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
    shapes = set(MEASURED_GAINS.get(capability, {})) or NARROW
    c = config(*NARROW[0], capability)
    for dtype, even in product(("bf16", "fp16"), sorted({k % BLOCK_K == 0 for _, k in shapes})):
        for ending, ends in endings(dtype).items():
            pointers = {"x_ptr": f"*{dtype}", "w_ptr": f"*{dtype}", **ends}
            constants: dict[str, Any] = {"BLOCK_M": MAX_ROWS, "BLOCK_N": c.block_n, "BLOCK_K": BLOCK_K, "EVEN_K": even}
            yield Specialisation(
                f"small_gemm[{dtype}{'' if even else '_odd'}{ending}]",
                small_gemm_kernel,
                pointers | dict.fromkeys(("m", "n", "k", "slice_tiles"), "i32"),
                constants | no_bias(ends),
                c.num_warps,
                c.num_stages,
                (*pointers, "k"),
                typical=dtype == "bf16" and ending == SPLIT,
            )
