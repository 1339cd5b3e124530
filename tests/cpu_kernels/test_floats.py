"""Products of float8 and of codes with tables in the C library, beside their restored weights in float64."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch
from torch import Tensor

from ember.engine.description.operator_sets import NATIVE
from ember.engine.layers.float8_linear import Float8Linear
from ember.engine.layers.joined import JoinedLinear
from ember.engine.layers.linear import Linear
from ember.engine.layers.sparse_table_linear import SparseTableLinear
from ember.engine.layers.table_linear import E2M1, FP4, NF4, TableLinear
from ember.engine.operators.native_matrix import matrix_of
from ember_cpu import library as native
from tests.cpu_kernels.test_blocks import BUILDS, assert_close, rounded
from tests.cpu_kernels.test_integers import integers
from tests.cpu_kernels.test_native_forward import build  # noqa: F401

KINDS = ("fp8-block", "fp8-row", "fp8-tensor", "nvfp4", "mxfp4", "nf4", "fp4", "squeezellm", "sparse")
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


def layer_of(kind: str, outputs: int, columns: int) -> Linear:
    """A layer with every code. The scales of some blocks are far from those of others."""
    if kind.startswith("fp8"):
        codes = torch.randint(0, 256, (outputs, columns), dtype=torch.uint8)
        codes[codes & 127 == 127] -= 1  # which is no number
        block = {"fp8-block": (128, 128), "fp8-row": (1, columns), "fp8-tensor": (outputs, columns)}[kind]
        size = [-(-extent // step) for extent, step in zip((outputs, columns), block, strict=True)]
        return Float8Linear(
            codes.view(E4M3), torch.rand(size) * 10.0 ** torch.randint(-4, 2, size), block, torch.bfloat16
        )
    codes = torch.randint(0, 256, (outputs, columns // 2), dtype=torch.uint8)
    group = {"nvfp4": 16, "mxfp4": 32, "nf4": 64 if columns % 64 == 0 else 32, "fp4": 32}.get(kind, columns)
    scales = torch.rand(outputs, columns // group) + 0.01
    table = torch.tensor({"nf4": NF4, "fp4": FP4}.get(kind, E2M1))
    if kind == "nvfp4":
        return TableLinear(codes, table, (scales * 400).to(E4M3), torch.bfloat16, torch.rand(outputs), is_e2m1=True)
    if kind == "mxfp4":
        exponents = torch.randint(100, 140, scales.shape, dtype=torch.uint8)
        return TableLinear(codes, table, exponents.view(E8M0), torch.bfloat16, is_e2m1=True)
    if kind in ("nf4", "fp4"):
        return TableLinear(codes, table, scales, torch.bfloat16)
    dense = TableLinear(codes, torch.randn(outputs, 16), torch.ones(outputs, 1), torch.bfloat16)
    if kind == "squeezellm":
        return dense
    counts = torch.randint(0, 5, (outputs,)).int()
    places = torch.cat([torch.randperm(columns)[:count] for count in counts.tolist()]).int()
    return SparseTableLinear(dense, (counts.cumsum(0) - counts).int(), counts, places, torch.randn(len(places)) * 20)


def exact(layer: Linear) -> Tensor:
    """The weight before it is rounded, float64."""
    if isinstance(layer, Float8Linear):
        spread = layer.scales.double()
        for dim, step in enumerate(layer.block):
            spread = spread.repeat_interleave(step, dim).narrow(dim, 0, layer.codes.shape[dim])
        return layer.codes.double() * spread
    if isinstance(layer, SparseTableLinear):
        weight = exact(layer.table)
        for row, (start, count) in enumerate(zip(layer.starts.tolist(), layer.counts.tolist(), strict=True)):
            weight[row, layer.columns[start : start + count].long()] += layer.values[start : start + count].double()
        return weight
    assert isinstance(layer, TableLinear)
    numbers = torch.stack((layer.codes & 15, layer.codes >> 4), -1).flatten(1).long()
    table = layer.table.double().expand(len(numbers), 16)
    scales = layer.scales.float().double() * (1 if layer.factors is None else layer.factors.double()[:, None])
    return table.gather(1, numbers) * scales.repeat_interleave(layer.block, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_restored_weights(kind, build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(21)
    for outputs, columns in ((1, 32), (5, 96), (39, 416), (258, 256)):
        layer = layer_of(kind, outputs, columns)
        held, in_floats = matrix_of(layer, floats=False), matrix_of(layer, floats=True)
        assert held is not None and in_floats is not None
        weight, ids = exact(layer), torch.tensor([outputs - 1, 0, outputs // 2, 0])
        out = torch.empty(outputs, columns, dtype=torch.bfloat16)
        native.restore_into(library, held, None, out, 2)
        assert torch.equal(out, layer.weight)
        chosen = torch.empty(4, columns, dtype=torch.bfloat16)
        native.restore_into(library, held, ids, chosen, 2)
        assert torch.equal(chosen, out[ids])
        for rows in (1, 2, 3, 4, 8, 33):
            x = torch.randn(rows, columns).bfloat16()
            assert_close(native.linear(library, in_floats, x, 2), x, weight)
            given = rounded(x, "Q8_0") if kind == "mxfp4" else x
            assert_close(native.linear(library, held, x, 1), given, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_rows_gives_the_same_bits(kind, build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(22)
    layer, x = layer_of(kind, 50, 416), torch.randn(60, 416).bfloat16()
    for floats in (False, True):
        held = matrix_of(layer, floats)
        assert held is not None
        expected = native.linear(library, held, x, 2)
        for first, last in ((0, 1), (1, 3), (3, 6), (30, 50)):
            assert torch.equal(native.linear(library, held, x[first:last], 2), expected[first:last])


def test_powers_of_two_give_the_same_bits_in_every_build():
    """With activations of 8 bits, as other integers do."""
    torch.manual_seed(23)
    layer, x = layer_of("mxfp4", 50, 416), torch.randn(9, 416).bfloat16()
    held = matrix_of(layer, floats=False)
    found = [native.linear(library, held, x, 2) for library in map(native.load, BUILDS) if library is not None]
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("kind", ["fp8-block", "nvfp4", "mxfp4"])
def test_faults_are_seen_and_stay_where_they_are(kind, build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(24)
    layer = layer_of(kind, 20, 416)
    stored = layer.codes if isinstance(layer, Float8Linear) else layer.scales  # type: ignore[attr-defined]
    stored.view(torch.uint8)[7, -1] = 255  # no number in e4m3, nor in e8m0
    held = matrix_of(layer, floats=False)
    assert held is not None
    for rows in (1, 9):
        found = native.linear(library, held, torch.randn(rows, 416).bfloat16(), 2)
        assert found[:, 7].isnan().all() and found.isfinite().sum() == rows * 19
    out = torch.empty(20, 416, dtype=torch.bfloat16)
    native.restore_into(library, held, None, out, 2)
    assert torch.equal(out.isnan(), layer.weight.isnan()) and out.isnan().any()


@pytest.mark.parametrize("kind", ["fp8-row", "nvfp4", "nf4"])
def test_no_byte_after_the_codes_is_read(kind, build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(25)
    layer, page = layer_of(kind, 7, 96), mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    memory = {name: mmap.mmap(-1, 2 * page) for name in ("codes", "scales")}
    x = torch.randn(9, 96).bfloat16()
    expected = [native.linear(library, matrix_of(layer, False), x[:rows], 2) for rows in (1, 9)]
    starts = []
    for name, its in memory.items():
        stored = getattr(layer, name)
        starts.append(ctypes.addressof(ctypes.c_char.from_buffer(its)) + page)
        assert libc.mprotect(ctypes.c_void_p(starts[-1]), ctypes.c_size_t(page), 0) == 0
        moved = torch.frombuffer(its, dtype=torch.uint8, count=stored.nbytes, offset=page - stored.nbytes)
        moved.copy_(stored.view(torch.uint8).flatten())
        setattr(layer, name, moved.view(stored.dtype).view_as(stored))
    for rows, made in zip((1, 9), expected, strict=True):
        assert torch.equal(native.linear(library, matrix_of(layer, False), x[:rows], 2), made)
    for start in starts:
        libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(page), mmap.PROT_READ | mmap.PROT_WRITE)


def test_pieces_have_layouts_of_their_own(build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(26)
    parts = [layer_of("fp8-block", 130, 256), layer_of("mxfp4", 13, 256), Linear(torch.randn(9, 256).bfloat16())]
    joined = JoinedLinear(parts, torch.randn(152).bfloat16())
    assert joined.bias is not None
    for rows in (1, 5):
        x = torch.randn(rows, 256).bfloat16()
        found = native.linear(library, matrix_of(joined, False), x, 2) - joined.bias.float()
        alone = [native.linear(library, matrix_of(part, False), x, 2) - part.bias.float() for part in parts]
        torch.testing.assert_close(found, torch.cat(alone, dim=1), rtol=0, atol=0)


def test_the_set_declares_the_layouts_that_the_library_multiplies():
    codes, wide = torch.zeros(8, 48, dtype=torch.uint8), torch.zeros(8, 96).to(E4M3)
    layers: list[Linear] = [layer_of(kind, 8, 96) for kind in KINDS]
    layers += [TableLinear(codes, torch.tensor(NF4), torch.ones(8, 96 // group), torch.bfloat16) for group in (8, 48)]
    layers += [Float8Linear(wide, torch.ones(8, 2), (1, width), torch.bfloat16) for width in (48, 64)]
    layers += [integers(8, 96, 4, False, group, torch.float16) for group in (16, 32, 48, 96)]
    for layer in layers:
        assert (layer.layout in NATIVE.layouts) == (matrix_of(layer, floats=False) is not None), layer.layout
    assert sum(layer.layout not in NATIVE.layouts for layer in layers) == 5
