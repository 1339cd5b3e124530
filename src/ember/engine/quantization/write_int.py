"""Plain matrices rounded to nearest, in the tensors of checkpoints with integers: for `ember quantize`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.int_linear import pack
from ember.engine.quantization.awq import PLACES

_PIECE_ELEMENTS = 1 << 21  # rounded at a time
_SHRINKS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.73, 0.7)  # of a group's range, tried in turn


class Writer(Protocol):
    """A format that `ember quantize` writes."""

    def tensors(self, module: str, weight: Tensor) -> dict[str, Tensor]:
        """The tensors that stand for a matrix [out, in], by their whole names. Raises ModelError if it cannot be
        stored."""

    def config(self, ignored: list[str]) -> dict[str, Any]:
        """The `quantization_config` of config.json. `ignored`: linear layers that are left as they are."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """(codes - zeros) * scales stands for a weight. `zeros`: of symmetric ones the middle."""

    codes: Tensor  # uint8 [out, in]
    zeros: Tensor  # uint8 [out, in / group]
    scales: Tensor  # [out, in / group]


def round_to_nearest(weight: Tensor, bits: int, group: int, *, symmetric: bool, scales: torch.dtype) -> Rounded:
    """Integers of `bits` for a weight [out, in], with a scale in the dtype `scales` for each `group` inputs.

    The range of each group is shrunk where that lessens the sum of squared errors: the largest numbers are clipped.
    """
    found = [
        _round(piece.float().unflatten(1, (-1, group)), bits, symmetric, scales)
        for piece in weight.split(max(1, _PIECE_ELEMENTS // weight.shape[1]))
    ]
    codes, zeros, made = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Rounded(codes, zeros, made)


def _round(groups: Tensor, bits: int, symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The same for groups [rows, groups, inputs]."""
    most, middle = (1 << bits) - 1, 1 << (bits - 1)
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    best = torch.full_like(low, torch.inf)
    made: tuple[Tensor, Tensor, Tensor] | None = None
    for shrink in _SHRINKS:
        if symmetric:
            scale, zero = torch.maximum(-low, high) * (shrink / (middle - 0.5)), torch.full_like(low, middle)
        else:
            scale = (high - low) * (shrink / most)
            zero = (-low * shrink / scale.clamp_min(1e-30)).round().clamp(0, most)
        scale = scale.clamp_min(torch.finfo(dtype).tiny).to(dtype).float()
        codes = ((groups / scale[..., None]).round() + zero[..., None]).clamp(0, most)
        error = (((codes - zero[..., None]) * scale[..., None]) - groups).square().sum(-1)
        if made is None:
            best, made = error, (codes, zero, scale)
            continue
        is_better = error < best
        best = torch.where(is_better, error, best)
        pairs = zip((codes, zero, scale), made, strict=True)
        made = tuple(  # type: ignore[assignment]
            torch.where(is_better[..., None] if new.dim() == 3 else is_better, new, old) for new, old in pairs
        )
    assert made is not None
    codes, zero, scale = made
    return codes.flatten(1).byte(), zero.byte(), scale.to(dtype)


def _words(values: Tensor, bits: int) -> Tensor:
    """Integers of 4 or 8 bits [rows, columns] in words along the columns: int32 [rows, columns * bits / 32]."""
    # Bytes of a single row may have any stride between rows, with which torch makes no words of them.
    return pack(values, bits).flatten().view(torch.int32).view(len(values), -1)


def _check(module: str, weight: Tensor, group: int | None, outputs: int) -> None:
    """Raise ModelError unless groups divide the inputs, and the number `outputs` the outputs. `group`: None for a scale
    of each row."""
    if group is None and weight.shape[1] % 8:
        raise ModelError(f"{module} has {weight.shape[1]} inputs, which this format needs as a multiple of 8")
    if group is not None and (weight.shape[1] % group or group % 8):
        raise ModelError(
            f"--group-size {group} must be a multiple of 8 that divides the {weight.shape[1]} inputs of {module}"
        )
    if weight.shape[0] % outputs:
        raise ModelError(f"{module} has {weight.shape[0]} outputs, which this format needs as a multiple of {outputs}")


@dataclass(frozen=True, slots=True)
class GPTQWriter:
    """`gptq`: symmetric, 4 bits."""

    group: int = 128
    bits: int = 4

    def tensors(self, module: str, weight: Tensor) -> dict[str, Tensor]:
        _check(module, weight, self.group, 32 // self.bits)
        made = round_to_nearest(weight, self.bits, self.group, symmetric=True, scales=torch.float16)
        zeros = (made.zeros - 1).T.contiguous()  # stored less one in the first version
        return {
            f"{module}.qweight": _words(made.codes, self.bits).T.contiguous(),
            f"{module}.qzeros": _words(zeros, self.bits),
            f"{module}.scales": made.scales.T.contiguous(),
            f"{module}.g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // self.group,
        }

    def config(self, ignored: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "desc_act": False,
            "sym": True,
            "lm_head": False,
            "checkpoint_format": "gptq",
            "dynamic": {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in ignored if name != "lm_head"},
        }


@dataclass(frozen=True, slots=True)
class AWQWriter:
    """`awq`: with zero points, 4 bits, version gemm."""

    group: int = 128

    def tensors(self, module: str, weight: Tensor) -> dict[str, Tensor]:
        _check(module, weight, self.group, 8)
        made = round_to_nearest(weight, 4, self.group, symmetric=False, scales=torch.float16)
        return {
            f"{module}.qweight": _words_of_outputs(made.codes),
            f"{module}.qzeros": _words_of_outputs(made.zeros),
            f"{module}.scales": made.scales.T.contiguous(),
        }

    def config(self, ignored: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ignored or None,
        }


def _words_of_outputs(values: Tensor) -> Tensor:
    """Integers of 4 bits [out, columns] in AWQ's words of eight outputs: int32 [columns, out / 8]."""
    by_word = values.T.unflatten(1, (-1, 8))[:, :, list(PLACES)].flatten(1)
    return _words(by_word.contiguous(), 4)


@dataclass(frozen=True, slots=True)
class CompressedWriter:
    """`w4a16`, `w8a16`, `w8a8`: symmetric integers of compressed-tensors. `group`: None for a scale of each row."""

    bits: int
    group: int | None
    rounds_inputs: bool = False  # whether other programs round inputs to int8

    def tensors(self, module: str, weight: Tensor) -> dict[str, Tensor]:
        inputs = weight.shape[1]
        _check(module, weight, self.group, 1)
        dtype = weight.dtype if weight.dtype.itemsize == 2 else torch.float32
        made = round_to_nearest(weight, self.bits, self.group or inputs, symmetric=True, scales=dtype)
        found = {f"{module}.weight_scale": made.scales}
        if self.rounds_inputs:
            return {**found, f"{module}.weight": (made.codes ^ 0x80).view(torch.int8)}
        shape = torch.tensor(weight.shape, dtype=torch.int64)
        return {**found, f"{module}.weight_packed": _words(made.codes, self.bits), f"{module}.weight_shape": shape}

    def config(self, ignored: list[str]) -> dict[str, Any]:
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "channel" if self.group is None else "group",
            "group_size": self.group,
            "dynamic": False,
        }
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": inputs if self.rounds_inputs else None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "int-quantized" if self.rounds_inputs else "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ignored,
            "kv_cache_scheme": None,
        }
