"""Products of integers of 4 and 8 bits in the C library, beside the layout's own restored weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ember.engine.layers.int_linear import IntLinear, pack
from ember.engine.layers.joined import JoinedLinear
from ember.engine.operators.native_matrix import matrix_of
from ember_cpu import library as native
from tests.cpu_kernels.test_blocks import BUILDS, assert_close, rounded
from tests.cpu_kernels.test_native_forward import build  # noqa: F401

KINDS = [(bits, zeros, group) for bits in (4, 8) for zeros in (False, True) for group in (32, 128, 384)]


def integers(outputs: int, columns: int, bits: int, zeros: bool, group: int, scales: torch.dtype) -> IntLinear:
    group = min(group, columns)
    return IntLinear(
        pack(torch.randint(0, 1 << bits, (outputs, columns), dtype=torch.uint8), bits),
        (torch.rand(outputs, columns // group) / (1 << bits)).to(scales),
        bits,
        torch.bfloat16,
        torch.randint(0, 1 << bits, (outputs, columns // group), dtype=torch.uint8) if zeros else None,
    )


def exact(linear: IntLinear) -> Tensor:
    """The weight before it is rounded, float64."""
    codes = linear.codes if linear.bits == 8 else torch.stack((linear.codes & 15, linear.codes >> 4), -1).flatten(1)
    zeros = torch.full_like(linear.scales, 1 << linear.bits - 1) if linear.zeros is None else linear.zeros
    spread = [each.double().repeat_interleave(linear.group, 1) for each in (zeros, linear.scales)]
    return (codes.double() - spread[0]) * spread[1]


@pytest.mark.parametrize(("bits", "zeros", "group"), KINDS)
def test_products_and_restored_weights(bits, zeros, group, build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(11)
    for outputs, scales in ((1, torch.float16), (5, torch.float32), (37, torch.bfloat16)):
        for columns in (384, 768):
            linear = integers(outputs, columns, bits, zeros, group, scales)
            held, restored = matrix_of(linear, floats=False), matrix_of(linear, floats=True)
            assert held is not None and restored is not None
            out = torch.empty(outputs, columns, dtype=torch.bfloat16)
            native.restore_into(library, held, None, out, 2)
            assert torch.equal(out, linear.restored())
            for rows in (1, 2, 3, 9, 128):
                x = torch.randn(rows, columns).bfloat16()
                given = rounded(x, "Q8_0")
                found = native.linear(library, held, x, 2)
                size = given.abs() @ (exact(linear).abs() + 256 * linear.scales.double().amax()).T  # terms of the sum
                assert ((found - given @ exact(linear).T).abs() <= 3e-7 * size).all()
                assert_close(native.linear(library, restored, x, 2), x, linear.restored())


@pytest.mark.parametrize(("bits", "zeros", "group"), KINDS)
def test_every_build_and_number_of_rows_gives_the_same_bits(bits, zeros, group):
    torch.manual_seed(12)
    libraries = [library for library in map(native.load, BUILDS) if library is not None]
    linear, x = integers(50, 768, bits, zeros, group, torch.float16), torch.randn(60, 768).bfloat16()
    held = matrix_of(linear, floats=False)
    assert held is not None
    expected = native.linear(libraries[0], held, x, 2)
    for library in libraries:
        for first, last in ((0, 60), (0, 1), (1, 3), (3, 6), (30, 50)):
            assert torch.equal(native.linear(library, held, x[first:last], 2), expected[first:last])


def test_inputs_in_an_order_of_their_own(build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(13)
    parts = [integers(outputs, 512, 4, True, 128, torch.float16) for outputs in (20, 12, 12)]
    order = torch.randperm(512).int()
    for part in parts:
        part.order = order.clone()
    bias = torch.randn(44).bfloat16()
    joined = JoinedLinear(parts, bias)
    held = matrix_of(joined, floats=False)
    assert held is not None and matrix_of(joined, floats=True) is None
    weight = torch.empty(44, 512, dtype=torch.float64)
    weight[:, order.long()] = torch.cat([exact(part) for part in parts])
    for rows in (1, 7):
        x = torch.randn(rows, 512).bfloat16()
        given = torch.empty(rows, 512, dtype=torch.float64)
        given[:, order.long()] = rounded(x[:, order.long()], "Q8_0")
        found = native.linear(library, held, x, 2)
        torch.testing.assert_close(found.double(), given @ weight.T + bias.double(), rtol=1e-5, atol=1e-4)
    parts[1].order = order.flip(0)
    assert matrix_of(joined, floats=False) is None
