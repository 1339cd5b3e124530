"""The C library's structures and functions (`decoder.c`, its headers), and which build of it this machine can run."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ember_cpu.variants import HERE, VARIANTS, library_file

log = logging.getLogger(__name__)

MAX_ROWS = 128  # of one call, as in matrix.h
GROUP = 64  # weights of fewer bits to one scale, as in quantised.h

_I64, _POINTER = ctypes.c_int64, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """[rows, columns] in up to three pieces."""

    _fields_ = (
        ("piece", _POINTER * 3),
        ("rows", _I64 * 3),
        ("bias", _POINTER),
        ("scales", _POINTER),
        ("columns", _I64),
        ("bits", _I64),
    )


class Layer(ctypes.Structure):
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
    )


class Model(ctypes.Structure):
    _fields_ = (
        ("num_layers", _I64),
        ("hidden", _I64),
        ("heads", _I64),
        ("kv_heads", _I64),
        ("head_dim", _I64),
        ("intermediate", _I64),
        ("rotary_dim", _I64),
        ("block_size", _I64),
        ("eps", ctypes.c_float),
        ("final_norm", _POINTER),
        ("layers", ctypes.POINTER(Layer)),
    )


class Step(ctypes.Structure):
    _fields_ = (
        ("rows", _I64),
        ("max_blocks", _I64),
        ("positions", _POINTER),
        ("slots", _POINTER),
        ("sequences", _POINTER),
        ("block_tables", _POINTER),
        ("cosines", _POINTER),
        ("sines", _POINTER),
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
"""What each function returns and takes."""


def matrix(pieces: tuple[Tensor, ...], bias: Tensor | None = None) -> Matrix:
    """`pieces`: [rows, columns] bfloat16, contiguous, which must outlive the matrix."""
    made = Matrix(bias=address(bias), columns=pieces[0].shape[1], bits=16)
    for i, piece in enumerate(pieces):
        made.piece[i], made.rows[i] = piece.data_ptr(), piece.shape[0]
    return made


def quantised_matrix(codes: Tensor, scales: Tensor, bits: int, bias: Tensor | None = None) -> Matrix:
    """`codes`: [rows, columns * bits / 8] uint8, `scales`: [rows, columns / GROUP] float32, as `ember_quantise` makes
    them; both must outlive the matrix."""
    made = Matrix(bias=address(bias), scales=scales.data_ptr(), columns=codes.shape[1] * 8 // bits, bits=bits)
    made.piece[0], made.rows[0] = codes.data_ptr(), len(codes)
    return made


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def load(name: str | None = None) -> ctypes.CDLL | None:
    """The build of this name, else the best one for this machine; None where there is none.

    torch is loaded before, and with it the OpenMP library that both use.
    """
    for variant in VARIANTS:
        if name not in (None, variant.name) or not variant.is_runnable() or variant.fault(HERE) is not None:
            continue
        try:
            library = ctypes.CDLL(str(library_file(variant.name, HERE)))
        except OSError as error:  # made for another system, or there is no OpenMP
            log.warning("the C library for CPUs is not used: %s", error)
            continue
        for function, (result, arguments) in _FUNCTIONS.items():
            getattr(library, function).restype, getattr(library, function).argtypes = result, arguments
        return library
    return None


def linear(library: ctypes.CDLL, weight: Matrix, x: Tensor, threads: int) -> Tensor:
    """x [rows, columns] bfloat16 times the matrix: [rows, all its rows] float32. At most MAX_ROWS rows."""
    out = torch.empty(len(x), sum(weight.rows), dtype=torch.float32)
    library.ember_linear(weight, x.data_ptr(), len(x), out.data_ptr(), threads)
    return out
