# mypy: disable-error-code="no-untyped-def"
"""Products of few rows: their launch configuration, and the split of K that all of them have.

A step of few sequences reads each weight once and computes little, so the memory bandwidth is its limit if enough
programs read at once. A narrow matrix (1024 to 3072 outputs) has too few tiles along N to occupy the device. Splitting
K as well gives the missing programs. Each writes its float32 partial sums, and a second kernel adds them in a fixed
order, so that the result does not depend on the order in which programs end, as it would with atomics.

Bytes of the partial sums: 2 * splits * M * N * 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import triton
import triton.language as tl

from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation

REDUCE_BLOCK = 256
SPLITS = (1, 2, 4, 8, 16)

# Streaming multiprocessors of a common device of each capability; the number of programs aimed at is twice that.
MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
LARGE_SHARED = (80, 90, 100)  # at least 163 KB a multiprocessor; the others have 99 KB


@dataclass(frozen=True)
class Config:
    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int

    def slice_tiles(self, k: int) -> int:
        """Tiles of K that a program adds up."""
        return cdiv(cdiv(k, self.block_k), self.split_k)


def split_config(n: int, k: int, block_n: int, block_k: int, capability: int, per_processor: int = 2) -> Config:
    """The launch configuration: as many splits (a power of two, at most 16) as give `per_processor` programs a
    multiprocessor, of at least two tiles each. The last ones may be empty."""
    wanted = per_processor * MULTIPROCESSORS.get(capability, 132)
    split_k, most = 1, min(SPLITS[-1], max(1, k // (2 * block_k)))
    while 2 * split_k <= most and split_k * cdiv(n, block_n) < wanted:
        split_k *= 2
    return Config(block_n, block_k, split_k, num_warps=4, num_stages=4 if capability in LARGE_SHARED else 3)


@triton.jit
def tile_of_product(x_ptr, m, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile of a program, with one tile of M: the slice of K, the rows and columns of the result, where the rows of
    x [m, k] are, and the rows of weights. Those beyond the matrices repeat the last one, so loads need no mask; their
    results are not stored."""
    rows = tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_rows_at = x_ptr + tl.minimum(rows, m - 1)[:, None] * k
    return tl.program_id(1), rows, columns, x_rows_at, tl.minimum(columns, n - 1).to(tl.int64)


@triton.jit
def store_sums(y_ptr, sums, bias_ptr, rows, columns, m, n, split):
    """Store a tile of sums plus the bias: to y [m, n], or to the workspace [splits, m, n] of a split."""
    mask = (rows < m)[:, None] & (columns < n)[None, :]
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    y_ptr += split.to(tl.int64) * m * n
    tl.store(y_ptr + rows[:, None] * n + columns[None, :], rounded(sums, y_ptr.dtype.element_ty), mask=mask)


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
    tl.store(y_ptr + at, rounded(sums, y_ptr.dtype.element_ty), mask=mask)


def workspace(out: torch.Tensor, split_k: int) -> torch.Tensor:
    """Where the programs of a product write: `out` itself, or float32 [split_k, *out.shape] for `add_splits`."""
    return out if split_k == 1 else torch.empty((split_k, *out.shape), dtype=torch.float32, device=out.device)


def add_splits(partial: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """Write the sums over the splits of K to `out` [m, n]: partial [splits, m, n] float32, plus bias [n]. A workspace
    that is `out` itself is complete."""
    if partial is out:
        return out
    size, n = out.numel(), out.shape[1]
    add_splits_kernel[(cdiv(size, REDUCE_BLOCK),)](
        partial, bias, out, size, n, SPLIT_K=len(partial), BLOCK=REDUCE_BLOCK, num_warps=4, num_stages=1
    )
    return out


SPLIT = "_split"


def endings(dtype: str = "bf16") -> dict[str, dict[str, str]]:
    """How a kernel that stores with `store_sums` is launched: the pointers by the ending of a specialisation's name."""
    y = {"y_ptr": f"*{dtype}"}
    return {SPLIT: {"y_ptr": "*fp32"}, "": y, "_bias": y | {"bias_ptr": f"*{dtype}"}}


def no_bias(pointers: dict[str, str]) -> dict[str, None]:
    """The constants of a launch without a bias."""
    return {} if "bias_ptr" in pointers else {"bias_ptr": None}


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Every number of splits, bfloat16 without a bias (typical: 4 splits) and with one, and float16."""
    for dtype, split_k, bias in product(("bf16", "fp16"), SPLITS[1:], (False, True)):
        pointers = {"partial_ptr": "*fp32", "y_ptr": f"*{dtype}"} | ({"bias_ptr": f"*{dtype}"} if bias else {})
        yield Specialisation(
            f"add_splits[{dtype}_s{split_k}{'_bias' if bias else ''}]",
            add_splits_kernel,
            {**pointers, "size": "i32", "n": "i32"},
            {"SPLIT_K": split_k, "BLOCK": REDUCE_BLOCK} | ({} if bias else {"bias_ptr": None}),
            4,
            1,
            tuple(pointers),
            typical=dtype == "bf16" and split_k == 4 and not bias,
        )
