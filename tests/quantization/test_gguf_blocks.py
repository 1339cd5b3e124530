"""The blocks of GGUF files, restored as the `gguf` package does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.block_values import restore
from ember.gguf.types import BLOCKS
from tests.gguf_files.files import BLOCK_TYPES
from tests.support.gguf_blocks import random_blocks


def blocks(type_name: str, rows: int, columns: int) -> np.ndarray:
    return random_blocks(type_name, rows, columns).numpy()


def wanted(data: np.ndarray, type_name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return dequantize(data, GGMLQuantizationType[type_name])


def test_every_type_of_blocks_is_tested():
    assert set(BLOCK_TYPES) == set(BLOCKS)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
@pytest.mark.parametrize("is_finite", [True, False])
def test_the_elements_are_those_of_the_package_bit_for_bit(type_name, is_finite):
    """Also where scales are infinite, no number, or below the normal ones, as in blocks of any bytes."""
    data = blocks(type_name, 40, 1024)
    if not is_finite:
        data = np.random.default_rng(1).integers(0, 256, data.shape, dtype=np.uint8)
    found, expected = restore(torch.from_numpy(data), type_name, torch.float32).numpy(), wanted(data, type_name)
    if is_finite:
        assert np.isfinite(expected).all() and expected.std() > 0
    is_same = (found.view(np.uint32) == expected.view(np.uint32)) | (np.isnan(found) & np.isnan(expected))
    assert is_same.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_rounded_from_float32(dtype):
    data = blocks("Q4_K", 9, 512)
    expected = torch.from_numpy(wanted(data, "Q4_K")).to(dtype)
    assert torch.equal(restore(torch.from_numpy(data), "Q4_K", dtype), expected)


def test_many_rows_are_restored_in_pieces():
    data = np.tile(blocks("Q4_0", 50, 4096), (50, 1))
    assert np.array_equal(restore(torch.from_numpy(data), "Q4_0", torch.float32).numpy(), wanted(data, "Q4_0"))


def layer(type_name: str = "Q6_K", bias: bool = True) -> tuple[BlockLinear, torch.Tensor]:
    """12 rows in three tensors, and the same weight."""
    data = blocks(type_name, 12, 512)
    rows = torch.from_numpy(data)
    linear = BlockLinear(rows[:3], rows[3:7], rows[7:], type=type_name, dtype=torch.float32)
    if bias:
        linear.bias = torch.randn(12)
    return linear, torch.from_numpy(wanted(data, type_name))


def test_a_layer_multiplies_looks_up_and_selects():
    linear, weight = layer()
    assert (linear.out_features, linear.in_features, linear.dtype) == (12, 512, torch.float32)
    assert linear.nbytes == 12 * 2 * 210 + 12 * 4 and linear.num_parameters == 12 * 512 + 12
    assert torch.equal(linear.weight, weight)
    x = torch.randn(5, 512)
    torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, weight, linear.bias))
    ids = torch.tensor([11, 0, 3, 3, 6])
    assert torch.equal(linear.look_up(ids), weight[ids])
    for part in (slice(0, 3), slice(2, 9), slice(10, 99), slice(None)):
        assert torch.equal(linear.select(part).weight, weight[part])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12])
def test_parts_of_a_layer_are_views(count):
    linear, weight = layer()
    parts = linear.split(count)
    assert len(parts) == count
    assert torch.equal(torch.cat([part.weight for part in parts]), weight)
    assert torch.equal(torch.cat([part.bias for part in parts if part.bias is not None]), linear.bias)
    addresses = {rows.untyped_storage().data_ptr() for rows in linear.rows}
    assert {rows.untyped_storage().data_ptr() for part in parts for rows in part.rows} == addresses
