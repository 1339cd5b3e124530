"""The C library's structures and functions in ctypes (see `model.h`, `decoder.c`), and the build for this machine."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ember_cpu.variants import HERE, VARIANTS, library_file

log = logging.getLogger(__name__)

MAX_ROWS = 128  # rows in one call, as in matrix.h
ROPES = 2  # kinds of rotary positions in a model, as in model.h
MAX_PIECES = 3  # of a matrix, as in matrix.h
ACTIVATIONS = ("silu", "gelu_tanh")  # in the order of numbers.h

_I64, _POINTER = ctypes.c_int64, ctypes.c_void_p


class Piece(ctypes.Structure):
    """Rows of a matrix of one type (matrix.h)."""

    _fields_ = (
        ("data", _POINTER),
        ("rows", _I64),
        ("type", _I64),
        ("scales", _POINTER),
        ("zeros", _POINTER),
        ("group", _I64),
        ("scale_type", _I64),
        ("height", _I64),
        ("factors", _POINTER),
        ("table", _POINTER),
        ("has_tables", _I64),
        ("starts", _POINTER),
        ("counts", _POINTER),
        ("places", _POINTER),
        ("values", _POINTER),
    )


class Matrix(ctypes.Structure):
    """A matrix [rows, columns] in up to three pieces of rows (matrix.h)."""

    _fields_ = (
        ("piece", Piece * MAX_PIECES),
        ("bias", _POINTER),
        ("columns", _I64),
        ("order", _POINTER),
        ("floats", _I64),
    )

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.piece)


class Experts(ctypes.Structure):
    """The experts of a layer (experts.h)."""

    _fields_ = (
        ("count", _I64),
        ("per_token", _I64),
        ("router", Matrix),
        ("correction", _POINTER),
        ("up", ctypes.POINTER(Matrix)),
        ("down", ctypes.POINTER(Matrix)),
        ("sigmoid", _I64),
        ("normalised", _I64),
        ("groups", _I64),
        ("chosen_groups", _I64),
        ("norm_min", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("shared", _I64),
        ("shared_up", Matrix),
        ("shared_down", Matrix),
        ("shared_router", _POINTER),
    )


class Layer(ctypes.Structure):
    """Weights and KV cache of a layer (model.h)."""

    _fields_ = (
        ("attention_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("attention_output_norm", _POINTER),
        ("mlp_output_norm", _POINTER),
        ("query_key_norm", _POINTER),
        ("qkv", Matrix),
        ("output", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("experts", ctypes.POINTER(Experts)),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("window", _I64),
        ("group", _I64),
        ("rope", _I64),
        ("scale", ctypes.c_float),
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
        ("experts", _I64),
        ("experts_per_token", _I64),
        ("expert_size", _I64),
        ("rotary_dims", _I64 * ROPES),
        ("interleaved", _I64),
        ("rotates_before_norm", _I64),
        ("window_is_chunk", _I64),
        ("activation", _I64),
        ("eps", ctypes.c_float),
        ("residual_scale", ctypes.c_float),
        ("soft_cap", ctypes.c_float),
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


class Texts(ctypes.Structure):
    """The attention of one layer of an encoder (texts.h)."""

    _fields_ = (
        ("queries", _POINTER),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("biases", _POINTER),
        ("out", _POINTER),
        ("units", _POINTER),
        ("num_units", _I64),
        ("heads", _I64),
        ("kv_heads", _I64),
        ("head_dim", _I64),
        ("query_stride", _I64),
        ("key_stride", _I64),
        ("value_stride", _I64),
        ("window", _I64),
        ("span", _I64),
        ("capacity", _I64),
        ("scale", ctypes.c_float),
    )


_MODEL, _LAYER, _STEP = ctypes.POINTER(Model), ctypes.POINTER(Layer), ctypes.POINTER(Step)
_MATRIX = ctypes.POINTER(Matrix)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ember_workspace": (_I64, (_MODEL, _I64)),
    "ember_forward": (None, (_MODEL, _STEP, _POINTER, ctypes.c_int)),
    "ember_linear": (None, (_MATRIX, _POINTER, _I64, *[_POINTER] * 2, ctypes.c_int)),
    "ember_linear_float32": (None, (_POINTER, _POINTER, _I64, _I64, _POINTER, _I64, _POINTER, ctypes.c_int)),
    "ember_linear_workspace": (_I64, (_MATRIX, _I64)),
    "ember_add_norm": (None, (*[_POINTER] * 4, _I64, _I64, ctypes.c_float, ctypes.c_int)),
    "ember_place": (None, (_MODEL, _LAYER, _STEP, *[_POINTER] * 3, ctypes.c_int)),
    "ember_attend": (None, (_MODEL, _LAYER, _STEP, _POINTER, _I64, *[_POINTER] * 2, ctypes.c_int)),
    "ember_quantise": (None, (_POINTER, _I64, _I64, ctypes.c_int, _POINTER, ctypes.c_int)),
    "ember_restore": (None, (_MATRIX, _POINTER, _I64, _POINTER, ctypes.c_int)),
    "ember_texts_workspace": (_I64, (_I64, _I64, ctypes.c_int)),
    "ember_texts": (None, (ctypes.POINTER(Texts), _POINTER, ctypes.c_int)),
    "ember_add_layer_norm": (None, (*[_POINTER] * 5, _I64, _I64, ctypes.c_float, ctypes.c_int, ctypes.c_int)),
    "ember_gate": (None, (_POINTER, _POINTER, _I64, _I64, _I64, ctypes.c_int)),
}
"""Result and argument types of each function."""


# Types of pieces. Those of blocks are the numbers of GGUF files (blocks.h).
BFLOAT16 = 30
INT4, INT8 = 200, 201  # 8 and 128 stand for 0
INT4_ZEROS, INT8_ZEROS = 202, 203
E2M1, TABLE4, FLOAT8 = 204, 205, 206
_SCALE_TYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.float8_e4m3fn: 2,
    torch.float8_e8m0fnu: 3,
    torch.bfloat16: BFLOAT16,
}


def piece(data: Tensor, kind: int) -> Piece:
    """Rows of a matrix, which the tensor must outlive: bfloat16 [rows, columns], or uint8 [rows, bytes of a row]. It is
    contiguous, as all tensors below are."""
    return Piece(data.data_ptr(), len(data), kind)


def scaled_piece(
    data: Tensor,
    kind: int,
    scales: Tensor,
    group: int,
    height: int = 1,
    *,
    zeros: Tensor | None = None,
    factors: Tensor | None = None,
    table: Tensor | None = None,
) -> Piece:
    """Rows of integers or codes, which the tensors must outlive: [rows, bytes of a row].

    `scales`: [rows / height, columns / group], where the last ones may be of fewer. `group`: a multiple of 32, or all
    columns; of codes of 4 bits also 16. `zeros`: uint8, of the scales' shape. `factors`: float32 [rows], of the scales.
    `table`: float32, [16] or [rows, 16].
    """
    made = Piece(data.data_ptr(), len(data), kind, scales.data_ptr(), address(zeros), group)
    made.scale_type, made.height, made.factors = _SCALE_TYPES[scales.dtype], height, address(factors)
    made.table, made.has_tables = address(table), table is not None and table.dim() == 2
    return made


def add_singles(to: Piece, starts: Tensor, counts: Tensor, places: Tensor, values: Tensor) -> Piece:
    """Let single numbers be added to the weights of a piece of codes: row i has counts[i] of `values` (float32), from
    starts[i] on, in the columns `places`. The other tensors are int32."""
    to.starts, to.counts, to.places, to.values = map(address, (starts, counts, places, values))
    return to


def matrix(
    pieces: Sequence[Piece], columns: int, bias: Tensor | None = None, floats: bool = False, order: Tensor | None = None
) -> Matrix:
    """A matrix of up to three pieces. The tensors of all arguments must outlive it.

    `floats`: whether blocks and integers are multiplied with activations in bfloat16, instead of 8 bits. `order`: int32
    [columns]: column k is multiplied with element order[k] of the input; not with `floats`.
    """
    made = Matrix(bias=address(bias), columns=columns, order=address(order), floats=floats)
    for i, each in enumerate(pieces):
        made.piece[i] = each
    return made


def plain_matrix(weight: Tensor, bias: Tensor | None = None) -> Matrix:
    """A bfloat16 matrix [rows, columns], contiguous."""
    return matrix([piece(weight, BFLOAT16)], weight.shape[1], bias)


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
    out = torch.empty(len(x), weight.rows, dtype=torch.float32)
    workspace = torch.empty(library.ember_linear_workspace(weight, len(x)), dtype=torch.uint8)
    library.ember_linear(weight, x.data_ptr(), len(x), out.data_ptr(), workspace.data_ptr(), threads)
    return out


def linear_float32(
    library: ctypes.CDLL, weight: Tensor, bias: Tensor | None, x: Tensor, out: Tensor, threads: int
) -> None:
    """out [rows, matrix rows] = x [rows, columns] times the transposed weight [matrix rows, columns], plus the bias.

    All are float32 and contiguous; `columns` is a multiple of 16, and the matrix has four rows or more."""
    library.ember_linear_float32(
        weight.data_ptr(), address(bias), *weight.shape, x.data_ptr(), len(x), out.data_ptr(), threads
    )


def restore_into(library: ctypes.CDLL, weight: Matrix, ids: Tensor | None, out: Tensor, threads: int) -> None:
    """Restore the matrix's rows `ids` (int64; None: all) to bfloat16: out [rows, columns], contiguous."""
    library.ember_restore(weight, address(ids), len(out), out.data_ptr(), threads)
