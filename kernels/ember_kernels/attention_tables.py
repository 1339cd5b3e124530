"""The compiled variants of the attention kernels, and the tiles of decode attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HEAD_DIMS = (64, 80, 96, 112, 128, 192, 256, 512)
DTYPES = (("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp8e4nv"))  # of query and cache
BLOCK_SIZES = (16, 32, 64, 128)
ELEMENT_SIZES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8e4nv": 1}


# What some models' attention has beside the usual, and their head sizes: gpt-oss and Granite with windows have sinks,
# Gemma 2 soft caps, Llama 4 chunks in place of sliding windows, and BLOOM, MPT, Baichuan 13B and others the slopes of
# ALiBi.
FEATURES: dict[str, tuple[int, ...]] = {
    "sinks": (64, 128),
    "cap": (128, 256),
    "chunk": (128,),
    "slopes": (64, 80, 96, 128),
}


def variants() -> Iterator[tuple[int, str, str, int, str]]:
    """(head_dim, dtype, dtype of the cache, block size, one of FEATURES or ""); prefill attention compiles the same."""
    for head_dim in HEAD_DIMS:
        own = [feature for feature, head_dims in FEATURES.items() if head_dim in head_dims]
        for dtype, cache_dtype in DTYPES:
            for feature in ("", *own):
                yield head_dim, dtype, cache_dtype, 16, feature
            if head_dim in (64, 128) and dtype == "bf16":
                for block_size in BLOCK_SIZES[1:]:
                    yield head_dim, dtype, cache_dtype, block_size, ""
        for feature in ("", *own):
            yield head_dim, "fp32", "fp32", 16, feature


@dataclass(frozen=True)
class Config:
    block_n: int
    num_warps: int
    num_stages: int


def config(head_dim: int, element_size: int, capability: int) -> Config:
    """Not measured yet. Chosen by what the compiler reports for sm_90: with tiles of 32 tokens five programs of
    bfloat16 and head_dim 128 fit on a multiprocessor at once, each with the next two tiles of keys and values in flight
    (three stages; the kernel carries the block ids one tile ahead). Tiles of 64 leave room for three programs.
    """
    if element_size == 4:
        return Config(16, 8 if head_dim > 256 else 4, 2)
    is_wide = head_dim > 128
    has_large_shared_memory = capability in (80, 90, 100)  # 163 KiB and more
    is_small = head_dim > 256 or (is_wide and not has_large_shared_memory)  # two programs of 512 fit on sm_90
    return Config(16 if is_small else 32, 4, 3)


def programs_a_multiprocessor(head_dim: int, group: int, capability: int) -> int:
    """How many programs of decode attention share the work for each multiprocessor: as many as it holds at a time. Not
    measured yet. By registers four, of wide heads or large groups two; by shared memory, where that is small, two.
    """
    if head_dim > 128 or group > 16:
        return 2
    return 4 if head_dim <= 64 or capability in (80, 90, 100) else 2


def most_registers(head_dim: int, group: int, element_size: int) -> int | None:
    """The limit of registers for a program of decode attention, so that four fit; None: what the compiler takes.

    It takes up to 152 without the limit, and spills none with it.
    """
    return 128 if 64 < head_dim <= 128 and group <= 16 and element_size <= 2 else None
