"""Integers of compressed-tensors: packed in words (`pack-quantized`), or one in a byte (`int-quantized`).

A matrix NAME has these tensors. The integers are signed; packed ones have half of their range added.

    NAME.weight_packed      int32 [out, in * bits / 32]       or NAME.weight, int8 [out, in]
    NAME.weight_scale       [out, in / group], or one for each row or for the matrix
    NAME.weight_zero_point  int32 [out * bits / 32, in / group], or int8 in the scales' shape; absent if symmetric
    NAME.weight_g_idx       int32 [in], each input's group (`actorder` group)
    NAME.weight_shape       [2], out and in, of packed ones, with which the matrix is compared

torch is imported in functions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ember.engine.description.fields import shown
from ember.engine.description.weights import LinearSpec, Rows, Size, Stored
from ember.engine.errors import ModelError
from ember.engine.quantization import held
from ember.engine.quantization.base import Files, Source
from ember.engine.quantization.held import Held
from ember.engine.quantization.packed import (
    FLOAT_NAMES,
    Module,
    as_codes,
    by_words,
    check_plain_order,
    middle,
    ordered,
    scale_dtype,
    taken_rows,
)
from ember.engine.quantization.scales import row_numbers, scale_sources

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear

SHAPE = ".weight_shape"
_INTEGERS = ("I64", "I32")
UNUSED = (SHAPE, ".weight_g_idx", ".input_zero_point", ".output_scale", ".output_zero_point")
# Values of `actorder`: those with a group for each input, and those whose inputs are in order in the files.
_BY_GROUP, _IN_ORDER = ("group", "dynamic", True), ("weight", "static", False, None)
_BLOCKS = {"channel": (1, None), "tensor": (None, None)}


@dataclass(frozen=True, slots=True)
class CompressedInts:
    """How some modules are stored."""

    says: str  # the group of config.json and its arguments, for messages
    bits: int
    group: int | None  # None: scales of rows or of the matrix (`strategy`)
    strategy: str
    is_packed: bool
    zeros: str | None  # how zero points are stored: packed, bytes; None: there are none
    has_order: bool
    checks_order: bool  # whether weight_g_idx is only compared with the order that config.json says
    scales: str  # dtype of the scales of groups, torch's name
    files: Files
    has_shape: bool  # whether the files say the matrix's shape

    def sources(self, spec: LinearSpec) -> list[Source]:
        found: list[Source] = []
        for output in spec.outputs:
            module = Module(output, spec, self.says)
            columns = output.stored.columns
            if self.is_packed:
                words = module.words(columns, self.bits)
                found.append(module.by_row("codes", ".weight_packed", words, ("I32",), "int32"))
            else:
                found.append(module.by_row("codes", ".weight", columns, ("I8",), "int8"))
            groups = None
            if self.group is not None:
                groups = module.group_count(self.group)
                found.append(module.by_row("scales", ".weight_scale", groups, tuple(FLOAT_NAMES), self.scales))
            if self.zeros == "packed":
                found.append(module.word_rows("zeros", ".weight_zero_point", self.bits, groups))
            elif self.zeros == "bytes" and groups is not None:
                found.append(module.by_row("zeros", ".weight_zero_point", groups, ("I8",), "int8"))
            if self.has_order or self.checks_order:
                found.append(module.inputs_order("order", ".weight_g_idx"))
            if self.has_shape:
                found.append(_shape_source(module.name))
        if self.group is None:
            found += scale_sources(spec, "scales", ".weight_scale", _BLOCKS[self.strategy], self.files)
            if self.zeros == "bytes":
                zeros = scale_sources(spec, "zeros", ".weight_zero_point", _BLOCKS[self.strategy], self.files)
                found += [source._replace(stored=("I8",), dtype="int8") for source in zeros]
        return found

    def held(self, spec: LinearSpec) -> Held:
        scales = "float32" if self.group is None else self.scales
        return held.integers(spec, self.bits, self.group, scales, self.zeros is not None, self.has_order)

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        import torch

        from ember.engine.layers.int_linear import IntLinear

        if self.has_shape:
            _check_shapes(spec, torch.cat(tensors["shape"]).view(-1, 2).tolist())
        half = 1 << (self.bits - 1)
        zeros = torch.cat(tensors["zeros"]) if self.zeros is not None else None
        if zeros is not None and self.zeros == "packed":
            zeros = taken_rows(by_words(zeros, self.bits, tuple(range(32 // self.bits))), spec, self.bits)
        elif zeros is not None:
            zeros = (zeros.short() + half).byte()
        scales = torch.cat(tensors["scales"])
        if self.group is None:
            numbers = row_numbers(spec, _BLOCKS[self.strategy]).to(scales.device)
            scales = scales[numbers]
            zeros = zeros[numbers] if zeros is not None and self.zeros == "bytes" else zeros
        zeros = None if zeros is None else middle(zeros, self.bits)
        if self.is_packed:
            codes, bits = as_codes(tensors["codes"], self.bits, zeros is None)
        else:
            codes, bits = _from_bytes(torch.cat(tensors["codes"]), self.bits)
        layer = IntLinear(codes, scales, bits, dtype, zeros)
        if self.checks_order:
            check_plain_order(layer, spec, tensors["order"], f"actorder of {self.says}")
        return layer if not self.has_order else ordered(layer, spec, tensors["order"][0])


def _shape_source(module: str) -> Source:
    columns = (0, 2)
    return Source(
        "shape", module + SHAPE, (Size(2, "two"),), (1, 2), Rows(0, 1), columns, stored=_INTEGERS, dtype="int64"
    )


def _check_shapes(spec: LinearSpec, shapes: list[list[int]]) -> None:
    """Raise ModelError if the files say another shape of a stored matrix than config.json."""
    for output, shape in zip(spec.outputs, shapes, strict=True):
        name, rows, columns = output.stored.name, output.stored.rows, output.stored.columns
        if shape != [rows.extent, columns.extent]:
            raise ModelError(
                f"{rows.says} and {columns.says}, but {name}{SHAPE} is {shape}: use another checkpoint, or its own "
                "config.json"
            )


def _from_bytes(values: Tensor, bits: int) -> tuple[Tensor, int]:
    """The codes of `IntLinear`, and their bits, from signed integers, int8 [out, in]."""
    import torch

    from ember.engine.layers.int_linear import pack

    codes = values.view(torch.uint8) ^ 0x80
    return (codes, 8) if bits == 8 else (pack(codes - (128 - 8), 4), 4)


def ints_of(says: str, stored: Stored, files: Files, weights: Mapping[str, Any], form: str) -> CompressedInts:
    """The scheme of a matrix. `weights`: the arguments of its group; `form`: the value of `format`. Raises
    ModelError."""
    bits, strategy = weights.get("num_bits", 8), weights.get("strategy")
    group, order = weights.get("group_size"), weights.get("actorder")
    order = order.lower() if isinstance(order, str) else order
    symmetric = weights.get("symmetric", True)
    if strategy is None:
        strategy = "group" if isinstance(group, int) and group > 0 else "tensor" if group is None else "channel"
    is_packed = f"{stored.name}.weight_packed" in files if files else "pack" in form
    allowed = (2, 4, 8) if is_packed else (4, 8)
    if bits not in allowed or form == "marlin-24":
        raise ModelError(
            f"{says} with the format {shown(form)} are not supported: integers may have 4 or 8 bits, packed ones also "
            "2, in the formats pack-quantized and int-quantized"
        )
    if order not in (*_BY_GROUP, *_IN_ORDER):
        raise ModelError(f"{says}: actorder must be group, dynamic, weight or static, not {shown(order)}")
    if not isinstance(symmetric, bool):
        raise ModelError(f"{says}: symmetric must be true or false, not {shown(symmetric)}")
    if strategy not in ("group", "channel", "tensor"):
        raise ModelError(f"{says}: the strategy must be group, channel or tensor, not {shown(strategy)}")
    if strategy == "group" and not (isinstance(group, int) and group > 0 and group % 2 == 0):
        raise ModelError(f"{says}: group_size must be a positive even number, not {shown(group)}")
    zeros = None
    zero_points = f"{stored.name}.weight_zero_point"
    if is_packed and files and not symmetric and strategy != "tensor" and zero_points not in files:
        raise ModelError(f"{says} are not symmetric, but the files lack {zero_points}: download them again")
    if not symmetric and (not files or zero_points in files):
        dtype = files[zero_points].dtype if zero_points in files else "I32" if is_packed else "I8"
        zeros = "packed" if dtype == "I32" else "bytes"
    shape = files.get(stored.name + SHAPE)
    has_g_idx = f"{stored.name}.weight_g_idx" in files
    has_order = order in _BY_GROUP and (not files or has_g_idx)
    return CompressedInts(
        says=says,
        bits=bits,
        group=group if strategy == "group" else None,
        strategy=strategy,
        is_packed=is_packed,
        zeros=zeros,
        has_order=has_order,
        checks_order=has_g_idx and order in _IN_ORDER and strategy == "group",
        scales=scale_dtype(files, f"{stored.name}.weight_scale"),
        files=_NO_FILES if strategy == "group" else files,
        has_shape=shape is not None and shape.shape == (2,) and shape.dtype in _INTEGERS,
    )


_NO_FILES: Files = {}
