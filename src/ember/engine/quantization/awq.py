"""AWQ (arXiv 2306.00978), as AutoAWQ and AutoRound store it, with 4 bits. torch is imported in functions only.

A matrix NAME has these tensors. Version gemm packs along the outputs, gemv along the inputs:

                  gemm                          gemv
    NAME.qweight  int32 [in, out / 8]           int32 [out, in / 8]
    NAME.qzeros   int32 [in / group, out / 8]   int32 [out, words of a row's zero points, padded]
    NAME.scales   [in / group, out]             [out, 8 numbers for each of these words]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import Fields
from ember.engine.description.weights import LinearSpec, Size, Stored
from ember.engine.quantization import held
from ember.engine.quantization.base import Files, Source
from ember.engine.quantization.held import Held
from ember.engine.quantization.ignored import Ignored
from ember.engine.quantization.mixed import Mixed
from ember.engine.quantization.packed import (
    FIELDS,
    FLOAT_NAMES,
    Module,
    as_codes,
    by_words,
    in_pieces,
    is_plain_in,
    middle,
    read_group,
    scale_dtype,
    taken_rows,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear

BITS = 4
PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # of the 8 outputs in a word of version gemm, from its lowest bits on
VERSIONS = ("gemm", "gemv", "exllama", "ipex")  # exllama and ipex are stored as gemm
UNUSED = (".bias",)


@dataclass(frozen=True, slots=True)
class AWQScheme:
    """How some modules are stored in version gemm."""

    group: int  # -1: one for all inputs
    scales: str = "float16"  # their dtype, torch's name

    def sources(self, spec: LinearSpec) -> list[Source]:
        found = []
        for output in spec.outputs:
            module = Module(output, spec, f"group_size={self.group}")
            group = module.group(self.group)
            found += [
                module.packed_by_output("codes", ".qweight", BITS),
                module.grouped("scales", ".scales", group, self.scales),
                module.grouped_zeros("zeros", ".qzeros", group, BITS),
            ]
        return found

    def held(self, spec: LinearSpec) -> Held:
        return held.integers(spec, BITS, self.group, self.scales, zeros=True)

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        from ember.engine.layers.int_linear import IntLinear

        (words,), (scales,) = tensors["codes"], tensors["scales"]
        zeros = middle(taken_rows(by_words(tensors["zeros"][0], BITS, PLACES), spec, BITS), BITS)
        return IntLinear(taken_rows(_repacked(words), spec, BITS), scales, BITS, dtype, zeros)


@dataclass(frozen=True, slots=True)
class GEMVScheme:
    """How some modules are stored in version gemv."""

    group: int
    scales: str = "float16"

    def sources(self, spec: LinearSpec) -> list[Source]:
        found = []
        for output in spec.outputs:
            module = Module(output, spec, f"version=gemv and group_size={self.group}")
            groups = module.group_count(self.group)
            step = max(1, 128 // self.group)  # words of a row are padded to a multiple of it
            words = -(-groups.extent // (8 * step)) * step
            padded = Size(words, f"{groups.says} in words: {words}")
            many = Size(8 * words, f"{groups.says} padded: {8 * words}")
            found += [
                module.by_row("codes", ".qweight", module.words(output.stored.columns, BITS), ("I32",), "int32"),
                module.by_row("zeros", ".qzeros", padded, ("I32",), "int32"),
                module.by_row("scales", ".scales", many, tuple(FLOAT_NAMES), self.scales),
            ]
        return found

    def held(self, spec: LinearSpec) -> Held:
        return held.integers(spec, BITS, self.group, self.scales, zeros=True)

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        import torch

        from ember.engine.layers.int_linear import IntLinear, unpack

        groups = spec.inputs // self.group
        zeros = unpack(torch.cat(tensors["zeros"]).view(torch.uint8), BITS)[:, :groups].contiguous()
        scales = torch.cat(tensors["scales"])[:, :groups].contiguous()
        codes, bits = as_codes(tensors["codes"], BITS, False)
        return IntLinear(codes, scales, bits, dtype, middle(zeros, BITS))


def _repacked(words: Tensor) -> Tensor:
    """The codes of `IntLinear`, uint8 [out, in / 2], from words of 8 outputs each, int32 [out / 8, in]."""
    from ember.engine.layers.int_linear import pack

    inputs = words.shape[1]
    return in_pieces(
        words, 8 * inputs // 2, lambda piece: pack(by_words(piece, BITS, PLACES), BITS).unflatten(0, (-1, 8)).flatten(1)
    ).view(-1, inputs // 2)


def check_bits(fields: Fields) -> None:
    if fields.integer("bits") != BITS:
        raise fields.error("bits", "4, which is all that AWQ's packing has")


class AWQ(Mixed):
    """The format of `quant_method` awq."""

    def __init__(self, config: DecoderConfig, files: Files) -> None:
        values = dict(config.quantization or {})
        for old, new in (("w_bit", "bits"), ("q_group_size", "group_size")):  # AutoAWQ's own names
            if new not in values and old in values:
                values[new] = values[old]
        fields = Fields(values, FIELDS)
        check_bits(fields)
        if fields.text("backend", "autoawq") != "autoawq":
            raise fields.error("backend", "autoawq: weights of other programs are packed in another way")
        version = str(fields.text("version", "gemm")).lower()
        if version not in VERSIONS:
            raise fields.error("version", f"one of {', '.join(VERSIONS)}: no other is supported")
        group = read_group(fields)
        if version == "gemv" and group not in (32, 64, 128):
            raise fields.error("group_size", "32, 64 or 128 for version gemv")
        scheme = GEMVScheme(group) if version == "gemv" else AWQScheme(group)
        field = "modules_to_not_convert"
        ignored = Ignored(fields.names(field), f"{FIELDS}{field}")
        head = config.names.lm_head

        def scheme_of(stored: Stored) -> AWQScheme | GEMVScheme | None:
            name = stored.name
            is_plain = name in ignored or name == head
            if is_plain_in(files, stored) or (is_plain and f"{name}.qweight" not in files):
                return None
            return replace(scheme, scales=scale_dtype(files, f"{name}.scales"))

        super().__init__("awq", scheme_of, UNUSED)
