"""The C library's structures and functions in ctypes (see `model.h`, `decoder.c`), and the build for this machine."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ember_cpu.variants import HERE, VARIANTS, library_file

log = logging.getLogger(__name__)

MAX_ROWS = 128  # rows in one call, as in matrix.h
ROPES = 2  # kinds of rotary positions in a model, as in model.h

_I64, _POINTER = ctypes.c_int64, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """A matrix [rows, columns] in up to three pieces of rows (matrix.h)."""

    _fields_ = (
        ("piece", _POINTER * 3),
        ("rows", _I64 * 3),
        ("bias", _POINTER),
        ("scales", _POINTER),
        ("columns", _I64),
        ("bits", _I64),
    )


class Layer(ctypes.Structure):
    """Weights and KV cache of a layer (model.h)."""

    _fields_ = (
        ("attention_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("query_key_norm", _POINTER),
        ("qkv", Matrix),
        ("output", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("window", _I64),
        ("group", _I64),
        ("rope", _I64),
    )


class Model(ctypes.Structure):
    """Sizes and layers of a model (model.h)."""

    _fields_ = (
        ("num_layers", _I64),
        ("hidden", _I64),
        ("heads", _I64),
        ("kv_heads", _I64),
        ("head_dim", _I64),
        ("intermediate", _I64),
        ("block_size", _I64),
        ("rotary_dims", _I64 * ROPES),
        ("interleaved", _I64),
        ("rotates_before_norm", _I64),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("final_norm", _POINTER),
        ("layers", ctypes.POINTER(Layer)),
    )


class Step(ctypes.Structure):
    """The rows of a step (model.h)."""

    _fields_ = (
        ("rows", _I64),
        ("num_sequences", _I64),
        ("max_blocks", _I64),
        ("positions", _POINTER),
        ("sequences", _POINTER),
        ("slots", _POINTER),
        ("block_tables", _POINTER),
        ("cosines", _POINTER * ROPES),
        ("sines", _POINTER * ROPES),
        ("query_scales", _POINTER * ROPES),
        ("hidden", _POINTER),
    )


_MODEL, _LAYER, _STEP = ctypes.POINTER(Model), ctypes.POINTER(Layer), ctypes.POINTER(Step)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ember_workspace": (_I64, (_MODEL, _I64)),
    "ember_forward": (None, (_MODEL, _STEP, _POINTER, ctypes.c_int)),
    "ember_linear": (None, (ctypes.POINTER(Matrix), _POINTER, _I64, _POINTER, ctypes.c_int)),
    "ember_add_norm": (None, (*[_POINTER] * 4, _I64, _I64, ctypes.c_float, ctypes.c_int)),
    "ember_place": (None, (_MODEL, _LAYER, _STEP, *[_POINTER] * 3, ctypes.c_int)),
    "ember_attend": (None, (_MODEL, _LAYER, _STEP, _POINTER, _I64, *[_POINTER] * 2, ctypes.c_int)),
    "ember_quantise": (None, (ctypes.POINTER(Matrix), ctypes.c_int, *[_POINTER] * 2, ctypes.c_int)),
    "ember_restore": (None, (ctypes.POINTER(Matrix), _POINTER, ctypes.c_int)),
    "ember_gate": (None, (_POINTER, _POINTER, _I64, _I64, ctypes.c_int)),
}
"""Result and argument types of each function."""


def matrix(pieces: tuple[Tensor, ...], bias: Tensor | None = None) -> Matrix:
    """A bfloat16 matrix of up to three `pieces`, each [rows, columns] and contiguous. They must outlive the matrix."""
    made = Matrix(bias=address(bias), columns=pieces[0].shape[1], bits=16)
    for i, piece in enumerate(pieces):
        made.piece[i], made.rows[i] = piece.data_ptr(), piece.shape[0]
    return made


def quantised_matrix(codes: Tensor, scales: Tensor, bits: int, bias: Tensor | None = None) -> Matrix:
    """A matrix of 8 or 4 bits. Its arguments must outlive it.

    `codes`: [rows, columns * bits / 8] uint8 and `scales`: [rows, columns / GROUP] float32 (`variants.GROUP`), from
    `ember_quantise`.
    """
    made = Matrix(bias=address(bias), scales=scales.data_ptr(), columns=codes.shape[1] * 8 // bits, bits=bits)
    made.piece[0], made.rows[0] = codes.data_ptr(), len(codes)
    return made


def address(tensor: Tensor | None) -> int | None:
    """The address of a tensor's data; None, which is NULL in C, for None."""
    return None if tensor is None else tensor.data_ptr()


@cache
def load(name: str | None = None) -> ctypes.CDLL | None:
    """Load the variant of this name, by default the fastest one that this machine can run; None if there is none.

    torch has to be imported before: the library uses its OpenMP runtime.
    """
    for variant in VARIANTS:
        if name not in (None, variant.name) or not variant.is_runnable() or variant.fault(HERE) is not None:
            continue
        try:
            library = ctypes.CDLL(str(library_file(variant.name, HERE)))
        except OSError as error:  # built for another system, or OpenMP is missing
            log.warning("the C library for CPUs cannot be loaded, so torch's operators are used: %s", error)
            continue
        for function, (result, arguments) in _FUNCTIONS.items():
            getattr(library, function).restype, getattr(library, function).argtypes = result, arguments
        return library
    return None


def linear(library: ctypes.CDLL, weight: Matrix, x: Tensor, threads: int) -> Tensor:
    """x [rows, columns] bfloat16 times the transposed matrix: [rows, matrix rows] float32. At most MAX_ROWS rows."""
    out = torch.empty(len(x), sum(weight.rows), dtype=torch.float32)
    library.ember_linear(weight, x.data_ptr(), len(x), out.data_ptr(), threads)
    return out
