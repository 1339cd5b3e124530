# mypy: disable-error-code="no-untyped-def"
"""Latent attention (MLA, arXiv 2405.04434): norm of the latents, rotation of keys and queries, and the cache write.

A program takes one token: its latent is normalised, its key is rotated, and both are written to the token's slot. Then
the rotated parts of its query heads are written beside the absorbed queries. Padding (a negative slot) writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.rounding import LARGEST, e4m3_bits, has_conversion, rounded
from ember_kernels.specialisation import Specialisation, device_capability

BLOCK_HEADS = 16
WARPS = 4


@triton.jit
def _turned(first, second, cosines, sines):
    return first * cosines - second * sines, second * cosines + first * sines


@direct
@triton.jit(do_not_specialize=["slot_ptr", "position_ptr", "weight_ptr", "scale_ptr", "table_ptr", "num_heads"])
def latent_cache_kernel(
    latent_ptr,
    query_ptr,
    weight_ptr,
    cache_ptr,
    slot_ptr,
    position_ptr,
    table_ptr,
    scale_ptr,
    out_ptr,
    latent_stride,
    query_stride,
    head_stride,
    cache_stride,
    out_head_stride,
    num_heads,
    eps,
    RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    NEOX: tl.constexpr,
    HARDWARE: tl.constexpr,
):
    """One token. `query_ptr` and `out_ptr` are at the rotated part of the first head."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token).to(tl.int64)
    if slot < 0:
        return
    position = tl.load(position_ptr + token).to(tl.int64)
    ranks = tl.arange(0, BLOCK_RANK)
    pairs = tl.arange(0, BLOCK_PAIRS)
    rank_mask = ranks < RANK
    pair_mask = pairs < PAIRS
    first_at = pairs if NEOX else 2 * pairs
    second_at = pairs + PAIRS if NEOX else 2 * pairs + 1
    cosines = tl.load(table_ptr + position * (2 * PAIRS) + pairs, mask=pair_mask, other=0.0)
    sines = tl.load(table_ptr + position * (2 * PAIRS) + PAIRS + pairs, mask=pair_mask, other=0.0)
    factor = 1.0
    if scale_ptr is not None:
        factor = tl.div_rn(1.0, tl.load(scale_ptr))

    latent = tl.load(latent_ptr + token * latent_stride + ranks, mask=rank_mask, other=0.0)
    DTYPE: tl.constexpr = latent.dtype
    x = latent.to(tl.float32)
    x = rounded(x * tl.rsqrt(tl.sum(x * x, 0) / RANK + eps), DTYPE).to(tl.float32)
    x = rounded(x * tl.load(weight_ptr + ranks, mask=rank_mask, other=0.0).to(tl.float32), DTYPE)
    key_ptr = latent_ptr + token * latent_stride + RANK
    first = tl.load(key_ptr + first_at, mask=pair_mask, other=0.0).to(tl.float32)
    second = tl.load(key_ptr + second_at, mask=pair_mask, other=0.0).to(tl.float32)
    first, second = _turned(first, second, cosines, sines)
    first, second = rounded(first, DTYPE), rounded(second, DTYPE)
    own_ptr = cache_ptr + slot * cache_stride
    if scale_ptr is not None:
        tl.store(own_ptr + ranks, e4m3_bits(x.to(tl.float32) * factor, HARDWARE), mask=rank_mask)
        tl.store(own_ptr + RANK + first_at, e4m3_bits(first.to(tl.float32) * factor, HARDWARE), mask=pair_mask)
        tl.store(own_ptr + RANK + second_at, e4m3_bits(second.to(tl.float32) * factor, HARDWARE), mask=pair_mask)
    else:
        tl.store(own_ptr + ranks, x, mask=rank_mask)
        tl.store(own_ptr + RANK + first_at, first, mask=pair_mask)
        tl.store(own_ptr + RANK + second_at, second, mask=pair_mask)

    for begin in range(0, num_heads, BLOCK_HEADS):
        heads = begin + tl.arange(0, BLOCK_HEADS)
        mask = (heads < num_heads)[:, None] & pair_mask[None, :]
        given_ptr = query_ptr + token * query_stride + heads[:, None] * head_stride
        one = tl.load(given_ptr + first_at[None, :], mask=mask, other=0.0).to(tl.float32)
        two = tl.load(given_ptr + second_at[None, :], mask=mask, other=0.0).to(tl.float32)
        one, two = _turned(one, two, cosines[None, :], sines[None, :])
        made_ptr = out_ptr + (token * num_heads + heads[:, None]) * out_head_stride
        tl.store(made_ptr + first_at[None, :], rounded(one, DTYPE), mask=mask)
        tl.store(made_ptr + second_at[None, :], rounded(two, DTYPE), mask=mask)


def latent_cache(
    query: Tensor,
    latent: Tensor,
    weight: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
    positions: Tensor,
    table: Tensor,
    *,
    eps: float,
    neox: bool,
    scale: Tensor | None = None,
    out: Tensor,
) -> None:
    """Write the tokens' latents and rotated keys to the cache, and the rotated parts of their queries to `out`.

    query         [tokens, heads, rotary_dim], a view of the heads' last dimensions
    latent        [tokens, rank + rotary_dim] with one stride between rows: what is normalised, then the key
    weight        [rank], of the norm
    cache         [num_blocks, block_size, 1, rank + rotary_dim], slots of one stride, of latent's dtype or float8
    slot_mapping  int [tokens]; negative: padding
    positions     int [tokens]
    table         float32 [positions, rotary_dim]: cosines, then sines, of each pair
    neox          pairs by halves; otherwise neighbours are pairs
    scale         float32 [1], of a float8 cache
    out           [tokens, heads, at least rotary_dim] contiguous, whose last dimensions are written; it may be what
                  `query` is a view of
    """
    tokens, heads, rotary_dim = query.shape
    rank = weight.shape[0]
    if latent.shape != (tokens, rank + rotary_dim) or out.shape[:2] != (tokens, heads) or out.shape[2] < rotary_dim:
        raise ValueError(
            f"latent {tuple(latent.shape)} and out {tuple(out.shape)} do not fit query {tuple(query.shape)}"
        )
    if cache.stride(3) != 1 or cache.stride(0) != cache.shape[1] * cache.stride(1):
        raise ValueError(f"a cache's slots must be one stride apart: {tuple(cache.shape)}, {cache.stride()}")
    if (scale is not None) != (cache.dtype == torch.float8_e4m3fn):
        raise ValueError(f"a float8 cache needs a scale, others none: the cache is {cache.dtype}")
    if query.stride(2) != 1 or latent.stride(1) != 1 or not out.is_contiguous():
        raise ValueError("the last dimensions of query and latent, and out, must be contiguous")
    if tokens == 0:
        return
    stored = cache.view(torch.uint8) if scale is not None else cache
    latent_cache_kernel[(tokens,)](
        latent,
        query,
        weight,
        stored,
        slot_mapping,
        positions,
        table,
        scale,
        out[:, :, -rotary_dim:],
        latent.stride(0),
        query.stride(0),
        query.stride(1),
        cache.stride(1),
        out.shape[2],
        heads,
        eps,
        RANK=rank,
        BLOCK_RANK=next_power_of_2(rank),
        PAIRS=rotary_dim // 2,
        BLOCK_PAIRS=next_power_of_2(rotary_dim // 2),
        BLOCK_HEADS=BLOCK_HEADS,
        NEOX=neox,
        HARDWARE=scale is not None and has_conversion(device_capability(query.device)),
        num_warps=WARPS,
        num_stages=1,
    )


def latent_cache_reference(
    query: Tensor,
    latent: Tensor,
    weight: Tensor,
    cache: Tensor,
    slot_mapping: Tensor,
    positions: Tensor,
    table: Tensor,
    *,
    eps: float,
    neox: bool,
    scale: Tensor | None = None,
    out: Tensor,
) -> None:
    """The specification of `latent_cache`, in torch."""
    rank, dtype, is_real = len(weight), latent.dtype, slot_mapping >= 0
    x = latent[:, :rank].float()
    x = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(dtype) * weight
    cosines, sines = (half[:, None] for half in table[positions.long().clamp(min=0)].chunk(2, dim=-1))
    heads = torch.cat((query, latent[:, None, rank:]), dim=1).float()
    first, second = heads.chunk(2, dim=-1) if neox else (heads[..., 0::2], heads[..., 1::2])
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    made = torch.cat(turned, dim=-1) if neox else torch.stack(turned, dim=-1).flatten(-2)
    made = made.to(dtype)
    out[is_real, :, -table.shape[1] :] = made[is_real, :-1]
    kept = torch.cat((x, made[:, -1]), dim=-1)[is_real]
    if scale is not None:
        kept = (kept.float() * (1.0 / scale)).clamp(-LARGEST, LARGEST)
    slots = slot_mapping[is_real].long()
    cache[slots // cache.shape[1], slots % cache.shape[1], 0] = kept.to(cache.dtype)


# (rank, rotary_dim): DeepSeek and most others, Mistral 4, MiniCPM 3.
SIZES = ((512, 64), (256, 64), (256, 32))


def specialisations(capability: int) -> Iterator[Specialisation]:
    """Pairs of neighbours for every size, by halves for MiniCPM 3. Slots are int64."""
    for dtype, (rank, rotary_dim), float8, position in product(
        ("bf16", "fp16", "fp32"), SIZES, (False, True), ("i32", "i64")
    ):
        neox = rotary_dim == 32
        stored = "u8" if float8 else dtype
        signature = {"latent_ptr": f"*{dtype}", "query_ptr": f"*{dtype}", "weight_ptr": f"*{dtype}"}
        signature |= {"cache_ptr": f"*{stored}", "slot_ptr": "*i64", "position_ptr": f"*{position}"}
        signature |= {"table_ptr": "*fp32", "out_ptr": f"*{dtype}", "eps": "fp32"}
        integers = ("latent_stride", "query_stride", "head_stride", "cache_stride", "out_head_stride")
        signature |= dict.fromkeys((*integers, "num_heads"), "i32")
        constants = {
            "RANK": rank,
            "BLOCK_RANK": next_power_of_2(rank),
            "PAIRS": rotary_dim // 2,
            "BLOCK_PAIRS": next_power_of_2(rotary_dim // 2),
            "BLOCK_HEADS": BLOCK_HEADS,
            "NEOX": neox,
            "HARDWARE": float8 and has_conversion(capability),
        }
        if float8:
            signature["scale_ptr"] = "*fp32"
        else:
            constants["scale_ptr"] = None  # type: ignore[assignment]
        yield Specialisation(
            f"latent_cache[{dtype} {rank}+{rotary_dim} positions {position}{' fp8' if float8 else ''}]",
            latent_cache_kernel,
            signature,
            constants,
            WARPS,
            1,
            ("latent_ptr", "query_ptr", "cache_ptr", "out_ptr", *integers),
            typical=(dtype, rank, rotary_dim, position, float8) == ("bf16", 512, 64, "i64", False),
        )
