# mypy: disable-error-code="no-untyped-def"
"""Linear layers with GGUF's quantised blocks, as they lie in the file: y = x @ weight.T + bias.

For up to 64 rows `block_gemm` reads each block once and restores its numbers in registers, rounded to the dtype of x as
torch's operators restore them (`block_types`). K is split as `split_k` describes. For more rows `block_restore` writes
the weight in the dtype of x, and torch multiplies it. `block_experts` has the forms for experts.

Blocks of 18, 34, 110 or 210 bytes begin at even addresses, so loads of them are of one or two bytes for each thread,
which cannot be copied ahead to shared memory. Four programs a multiprocessor hide the wait for memory instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.block_types import BLOCK_TYPES, block_tile
from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import INTERPRET
from ember_kernels.specialisation import Specialisation, device_capability
from ember_kernels.split_k import Config, add_splits, split_config, store_sums, tile_of_product, workspace

MAX_ROWS = 64
TILES = (16, 64)  # rows of a tile
BLOCK_N = 64
RESTORE_ROWS = 16
_INTERPRET: tl.constexpr = tl.constexpr(INTERPRET)


@triton.jit
def block_sums(
    x_rows_at,
    row_at,
    k,
    first_tile,
    last_tile,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TYPE: tl.constexpr,
    SIZE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    PLANES: tl.constexpr,
    SHARE: tl.constexpr,
    RUN: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """The products [BLOCK_M, BLOCK_N] of some tiles of K. `x_rows_at` [BLOCK_M, 1]: rows of k inputs; `row_at`
    [1, 1, BLOCK_N]: rows of blocks."""
    GROUPS: tl.constexpr = ELEMENTS // PLANES // SHARE  # of positions in a block
    groups = k // ELEMENTS * GROUPS
    dtype: tl.constexpr = x_rows_at.dtype.element_ty
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in range(first_tile, last_tile):
        t = tile * POSITIONS + tl.arange(0, POSITIONS)
        exists = (t // SHARE < groups)[None, :]
        for p in tl.static_range(PLANES):
            columns = t // RUN * (RUN * PLANES) + p * RUN + t % RUN
            x = tl.load(x_rows_at + columns[None, :], mask=exists, other=0.0)
            w = block_tile(row_at, tile, groups, p, TYPE, SIZE, SHARE, GROUPS, POSITIONS, dtype, BLOCK_M > 16)
            if _INTERPRET:  # whose dot of bfloat16 is wrong
                x, w = x.to(tl.float32), w.to(tl.float32)
            sums = tl.dot(x, w, sums)
    return sums


@direct
@triton.jit(do_not_specialize=["m", "n", "row_blocks", "slice_tiles"])
def block_gemm_kernel(
    x_ptr,
    blocks_ptr,
    y_ptr,
    m,
    n,
    k,
    row_blocks,
    slice_tiles,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TYPE: tl.constexpr,
    SIZE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    PLANES: tl.constexpr,
    SHARE: tl.constexpr,
    RUN: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """One tile of N, one slice of K. With several slices y is the workspace [slices, m, n] in float32."""
    split, rows, columns, x_rows_at, w_rows = tile_of_product(x_ptr, m, n, k, BLOCK_M, BLOCK_N)
    row_at = blocks_ptr + w_rows[None, None, :] * (row_blocks * SIZE)
    first = split * slice_tiles
    last = tl.minimum(first + slice_tiles, tl.cdiv(k, POSITIONS * PLANES))
    sums = block_sums(
        x_rows_at,
        row_at,
        k,
        first,
        last,
        BLOCK_M,
        BLOCK_N,
        TYPE,
        SIZE,
        ELEMENTS,
        PLANES,
        SHARE,
        RUN,
        POSITIONS,
    )
    store_sums(y_ptr, sums, None, rows, columns, m, n, split)


@direct
@triton.jit(do_not_specialize=["n", "row_blocks"])
def block_restore_kernel(
    blocks_ptr,
    out_ptr,
    n,
    k,
    row_blocks,
    ROWS: tl.constexpr,
    TYPE: tl.constexpr,
    SIZE: tl.constexpr,
    ELEMENTS: tl.constexpr,
    PLANES: tl.constexpr,
    SHARE: tl.constexpr,
    RUN: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    GROUPS: tl.constexpr = ELEMENTS // PLANES // SHARE
    groups = k // ELEMENTS * GROUPS
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    w_rows = tl.minimum(rows, n - 1).to(tl.int64)
    row_at = blocks_ptr + w_rows[None, None, :] * (row_blocks * SIZE)
    tile = tl.program_id(1)
    t = tile * POSITIONS + tl.arange(0, POSITIONS)
    mask = (rows < n)[None, :] & (t // SHARE < groups)[:, None]
    for p in tl.static_range(PLANES):
        columns = t // RUN * (RUN * PLANES) + p * RUN + t % RUN
        w = block_tile(row_at, tile, groups, p, TYPE, SIZE, SHARE, GROUPS, POSITIONS, out_ptr.dtype.element_ty, False)
        tl.store(out_ptr + w_rows[None, :] * k + columns[:, None], w, mask=mask)


def can_multiply(type_name: str) -> bool:
    """Whether the kernels have this type of blocks."""
    return type_name in BLOCK_TYPES


def config(type_name: str, n: int, k: int, capability: int) -> Config:
    """The launch configuration. A tile of K has the same positions of every plane."""
    return split_config(n, k, BLOCK_N, _tile_inputs(type_name), capability, per_processor=4)


def _warps(m: int) -> int:
    return 4 if m <= TILES[0] else 8


def _tile_inputs(type_name: str) -> int:
    return BLOCK_TYPES[type_name].tile * BLOCK_TYPES[type_name].planes


def block_gemm(x: torch.Tensor, blocks: torch.Tensor, type_name: str, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [m, k] @ the numbers of blocks [n, bytes of a row].T + bias [n] -> [m, n]

    x: bfloat16 or float16, contiguous, 1 <= m <= 64. blocks: uint8, contiguous, at an even address. bias: of x's dtype.
    Sums are float32, and the same in every run.
    """
    (m, k), n = x.shape, len(blocks)
    row_blocks = check(x.dtype, k, blocks, type_name)
    if not 1 <= m <= MAX_ROWS or not x.is_contiguous():
        raise ValueError(f"block_gemm takes 1 to {MAX_ROWS} contiguous rows: {tuple(x.shape)}")
    c = config(type_name, n, k, device_capability(x.device))
    out = x.new_empty((m, n))
    partial = workspace(out, c.split_k)
    block_gemm_kernel[(cdiv(n, c.block_n), c.split_k)](
        x,
        blocks,
        partial,
        m,
        n,
        k,
        row_blocks,
        c.slice_tiles(k),
        BLOCK_M=TILES[0] if m <= TILES[0] else TILES[1],
        BLOCK_N=c.block_n,
        **constants(type_name),
        num_warps=_warps(m),
        num_stages=c.num_stages,
    )
    add_splits(partial, bias, out)
    return out if bias is None or c.split_k > 1 else out.add_(bias)


def block_restore(blocks: torch.Tensor, type_name: str, out: torch.Tensor) -> torch.Tensor:
    """Write the numbers of blocks to `out` [n, k], bfloat16 or float16, which is returned."""
    n, k = out.shape
    row_blocks = check(out.dtype, k, blocks, type_name)
    block_restore_kernel[(cdiv(n, RESTORE_ROWS), cdiv(k, _tile_inputs(type_name)))](
        blocks, out, n, k, row_blocks, ROWS=RESTORE_ROWS, **constants(type_name), num_warps=4, num_stages=1
    )
    return out


def constants(type_name: str) -> dict[str, Any]:
    """The arguments of kernels that describe a type."""
    kind = BLOCK_TYPES[type_name]
    sizes = {"SIZE": kind.size, "ELEMENTS": kind.elements, "PLANES": kind.planes, "SHARE": kind.share, "RUN": kind.run}
    return {"TYPE": type_name, **sizes, "POSITIONS": kind.tile}


def check(dtype: torch.dtype, k: int, blocks: torch.Tensor, type_name: str) -> int:
    """The number of blocks in a row. Raises ValueError for what the kernels do not take."""
    if type_name not in BLOCK_TYPES:
        raise ValueError(f"block kernels have no type {type_name!r}, but {', '.join(BLOCK_TYPES)}")
    kind = BLOCK_TYPES[type_name]
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"block kernels take bfloat16 or float16: {dtype}")
    row_blocks, rest = divmod(k, kind.elements)
    if rest or blocks.dtype != torch.uint8 or blocks.shape[1] != row_blocks * kind.size or not blocks.is_contiguous():
        raise ValueError(f"{k} inputs in {type_name} do not fit {blocks.dtype} {tuple(blocks.shape)}, contiguous")
    return row_blocks


TYPICAL = ("Q4_K", "Q6_K")  # of files in Q4_K_M


def specialisations(capability: int) -> Iterator[Specialisation]:
    """bfloat16: every type, split and not, both tiles. Typical are few rows of the types of Q4_K_M."""
    for type_name, block_m, is_split in product(BLOCK_TYPES, TILES, (True, False)):
        c = config(type_name, 4096, 4096, capability)
        pointers = {"x_ptr": "*bf16", "blocks_ptr": "*u8", "y_ptr": "*fp32" if is_split else "*bf16"}
        yield Specialisation(
            f"block_gemm[{type_name}_m{block_m}{'_split' if is_split else ''}]",
            block_gemm_kernel,
            pointers | dict.fromkeys(("m", "n", "k", "row_blocks", "slice_tiles"), "i32"),
            {"BLOCK_M": block_m, "BLOCK_N": c.block_n, **constants(type_name)},
            _warps(block_m),
            c.num_stages,
            (*pointers, "k"),
            typical=type_name in TYPICAL and block_m == TILES[0] and is_split,
        )
    for type_name in BLOCK_TYPES:
        pointers = {"blocks_ptr": "*u8", "out_ptr": "*bf16"}
        yield Specialisation(
            f"block_restore[{type_name}]",
            block_restore_kernel,
            pointers | dict.fromkeys(("n", "k", "row_blocks"), "i32"),
            {"ROWS": RESTORE_ROWS, **constants(type_name)},
            4,
            1,
            (*pointers, "k"),
            typical=type_name == TYPICAL[0],
        )
