"""GPTQ (arXiv 2210.17323), as AutoGPTQ, GPTQModel and AutoRound store it. torch is imported in functions only.

A matrix NAME has these tensors:

    NAME.qweight  int32 [in * bits / 32, out]      integers from the lowest bit on, along the inputs
    NAME.qzeros   int32 [in / group, out * bits / 32]   zero points along the outputs; in version 1 less one
    NAME.scales   [in / group, out]
    NAME.g_idx    int32 [in]                       each input's group, where they are not in order (act-order)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import Fields, shown
from ember.engine.description.weights import LinearSpec, Stored
from ember.engine.errors import ModelError
from ember.engine.quantization import held
from ember.engine.quantization.base import Files, Source
from ember.engine.quantization.expressions import Expression, Expressions
from ember.engine.quantization.held import Held
from ember.engine.quantization.mixed import Mixed
from ember.engine.quantization.packed import (
    FIELDS,
    Module,
    as_codes,
    by_words,
    check_plain_order,
    is_plain_in,
    middle,
    ordered,
    read_group,
    scale_dtype,
    taken_rows,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear

BITS = (2, 3, 4, 8)
UNUSED = (".g_idx", ".qzeros", ".bias")  # old versions write a bias of zeros for every module


@dataclass(frozen=True, slots=True)
class GPTQScheme:
    """How some modules are stored."""

    bits: int
    group: int  # -1: one for all inputs
    has_order: bool  # whether g_idx is to be read
    zero_offset: int  # to be added to stored zero points
    has_zeros: bool = True
    scales: str = "float16"  # their dtype, torch's name
    checks_order: bool = False  # whether g_idx is only compared with the order that config.json says

    def sources(self, spec: LinearSpec) -> list[Source]:
        found = []
        for output in spec.outputs:
            module = Module(output, spec, f"bits={self.bits} and group_size={self.group}")
            group = module.group(self.group)
            found += [
                module.packed("codes", ".qweight", self.bits),
                module.grouped("scales", ".scales", group, self.scales),
            ]
            if self.has_zeros:
                found.append(module.grouped_zeros("zeros", ".qzeros", group, self.bits))
            if self.has_order or self.checks_order:
                found.append(module.inputs_order("order", ".g_idx"))
        return found

    def held(self, spec: LinearSpec) -> Held:
        return held.integers(spec, self.bits, self.group, self.scales, self.has_zeros, self.has_order)

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        from ember.engine.layers.int_linear import IntLinear

        (scales,) = tensors["scales"]
        zeros = None
        if self.has_zeros:
            places = () if self.bits == 3 else tuple(range(32 // self.bits))
            stored = taken_rows(by_words(tensors["zeros"][0], self.bits, places), spec, self.bits)
            zeros = middle((stored + self.zero_offset) & ((1 << self.bits) - 1), self.bits)
        codes, bits = as_codes(tensors["codes"], self.bits, zeros is None)
        layer = IntLinear(codes, scales, bits, dtype, zeros)
        if self.checks_order:
            check_plain_order(layer, spec, tensors["order"], f"{FIELDS}desc_act")
        return layer if not self.has_order else ordered(layer, spec, tensors["order"][0])


class GPTQ(Mixed):
    """The format of `quant_method` gptq."""

    def __init__(self, config: DecoderConfig, files: Files) -> None:
        fields = Fields(config.quantization or {}, FIELDS)
        self._files = files
        self._base = GPTQScheme(
            bits=read_bits(fields),
            group=read_group(fields),
            has_order=fields.flag("desc_act", False),
            zero_offset=_zero_offset(fields),
        )
        self._head = config.names.lm_head if not fields.flag("lm_head", False) else None
        self._inside = [str(name) for name in _flat(fields.values.get("modules_in_block_to_quantize"))]
        expressions = Expressions(f"{FIELDS}dynamic")
        self._overrides = [
            _override(name, value, self._base, expressions) for name, value in fields.mapping("dynamic").items()
        ]
        super().__init__("gptq", self._scheme_for, UNUSED)

    def _scheme_for(self, stored: Stored) -> GPTQScheme | None:
        name, files = stored.name, self._files
        if is_plain_in(files, stored):
            return None
        scheme: GPTQScheme | None = self._base
        for pattern, overriding in self._overrides:
            if pattern.match(name):
                scheme = overriding
                break
        if f"{name}.qweight" not in files and (name == self._head or not self._is_inside(name)):
            return None
        if scheme is None:
            return None
        return found_in(files, name, scheme)

    def _is_inside(self, name: str) -> bool:
        return not self._inside or any(name.endswith(f".{inside}") or name == inside for inside in self._inside)


def found_in(files: Files, name: str, scheme: GPTQScheme) -> GPTQScheme:
    """The scheme with what the files say of a module."""
    is_stored = f"{name}.g_idx" in files
    return replace(
        scheme,
        scales=scale_dtype(files, f"{name}.scales"),
        has_order=scheme.has_order and (not files or is_stored),
        checks_order=is_stored and not scheme.has_order,
    )


def read_bits(fields: Fields) -> int:
    bits = fields.integer("bits")
    if bits not in BITS:
        raise fields.error("bits", "2, 3, 4 or 8")
    return bits


def _zero_offset(fields: Fields) -> int:
    """What is to be added to stored zero points, which are less by one in the first version."""
    name = "checkpoint_format" if fields.values.get("checkpoint_format") is not None else "format"
    if fields.flag("is_marlin_format", False):
        raise fields.error("is_marlin_format", "false: only checkpoint_format gptq and gptq_v2 are supported")
    return {"gptq": 1, "gptq_v2": 0}[fields.one_of(name, "gptq", ("gptq", "gptq_v2"))]


def _override(
    name: str, value: Any, base: GPTQScheme, expressions: Expressions
) -> tuple[Expression, GPTQScheme | None]:
    """The expression of an entry of `dynamic`, and the scheme of the modules that it matches; None: they are plain."""
    where = expressions.field
    pattern = expressions.compile(name.removeprefix("-:").removeprefix("+:"), name)
    if name.startswith("-:"):
        return pattern, None
    if not isinstance(value, Mapping):
        raise ModelError(f"{where} has {shown(value)} for {shown(name)}: it must be an object")
    fields = Fields({"bits": base.bits, "group_size": base.group, "desc_act": base.has_order, **value}, f"{where}.")
    return pattern, replace(
        base, bits=read_bits(fields), group=read_group(fields), has_order=fields.flag("desc_act", False)
    )


def _flat(value: Any) -> list[Any]:
    """The items of a list of lists."""
    if not isinstance(value, list):
        return [] if value is None else [value]
    return [inner for item in value for inner in _flat(item)]
