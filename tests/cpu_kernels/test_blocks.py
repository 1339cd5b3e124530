"""Products of GGUF blocks in the C library, for every type and build, against the gguf package's weights in float64."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch
from torch import Tensor

from ember.gguf.types import BLOCKS, NUMBERS
from ember_cpu import library as native
from tests.cpu_kernels.test_native_forward import build  # noqa: F401
from tests.support.gguf_blocks import dequantized, random_blocks

TYPES = list(BLOCKS)
BUILDS = [variant.name for variant in native.VARIANTS]
SUPER = [name for name, each in BLOCKS.items() if each.elements == 256]


def columns_of(name: str) -> tuple[int, ...]:
    return (256, 1280) if name in SUPER else (32, 96, 256, 1056)


def matrix(name: str, blocks: Tensor, columns: int, bias: Tensor | None = None, floats: bool = False) -> native.Matrix:
    return native.matrix([native.piece(blocks, NUMBERS[name])], columns, bias, floats)


def rounded(x: Tensor, name: str) -> Tensor:
    """Activations as 8 bits stand for them, float64: a scale for each block, the largest magnitude over 127."""
    groups = x.float().view(len(x), -1, 256 if name in SUPER else 32)
    scales = groups.abs().amax(-1, keepdim=True) / 127
    codes = (groups * torch.where(scales == 0, 0.0, 1 / scales)).round()
    return (codes.double() * scales.double()).view_as(x)


def assert_close(found: Tensor, x: Tensor, weight: Tensor) -> None:
    """Not further from the exact product than float32's rounding, by the magnitudes that are summed."""
    exact, size = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    assert ((found.double() - exact).abs() <= 1e-6 * size + 1e-30).all()


@pytest.mark.parametrize("name", TYPES)
def test_restored_weights_are_those_of_the_gguf_package(name, build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    for columns in columns_of(name):
        blocks = random_blocks(name, 37, columns)
        weight = dequantized(blocks, name).bfloat16()
        for ids in (None, torch.tensor([36, 0, 5, 5])):
            out = torch.empty(37 if ids is None else 4, columns, dtype=torch.bfloat16)
            native.restore_into(library, matrix(name, blocks, columns), ids, out, 2)
            assert torch.equal(out, weight if ids is None else weight[ids])


@pytest.mark.parametrize("name", TYPES)
def test_products_are_exact_but_for_the_rounding_of_activations(name, build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(4)
    for columns in columns_of(name):
        for outputs in (1, 5, 37):
            blocks = random_blocks(name, outputs, columns, seed=outputs)
            weight = dequantized(blocks, name)
            for rows in (1, 2, 3, 8, 9, 27, 128):
                x = (torch.randn(rows, columns) * torch.rand(columns) * 3).bfloat16()
                x[:, 5:7] *= 20  # as some channels of a model are
                found = native.linear(library, matrix(name, blocks, columns), x, 1 + rows % 2)
                assert_close(found, rounded(x, name), weight)
                restored = native.linear(library, matrix(name, blocks, columns, floats=True), x, 2)
                assert_close(restored, x, weight.bfloat16())


@pytest.mark.parametrize("name", TYPES)
def test_eight_bits_are_close_to_the_activations(name):
    library = native.load()
    assert library is not None
    torch.manual_seed(5)
    blocks, x = random_blocks(name, 64, 1024), torch.randn(16, 1024).bfloat16()
    exact = x.double() @ dequantized(blocks, name).double().T
    found = native.linear(library, matrix(name, blocks, 1024), x, 2)
    assert 0 < (found - exact).square().mean().sqrt() / exact.square().mean().sqrt() < 0.015


@pytest.mark.parametrize("name", TYPES)
def test_every_build_and_number_of_rows_gives_the_same_bits(name):
    torch.manual_seed(6)
    libraries = [library for library in map(native.load, BUILDS) if library is not None]
    columns = columns_of(name)[-1]
    blocks, x = random_blocks(name, 50, columns), torch.randn(128, columns).bfloat16()
    held = matrix(name, blocks, columns)
    expected = native.linear(libraries[0], held, x, 2)
    for library in libraries:
        for first, last in ((0, 128), (0, 1), (1, 3), (3, 6), (100, 120)):
            assert torch.equal(native.linear(library, held, x[first:last], 2), expected[first:last])


@pytest.mark.parametrize("name", TYPES)
def test_faults_are_seen_and_stay_where_they_are(name, build):  # noqa: F811
    """An activation or a scale that is no number spoils its row of activations, or its row of the matrix, alone."""
    library = native.load(build)
    assert library is not None
    torch.manual_seed(7)
    x = torch.randn(5, 512).bfloat16()
    x[1, 300], x[3, 5], x[4] = torch.nan, -torch.inf, 0
    blocks = random_blocks(name, 20, 512)
    for rows in (slice(0, 5), slice(0, 2), slice(3, 5)):
        found = native.linear(library, matrix(name, blocks, 512), x[rows], 2)
        for given, made in zip(x[rows], found, strict=True):
            assert made.isnan().all() if not given.isfinite().all() else made.isfinite().all()
            assert given.any() or not made.any()
    if name == "MXFP4":  # its scales are always numbers
        return
    _, elements, size = BLOCKS[name]
    at = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(name, 0) + size * (512 // elements - 1)
    blocks[7, at : at + 2] = torch.tensor([0, 0x7E], dtype=torch.uint8)
    for rows in (slice(2, 3), slice(0, 5)):
        found = native.linear(library, matrix(name, blocks, 512), x[rows], 2)[-1 if rows.stop == 3 else 2]
        assert found[7].isnan() and found[:7].isfinite().all() and found[8:].isfinite().all()


@pytest.mark.parametrize("name", TYPES)
def test_no_byte_after_the_blocks_is_read(name, build):  # noqa: F811
    """Blocks lie at any address, and may end where a mapped file ends."""
    library = native.load(build)
    assert library is not None
    torch.manual_seed(8)
    columns = 512 if name in SUPER else 288
    blocks, x = random_blocks(name, 7, columns), torch.randn(9, columns).bfloat16()
    page = mmap.PAGESIZE
    size = (blocks.nbytes + page - 1) // page * page
    memory = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
    at = size - blocks.nbytes
    moved = torch.frombuffer(memory, dtype=torch.uint8, count=blocks.nbytes, offset=at).view_as(blocks)
    moved.copy_(blocks)
    for rows in (1, 2, 9):
        expected = native.linear(library, matrix(name, blocks, columns), x[:rows], 2)
        assert torch.equal(native.linear(library, matrix(name, moved, columns), x[:rows], 2), expected)
    libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("names", [("Q4_K", "Q4_K", "Q6_K"), ("Q8_0", "Q5_K", "BF16"), ("BF16", "Q4_0", "MXFP4")])
def test_pieces_have_types_of_their_own(names, build):  # noqa: F811
    library = native.load(build)
    assert library is not None
    torch.manual_seed(9)
    pieces: list[native.Piece] = []
    tensors = []
    for number, name in enumerate(names):
        outputs = (33, 7, 12)[number]
        if name == "BF16":
            tensors.append(torch.randn(outputs, 512).bfloat16())
        else:
            tensors.append(random_blocks(name, outputs, 512, number))
        pieces.append(native.piece(tensors[-1], NUMBERS[name]))
    bias = torch.randn(52).bfloat16()
    for rows in (1, 2, 4, 20):
        x = torch.randn(rows, 512).bfloat16()
        for floats in (False, True):
            found = native.linear(library, native.matrix(pieces, 512, bias, floats), x, 2)
            alone = [native.linear(library, native.matrix([piece], 512, None, floats), x, 2) for piece in pieces]
            assert torch.equal(found, torch.cat(alone, dim=1) + bias.float())
