# mypy: disable-error-code="no-untyped-def"
"""Attention within whole texts, ragged and without a cache: each token sees all of its text, or a window around it.

The tiles and the grid are those of `prefill_attention`: a program takes consecutive tokens of one text times the query
heads that share a KV head. Keys and values are rows of the batch itself, so there is no table to read. Without a
window, tiles inside the text go without a mask, in 16 bits and for heads of up to 128 dimensions. A learned bias for
each head and distance (MPNet) is read from a small table.

FLOPs: 4 * heads * head_dim * (visible pairs of query and key). Bytes: queries, outputs, and the visible rows once a
tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import torch
import triton
import triton.language as tl

from ember_kernels.attention import INTERPRET, LOG2_E, MAX_HEAD_DIM, NO_WINDOW, STARTS_BLOCK, prompt_tile, score_factors
from ember_kernels.attention_tables import ELEMENT_SIZES
from ember_kernels.launch import direct, next_power_of_2
from ember_kernels.prefill_attention import Config
from ember_kernels.prefill_attention import config as prefill_config
from ember_kernels.specialisation import Specialisation, device_capability

HEAD_DIMS = (32, 64, 96, 128, 256)  # of the published encoders
BIASED_HEAD_DIMS = (64,)
SMALL_ROWS = 64  # up to so many rows of a text, tiles are small
DTYPES = ("bf16", "fp16", "fp32")


def config(head_dim: int, element_size: int, rows: int, capability: int) -> Config:
    """For texts of at most `rows` rows (tokens times query heads of a KV head). Not measured yet.

    The tiles are those of prefill attention, with at most three stages: no table is loaded in the loop, so three are
    two tiles of keys and values on their way. Large heads have two where a program's shared memory is 99 KiB. Tiles of
    float32 are as small as the matrix instruction allows where heads are large.
    """
    has_large_shared_memory = capability in (80, 90, 100)
    if element_size == 4:
        if head_dim > 64:
            return Config(16, 16, 8, 2 if head_dim <= 256 and has_large_shared_memory else 1)
        return Config(32, 16, 4, 2)
    c = prefill_config(head_dim, element_size, rows, capability)
    most = 3 if head_dim <= 128 or (head_dim <= 256 and has_large_shared_memory) else 2
    warps = 8 if head_dim > (128 if capability in (90, 100) else 64) else c.num_warps
    return Config(c.block_m, c.block_n, warps, min(c.num_stages, most))


@triton.jit
def _attend_tile(
    query,
    sums,
    maxima,
    weights,
    keys_ptr,
    values_ptr,
    key_stride,
    value_stride,
    tile,
    tokens,
    biases_ptrs,
    length,
    window,
    span,
    scale,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_BIASES: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Let `query` [rows, head_dim] attend to the text's keys from `tile` on. MASKED: some rows do not see some of the
    keys. `biases_ptrs` [rows]: each row's bias of distance 0."""
    dims = tl.arange(0, BLOCK_D)
    dim_mask = dims < HEAD_DIM
    at = tile + tl.arange(0, BLOCK_N)
    key_ptrs = keys_ptr + at[None, :].to(tl.int64) * key_stride + dims[:, None]
    value_ptrs = values_ptr + at[:, None].to(tl.int64) * value_stride + dims[None, :]
    if MASKED:
        inside = at < length
        key = tl.load(key_ptrs, mask=inside[None, :] & dim_mask[:, None], other=0.0)
        value = tl.load(value_ptrs, mask=inside[:, None] & dim_mask[None, :], other=0.0)
    elif HEAD_DIM != BLOCK_D:
        key = tl.load(key_ptrs, mask=dim_mask[:, None], other=0.0)
        value = tl.load(value_ptrs, mask=dim_mask[None, :], other=0.0)
    else:
        key = tl.load(key_ptrs)
        value = tl.load(value_ptrs)
    if INTERPRET:  # the interpreter's dot of bfloat16 is wrong
        key = key.to(tl.float32)
        value = value.to(tl.float32)
    scores = tl.dot(query, key, input_precision="ieee")
    factor = scale
    if HAS_BIASES:
        distances = tl.minimum(tl.maximum(at[None, :] - tokens[:, None], -span), span)
        scores = scores * scale + tl.load(biases_ptrs[:, None] + distances)
        factor = 1.0
    if MASKED:
        visible = inside[None, :]
        if HAS_WINDOW:
            distances = at[None, :] - tokens[:, None]
            visible = visible & (distances < window) & (distances > -window)
        scores = tl.where(visible, scores, float("-inf"))
    highest = tl.maximum(maxima, tl.max(scores, 1) * factor)
    base = highest
    if HAS_WINDOW:  # a row may have had no visible key yet
        base = tl.where(highest == float("-inf"), 0.0, highest)
    weight = tl.exp2(scores * factor - base[:, None])
    decay = tl.exp2(maxima - base)
    weights = weights * decay + tl.sum(weight, 1)
    sums = tl.dot(weight.to(value.dtype), value, sums * decay[:, None], input_precision="ieee")
    return sums, highest, weights


@direct
@triton.jit(do_not_specialize=["starts_ptr", "biases_ptr", "num_texts", "group", "window", "span"])
def text_attention_kernel(
    query_ptr,
    keys_ptr,
    values_ptr,
    starts_ptr,
    biases_ptr,
    out_ptr,
    query_stride,
    key_stride,
    value_stride,
    num_texts,
    group,
    window,
    span,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STARTS_BLOCK: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_BIASES: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One tile of query rows of one KV head. The programs of the last texts, which are the longest, come first."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    tokens_a_tile = BLOCK_M // group
    _, start, length, first_token = prompt_tile(starts_ptr, num_texts, number, tokens_a_tile, STARTS_BLOCK)
    if first_token >= length:
        return

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    tokens = first_token + rows // group
    last_token = tl.minimum(first_token + tokens_a_tile, length) - 1
    row_mask = (rows < tokens_a_tile * group) & (tokens < length)
    tokens = tl.minimum(tokens, last_token)  # idle rows repeat a token, so that all rows see keys
    row_heads = kv_head * group + rows % group
    mask = row_mask[:, None] & (dims < HEAD_DIM)[None, :]
    origin = tl.cast(start, tl.int64)
    query_rows = (origin + tokens) * query_stride + row_heads * HEAD_DIM
    query = tl.load(query_ptr + query_rows[:, None] + dims[None, :], mask=mask, other=0.0)
    if INTERPRET:  # the interpreter's dot of bfloat16 is wrong
        query = query.to(tl.float32)
    keys_ptr += origin * key_stride + kv_head * HEAD_DIM
    values_ptr += origin * value_stride + kv_head * HEAD_DIM
    biases_ptrs = row_heads
    if HAS_BIASES:
        biases_ptrs = biases_ptr + row_heads * (2 * span + 1) + span

    maxima = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weights = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # The loop has a mask with windows, where few tiles are seen by all rows, and where a loop and a last tile would
    # spill registers.
    MASKED: tl.constexpr = HAS_WINDOW or HEAD_DIM > 128 or query_ptr.dtype.element_ty == tl.float32
    begin, end = 0, length
    if not MASKED:
        end = length // BLOCK_N * BLOCK_N
    if HAS_WINDOW:
        begin = tl.maximum(first_token - window + 1, 0) // BLOCK_N * BLOCK_N
        end = tl.minimum(last_token + window, length)
    for tile in range(begin, end, BLOCK_N):
        sums, maxima, weights = _attend_tile(
            query,
            sums,
            maxima,
            weights,
            keys_ptr,
            values_ptr,
            key_stride,
            value_stride,
            tile,
            tokens,
            biases_ptrs,
            length,
            window,
            span,
            scale,
            MASKED=MASKED,
            HEAD_DIM=HEAD_DIM,
            BLOCK_D=BLOCK_D,
            BLOCK_N=BLOCK_N,
            HAS_WINDOW=HAS_WINDOW,
            HAS_BIASES=HAS_BIASES,
            INTERPRET=INTERPRET,
        )
    if not MASKED:  # noqa: SIM102 (decided when it is compiled)
        if end < length:
            sums, maxima, weights = _attend_tile(
                query,
                sums,
                maxima,
                weights,
                keys_ptr,
                values_ptr,
                key_stride,
                value_stride,
                end,
                tokens,
                biases_ptrs,
                length,
                window,
                span,
                scale,
                MASKED=True,
                HEAD_DIM=HEAD_DIM,
                BLOCK_D=BLOCK_D,
                BLOCK_N=BLOCK_N,
                HAS_WINDOW=HAS_WINDOW,
                HAS_BIASES=HAS_BIASES,
                INTERPRET=INTERPRET,
            )
    out = sums / weights[:, None]  # every row has seen its own token
    out_rows = ((origin + tokens) * (tl.num_programs(1) * group) + row_heads) * HEAD_DIM
    tl.store(out_ptr + out_rows[:, None] + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


def text_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    *,
    longest: int,
    scale: float | None = None,
    window: int | None = None,
    biases: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of each token to its whole text, or to the tokens of fewer than `window` tokens' distance.

    query         [tokens, heads, head_dim] bfloat16, float16 or float32; rows may be further apart (a view of qkv)
    keys, values  [tokens, kv_heads, head_dim], the same
    starts        int32 [texts + 1]: rows starts[i] to starts[i + 1] are text i. Other rows are not touched
    longest       no text has more tokens; decides on the tiles
    biases        float32 [heads, 2 * span + 1], added to scores: of the distances of a key from its query from -span to
                  span; those beyond have the bias of span. In units of log2: `* LOG2_E`
    out           [tokens, heads, head_dim], contiguous; made if None

    head_dim: a multiple of 16 from 16 to 512. Sums are float32. Returns [tokens, heads, head_dim].
    """
    tokens, heads, head_dim = query.shape
    kv_heads, num_texts = keys.shape[1], len(starts) - 1
    if keys.shape != values.shape or keys.shape != (tokens, kv_heads, head_dim) or heads % kv_heads:
        raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not fit {tuple(query.shape)}")
    if head_dim % 16 or not 16 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be a multiple of 16 from 16 to {MAX_HEAD_DIM} and is {head_dim}")
    if not query.dtype == keys.dtype == values.dtype:
        raise ValueError(f"query, keys and values are {query.dtype}, {keys.dtype} and {values.dtype}")
    if any(x.stride()[1:] != (head_dim, 1) for x in (query, keys, values)):
        raise ValueError("the heads of a row must be contiguous")
    if biases is not None and (biases.dim() != 2 or len(biases) != heads or biases.dtype != torch.float32):
        raise ValueError(f"biases must be float32 [{heads}, distances] and are {biases.dtype} {tuple(biases.shape)}")
    if out is None:
        out = query.new_empty((tokens, heads, head_dim))
    if tokens == 0:
        return out
    group = heads // kv_heads
    c = config(head_dim, keys.element_size(), longest * group, device_capability(query.device))
    block_m = max(c.block_m, next_power_of_2(group))
    factor, _ = score_factors(scale, 1.0, None, head_dim)
    text_attention_kernel[(tokens // (block_m // group) + num_texts, kv_heads)](
        query,
        keys,
        values,
        starts,
        biases,
        out,
        query.stride(0),
        keys.stride(0),
        values.stride(0),
        num_texts,
        group,
        NO_WINDOW if window is None else window,
        0 if biases is None else biases.shape[1] // 2,
        factor,
        HEAD_DIM=head_dim,
        BLOCK_D=next_power_of_2(head_dim),
        BLOCK_M=block_m,
        BLOCK_N=c.block_n,
        STARTS_BLOCK=STARTS_BLOCK,
        HAS_WINDOW=window is not None,
        HAS_BIASES=biases is not None,
        INTERPRET=INTERPRET,
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return out


def text_attention_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bounds: Sequence[int],
    *,
    scale: float | None = None,
    window: int | None = None,
    biases: torch.Tensor | None = None,
) -> torch.Tensor:
    """The specification of `text_attention`, in float32. `bounds`: the numbers in its `starts`."""
    head_dim, group = query.shape[2], query.shape[1] // keys.shape[1]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for start, stop in pairwise(bounds):
        q = query[start:stop].float()
        k, v = (x[start:stop].float().repeat_interleave(group, 1) for x in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (head_dim**-0.5 if scale is None else scale)
        at = torch.arange(stop - start, device=query.device)
        distances = at - at[:, None]
        if biases is not None:
            span = biases.shape[1] // 2
            scores = scores + biases[:, distances.clamp(-span, span) + span] / LOG2_E
        if window is not None:
            scores = scores.masked_fill(distances.abs() >= window, -torch.inf)
        out[start:stop] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(out.dtype)
    return out


def specialisations(capability: int) -> Iterator[Specialisation]:
    """The head sizes of encoders, with tiles for many rows and for few, with and without windows; with biases those of
    MPNet."""
    kinds = [*product(HEAD_DIMS, ("", "window")), *product(BIASED_HEAD_DIMS, ("biases",))]
    for (head_dim, kind), dtype in product(kinds, DTYPES):
        tiles = {config(head_dim, ELEMENT_SIZES[dtype], rows, capability) for rows in (SMALL_ROWS, SMALL_ROWS + 1)}
        for c in sorted(tiles, key=lambda c: c.block_m):
            words = [dtype, f"d{head_dim}", f"m{c.block_m}", *([kind] if kind else [])]
            signature = {f"{name}_ptr": f"*{dtype}" for name in ("query", "keys", "values", "out")}
            signature |= dict.fromkeys(("query_stride", "key_stride", "value_stride"), "i32")
            divisible = tuple(signature)
            signature["starts_ptr"] = "*i32"
            signature |= dict.fromkeys(("num_texts", "group", "window", "span"), "i32")
            signature["scale"] = "fp32"
            constants: dict[str, Any] = {
                "HEAD_DIM": head_dim,
                "BLOCK_D": next_power_of_2(head_dim),
                "BLOCK_M": c.block_m,
                "BLOCK_N": c.block_n,
                "STARTS_BLOCK": STARTS_BLOCK,
                "HAS_WINDOW": kind == "window",
                "HAS_BIASES": kind == "biases",
                "INTERPRET": False,
            }
            if kind == "biases":
                signature["biases_ptr"] = "*fp32"
            else:
                constants["biases_ptr"] = None
            yield Specialisation(
                f"text_attention[{'_'.join(words)}]",
                text_attention_kernel,
                signature,
                constants,
                c.num_warps,
                c.num_stages,
                divisible,
                typical=dtype == "bf16" and head_dim == 64 and c.block_m == 128,
            )
