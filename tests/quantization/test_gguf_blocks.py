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


def blocks(type_name: str, rows: int, columns: int, seed: int = 0, is_finite: bool = True) -> np.ndarray:
    """Random blocks, whose scales are small numbers if `is_finite`."""
    kind, chance = BLOCKS[type_name], np.random.default_rng(seed)
    data = chance.integers(0, 256, (rows, columns // kind.elements, kind.size), dtype=np.uint8)
    if is_finite:
        for at in SCALES[type_name]:
            scales = chance.uniform(-0.02, 0.02, (*data.shape[:2], 1)).astype(np.float16)
            data[..., at : at + 2] = scales.view(np.uint8)
        if type_name == "MXFP4":
            data[..., 0] = chance.integers(118, 124, data.shape[:2])
    return data.reshape(rows, -1)


SCALES = {  # where each type's blocks have numbers of float16
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "MXFP4": (),
}


def wanted(data: np.ndarray, type_name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return dequantize(data, GGMLQuantizationType[type_name])


def test_every_type_of_blocks_is_tested():
    assert set(BLOCK_TYPES) == set(BLOCKS) == set(SCALES)


@pytest.mark.parametrize("type_name", BLOCK_TYPES)
@pytest.mark.parametrize("is_finite", [True, False])
def test_the_elements_are_those_of_the_package_bit_for_bit(type_name, is_finite):
    """Also where scales are infinite, no number, or below the normal ones."""
    data = blocks(type_name, 40, 1024, is_finite=is_finite)
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
