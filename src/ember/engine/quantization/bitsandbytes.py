"""Checkpoints of bitsandbytes, without that package: nf4 and fp4 (QLoRA, arXiv 2305.14314), and LLM.int8 (arXiv
2208.07339). No torch is imported.

A matrix of 4 bits is stored as one row of all its numbers, two in a byte (the first in the high bits), with the largest
magnitude of each block of 64 of them (`absmax`). If these are quantised too, `absmax` has numbers of a table
(`nested_quant_map`), times the largest of each block of 256 (`nested_absmax`), plus an offset. Block sizes and offset
are in JSON in a tensor of bytes (`quant_state`). A matrix of 8 bits has the largest magnitude of each row (`SCB`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd, prod
from typing import TYPE_CHECKING, Any

from ember import untrusted_json
from ember.engine.description.config import DecoderConfig
from ember.engine.description.fields import shown
from ember.engine.description.weights import LinearSpec, Rows, Size, Stored
from ember.engine.errors import ModelError
from ember.engine.quantization import held
from ember.engine.quantization.base import WEIGHT, Files, Source, matrix_source
from ember.engine.quantization.held import Held
from ember.engine.quantization.ignored import Ignored
from ember.engine.quantization.mixed import Mixed, Scheme
from ember.engine.quantization.scales import in_order, row_numbers, scale_sources, stored_matrices
from ember.untrusted_json import UntrustedJsonError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ember.engine.layers.linear import Linear

_STATE = ".quant_state.bitsandbytes__"
_ABSMAX, _NESTED, _NESTED_MAP = ".absmax", ".nested_absmax", ".nested_quant_map"
_BLOCK, _NESTED_BLOCK = 64, 256  # numbers of a block, where the files do not say
_STORAGE = {"U8": ("uint8", 1), "BF16": ("bfloat16", 2), "F16": ("float16", 2), "F32": ("float32", 4)}
"""Dtypes that the bytes may be stored as (`bnb_4bit_quant_storage`) -> torch's name, and its bytes."""


def bitsandbytes(config: DecoderConfig, files: Files) -> Mixed:
    """`quant_method` bitsandbytes. Raises ModelError."""
    fields = config.quantization or {}
    kind = fields.get("bnb_4bit_quant_type", "fp4")
    if kind not in ("nf4", "fp4"):
        raise ModelError(f"quantization_config.bnb_4bit_quant_type is {shown(kind)}: it must be nf4 or fp4")
    is_8bit = bool(fields.get("load_in_8bit", fields.get("_load_in_8bit", False)))
    ignored = Ignored(fields.get("llm_int8_skip_modules"), "quantization_config.llm_int8_skip_modules")

    def scheme_of(stored: Stored) -> Scheme | None:
        name = stored.name + stored.suffix
        if f"{stored.name}.SCB" in files:
            return Int8(files)
        for found in ("nf4", "fp4"):
            if f"{name}{_STATE}{found}" in files:
                return FourBits(found, files)
        if files or stored.name in ignored:
            return None
        return Int8(files) if is_8bit else FourBits(str(kind), files)

    return Mixed("bitsandbytes", scheme_of, (".quant_map", ".weight_format"))


@dataclass(frozen=True, slots=True)
class FourBits:
    """Matrices in nf4 or fp4. The part of each tensor is its suffix and the number of its matrix in the layer."""

    kind: str
    files: Files = field(default_factory=dict, compare=False)

    def sources(self, spec: LinearSpec) -> list[Source]:
        found: list[Source] = []
        for number, stored in enumerate(stored_matrices(spec)):
            found.append(self._codes(number, stored))
            for suffix in (_ABSMAX, _NESTED, _NESTED_MAP, _STATE + self.kind):
                found += self._vector(number, stored, suffix)
        return found

    def _codes(self, number: int, stored: Stored) -> Source:
        """All bytes of a matrix as one row."""
        name, numbers = stored.name + stored.suffix, _count(stored)
        if stored.columns.extent % 2:
            raise ModelError(f"{name} has rows of {stored.columns.extent} numbers, which are not whole bytes")
        entry = self.files.get(name)
        kind, size = _STORAGE.get("U8" if entry is None else entry.dtype, _STORAGE["U8"])
        shape: tuple[Size, ...] = (
            Size(numbers // 2, f"{stored.rows.says}, {stored.columns.says}"),
            Size(1, "one column"),
        )
        if entry is not None and 2 * prod(entry.shape) * size == numbers:
            shape = tuple(Size(extent, "") for extent in entry.shape)
        width = numbers // 2 // size
        whole = (1, width), Rows(0, 1), (0, width)
        return Source(f"{WEIGHT}{number}", name, shape, *whole, stored=tuple(_STORAGE), dtype=kind)

    def _vector(self, number: int, stored: Stored, suffix: str) -> list[Source]:
        """One of the tensors beside the bytes, whole, if there is one. Without the files there are only the scales."""
        name = stored.name + stored.suffix + suffix
        entry = self.files.get(name)
        if entry is None and suffix != _ABSMAX:
            return []
        shape: tuple[Size, ...] = (Size(-(-_count(stored) // _BLOCK), f"{stored.rows.says}, {stored.columns.says}"),)
        kinds: tuple[str, ...] = ("F32", "F16", "BF16")
        dtype = "float32"
        if entry is not None:
            shape = tuple(Size(extent, "") for extent in entry.shape)
            if entry.dtype == "U8":
                kinds, dtype = ("U8",), "uint8"
        size = prod(extent.extent for extent in shape)
        whole = (size, 1), Rows(0, size), (0, 1)
        return [Source(f"{suffix}{number}", name, shape, *whole, stored=kinds, dtype=dtype, is_vector=True)]

    def held(self, spec: LinearSpec) -> Held:
        return held.table(spec, gcd(spec.inputs, _BLOCK), 4)

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        import torch

        from ember.engine.layers.table_linear import FP4, NF4, TableLinear

        pairs = [self._matrix(stored, tensors, number) for number, stored in enumerate(stored_matrices(spec))]
        width = max(scales.shape[1] for _, scales in pairs)  # of blocks of different sizes, the smallest divides all
        codes = torch.cat([codes for codes, _ in pairs])
        scales = torch.cat([scales.repeat_interleave(width // scales.shape[1], dim=1) for _, scales in pairs])
        numbers = row_numbers(spec, (1, None))
        table = torch.tensor(NF4 if self.kind == "nf4" else FP4, device=codes.device)
        return TableLinear(in_order(codes, numbers), table, in_order(scales, numbers), dtype)

    def _matrix(self, stored: Stored, tensors: Mapping[str, tuple[Tensor, ...]], number: int) -> tuple[Tensor, Tensor]:
        """The codes [rows, columns / 2], with the first of two in the low bits, and the scales [rows, blocks]. A block
        may end within a row: then blocks are smaller here, and several have one scale."""
        import torch

        rows, columns = _count(stored) // stored.columns.extent, stored.columns.extent
        state: dict[str, Any] = {}
        if (found := tensors.get(f"{_STATE}{self.kind}{number}")) is not None:
            state = _state(stored, bytes(found[0].cpu().numpy()))
        stored_bytes = tensors[f"{WEIGHT}{number}"][0].view(torch.uint8).view(rows, columns // 2)
        codes = stored_bytes >> 4 | stored_bytes << 4
        block, scales = int(state.get("blocksize", _BLOCK)), tensors[f"{_ABSMAX}{number}"][0]
        name = f"{stored.name}{stored.suffix}"
        if len(scales) != -(-rows * columns // block):
            raise ModelError(f"{name}{_ABSMAX} has {len(scales)} scales for blocks of {block}")
        if scales.dtype == torch.uint8:
            nested, table = (tensors.get(f"{suffix}{number}", (scales[:0],))[0] for suffix in (_NESTED, _NESTED_MAP))
            width = int(state.get("nested_blocksize", _NESTED_BLOCK))
            if len(table) != 256 or len(nested) != -(-len(scales) // width):
                raise ModelError(
                    f"{name}{_ABSMAX} is quantised, but its table {_NESTED_MAP} has {len(table)} of 256 numbers, or "
                    f"{_NESTED} has {len(nested)} for {len(scales)} scales in blocks of {width}"
                )
            groups = torch.arange(len(scales), device=scales.device) // width
            scales = table[scales.int()] * nested[groups] + float(state.get("nested_offset", 0.0))
        step = gcd(columns, block)
        firsts = torch.arange(0, rows * columns, step, device=scales.device)
        return codes, scales.float()[firsts // block].view(rows, -1)


@dataclass(frozen=True, slots=True)
class Int8:
    """Matrices of LLM.int8. Columns that it multiplies in 16 bits for their large inputs are among the others here, as
    no input is rounded."""

    files: Files = field(default_factory=dict, compare=False)

    def sources(self, spec: LinearSpec) -> list[Source]:
        # A matrix that the plain checkpoint has transposed (GPT-2) is turned before it is rounded.
        outputs = (output._replace(stored=output.stored._replace(transposed=False)) for output in spec.outputs)
        codes = [matrix_source(output, spec.columns, stored=("I8",), dtype="int8") for output in outputs]
        return codes + scale_sources(spec, _ABSMAX, ".SCB", (1, None), self.files)

    def held(self, spec: LinearSpec) -> Held:
        return held.integers(spec, 8, None, "float32")

    def assemble(self, spec: LinearSpec, tensors: Mapping[str, tuple[Tensor, ...]], dtype: torch.dtype) -> Linear:
        import torch

        from ember.engine.layers.int_linear import IntLinear

        codes = torch.cat([(rows.view(torch.uint8) ^ 128) for rows in tensors[WEIGHT]])
        scales = in_order(torch.cat(tensors[_ABSMAX]), row_numbers(spec, (1, None))) / 127.0
        return IntLinear(codes, scales, 8, dtype)


def _count(stored: Stored) -> int:
    """The number of weights of a stored matrix, or of all matrices of a stack."""
    return stored.rows.extent * stored.columns.extent * (1 if stored.stack is None else stored.stack.extent)


def _state(stored: Stored, data: bytes) -> dict[str, Any]:
    """The JSON of a quant_state. Raises ModelError."""
    name = f"{stored.name}{stored.suffix}.quant_state"
    try:
        state = untrusted_json.loads(data)
    except UntrustedJsonError:
        state = None
    if not isinstance(state, dict):
        raise ModelError(f"{name} cannot be read as a JSON object: download the file again")
    for size in ("blocksize", "nested_blocksize"):
        value = state.get(size, 1)
        if type(value) is not int or value < 1:
            raise ModelError(f"{name}: {size} is {shown(value)}: it must be a positive number")
    if type(state.get("nested_offset", 0.0)) not in (int, float):
        raise ModelError(f"{name}: nested_offset is {shown(state['nested_offset'])}: it must be a number")
    return state
