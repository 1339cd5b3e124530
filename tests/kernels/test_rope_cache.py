"""QK norm, rotary embedding and cache write against the reference, into poisoned caches."""

from __future__ import annotations

import pytest
import torch

from ember_kernels.rope_cache import rope_cache, rope_cache_reference

# Two units in the last place: a sum in another order and the rounding after it may each add one.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def poisoned(shape, dtype, device):
    return torch.full(shape, float("nan"), device=device).to(dtype)


def rotary_table(positions, rotary_dim, device):
    angles = torch.arange(positions)[:, None] * 100.0 ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(device)


def compare(
    device,
    *,
    dtype,
    cache_dtype,
    heads,
    kv_heads,
    head_dim,
    rotary_dim,
    tokens=5,
    norm=False,
    is_wide=False,
    slots_are_wide=False,
    **options,
):
    num_blocks, block_size = tokens // 4 + 3, 8
    own_heads = (1 if options.get("values_are_keys") else 2) * kv_heads if options.get("has_own_kv", True) else 0
    qkv = torch.randn(tokens, (heads + own_heads) * head_dim, device=device).to(dtype)
    slots = torch.randperm(num_blocks * block_size)[:tokens].to(options.pop("index_dtype", torch.int64)).to(device)
    slots[1:2] = -1
    positions = torch.randint(0, 50, (tokens,), device=device).to(slots.dtype)
    table = rotary_table(50, rotary_dim, device) if rotary_dim else None
    if options.get("rotary_dim_of_heads"):
        options["rotary_dim"] = options.pop("rotary_dim_of_heads")
    if norm:
        for name in ("query_weight", "key_weight"):
            options[name] = torch.randn(head_dim, device=device).to(torch.float32 if is_wide else dtype)
    if cache_dtype == torch.float8_e4m3fn:
        options["key_scale"] = torch.tensor([0.01, 0.03][: options.pop("num_scales", 1)], device=device)
        options["value_scale"] = options["key_scale"] * 2
    shape = (num_blocks, block_size, kv_heads, head_dim)
    actual, expected = ([poisoned(shape, cache_dtype, device) for _ in range(2)] for _ in range(2))
    query = poisoned((tokens, heads, head_dim), dtype, device)
    if slots_are_wide:  # the layer's keys are a part of each slot
        for index, cache in enumerate(actual):
            wide = poisoned((*shape[:2], kv_heads + 3, head_dim), cache_dtype, device)
            actual[index] = wide[:, :, 2 : 2 + kv_heads].copy_(cache)
    assert rope_cache(qkv, *actual, slots, positions, table, out=query, **options) is query
    reference = poisoned((tokens, heads, head_dim), dtype, device)
    rope_cache_reference(qkv, *expected, slots, positions, table, out=reference, **options)
    torch.testing.assert_close(query, reference, rtol=TOLERANCE[dtype], atol=2e-2 if norm else 1e-5, equal_nan=True)
    for cache, cache_reference in zip(actual, expected, strict=True):
        step = 0.13 if cache_dtype == torch.float8_e4m3fn else max(TOLERANCE[dtype], TOLERANCE[cache_dtype])
        torch.testing.assert_close(cache.float(), cache_reference.float(), rtol=step, atol=2e-2, equal_nan=True)
        same = (cache.float() == cache_reference.float()) | cache_reference.float().isnan()
        assert same.float().mean() > 0.97 or dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("is_float8", [False, True])
def test_all_dtypes(device, dtype, norm, neox, is_float8):
    cache_dtype = torch.float8_e4m3fn if is_float8 else dtype
    compare(
        device,
        dtype=dtype,
        cache_dtype=cache_dtype,
        heads=6,
        kv_heads=2,
        head_dim=64,
        rotary_dim=64,
        norm=norm,
        neox=neox,
    )


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary_dim"),
    [(1, 1, 80, 20), (7, 1, 96, 96), (3, 3, 128, 64), (5, 1, 256, 64), (14, 2, 64, 0), (2, 2, 72, 36)],
)
@pytest.mark.parametrize("neox", [True, False])
def test_odd_sizes_and_partial_rotation(device, heads, kv_heads, head_dim, rotary_dim, neox):
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "rotary_dim": rotary_dim}
    for norm in (False, True):
        compare(device, dtype=torch.bfloat16, cache_dtype=torch.bfloat16, norm=norm, neox=neox, **shape)


def test_real_shapes(device, has_gpu):
    for heads, tokens in [(16, 4), (32, 8), (64, 2)] if not has_gpu else [(16, 1), (32, 4096), (64, 1000)]:
        compare(
            device,
            dtype=torch.bfloat16,
            cache_dtype=torch.bfloat16,
            heads=heads,
            kv_heads=8,
            head_dim=128,
            rotary_dim=128,
            tokens=tokens,
            norm=heads != 32,
        )


def test_norm_with_wide_weights_int32_slots_and_a_scale_a_head(device):
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64, "rotary_dim": 64}
    compare(
        device,
        dtype=torch.bfloat16,
        cache_dtype=torch.float8_e4m3fn,
        norm=True,
        is_wide=True,
        index_dtype=torch.int32,
        num_scales=2,
        **shape,
    )


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("is_wide", [False, True])
def test_whole_heads_by_halves(device, head_dim, is_wide):
    for dtype in (torch.bfloat16, torch.float16):
        compare(
            device,
            dtype=dtype,
            cache_dtype=dtype,
            heads=3,
            kv_heads=1,
            head_dim=head_dim,
            rotary_dim=head_dim,
            norm=True,
            is_wide=is_wide,
            index_dtype=torch.int32,
        )


@pytest.mark.parametrize("is_float8", [False, True])
@pytest.mark.parametrize("head_dim", [64, 72, 512])
@pytest.mark.parametrize(
    "values", [{"value_norm": True}, {"value_norm": True, "values_are_keys": True}, {"has_own_kv": False}]
)
def test_values_of_gemma4(device, values, head_dim, is_float8):
    """Normalised values, which may be the keys, and layers with queries alone. Of 512 dimensions few pairs turn."""
    for dtype in (torch.float32, torch.bfloat16):
        for rotated in (head_dim, head_dim // 4):
            compare(
                device,
                dtype=dtype,
                cache_dtype=torch.float8_e4m3fn if is_float8 else dtype,
                heads=3,
                kv_heads=2,
                head_dim=head_dim,
                rotary_dim=rotated,
                rotary_dim_of_heads=head_dim,
                norm=True,
                slots_are_wide=True,
                **values,
            )


def test_values_alone_are_not_normalised(device):
    cache = torch.zeros(1, 8, 1, 64, device=device)
    indices = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="values are normalised only where queries and keys are"):
        rope_cache(torch.zeros(1, 192, device=device), cache, cache.clone(), indices, indices, None, value_norm=True)


def test_a_cache_of_another_dtype_and_strided_rows(device):
    shape = {"heads": 4, "kv_heads": 2, "head_dim": 64, "rotary_dim": 64}
    compare(device, dtype=torch.float32, cache_dtype=torch.bfloat16, **shape)
    qkv = torch.randn(3, 1000, device=device)[:, 16 : 16 + 512]
    caches = [torch.zeros(2, 8, 2, 64, device=device) for _ in range(4)]
    slots, positions = torch.tensor([3, 9, 0], device=device), torch.tensor([1, 2, 3], device=device)
    table = rotary_table(50, 64, device)
    query = rope_cache(qkv, caches[0], caches[1], slots, positions, table)
    torch.testing.assert_close(query, rope_cache_reference(qkv, caches[2], caches[3], slots, positions, table))
    torch.testing.assert_close(caches[:2], caches[2:])


def test_a_float8_cache_without_scales_is_refused(device):
    cache = torch.zeros(1, 8, 1, 64, device=device).to(torch.float8_e4m3fn)
    indices = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="needs both scales"):
        rope_cache(torch.zeros(1, 192, device=device), cache, cache.clone(), indices, indices, None)
