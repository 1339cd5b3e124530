"""Writers of checkpoints in float8 and in 4-bit floats, for `ember quantize`: weights are rounded to nearest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.engine.errors import ModelError
from ember.engine.layers.table_linear import E2M1, NF4
from ember.engine.quantization.rounding import FLOAT8_MAX, float8_rows, nearest_codes

_BLOCK = 128  # rows and columns of a scale of `fp8-block`
_NF4_BLOCK = 64
_LARGEST = max(E2M1)


@dataclass(frozen=True, slots=True)
class Float8RowWriter:
    """`fp8`: float8 of compressed-tensors with a scale for each row; other programs round inputs to float8 too."""

    def tensors(self, module: str, weight: Tensor) -> dict[str, Tensor]:
        codes, scales = float8_rows(weight)
        return {f"{module}.weight": codes, f"{module}.weight_scale": scales}

    def config(self, ignored: list[str]) -> dict[str, Any]:
        inputs = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
        return _compressed("float-quantized", {"num_bits": 8, "strategy": "channel"}, inputs, ignored)


@dataclass(frozen=True, slots=True)
class Float8BlockWriter:
    """`fp8-block`: float8 with a scale for each block of 128 rows and columns, as DeepSeek and Qwen3 publish it."""

    def tensors(self, module: str, weight: Tensor) -> dict[str, Tensor]:
        rows, columns = weight.shape
        padded = torch.nn.functional.pad(weight.float(), (0, -columns % _BLOCK, 0, -rows % _BLOCK))
        blocks = padded.unflatten(1, (-1, _BLOCK)).unflatten(0, (-1, _BLOCK))  # [rows, 128, columns, 128] of blocks
        scales = blocks.abs().amax((1, 3), keepdim=True).clamp_(min=1e-12) / FLOAT8_MAX
        codes = (blocks / scales).clamp_(-FLOAT8_MAX, FLOAT8_MAX).flatten(2).flatten(0, 1)[:rows, :columns]
        return {
            f"{module}.weight": codes.to(torch.float8_e4m3fn).contiguous(),
            f"{module}.weight_scale_inv": scales[:, 0, :, 0].contiguous(),
        }

    def config(self, ignored: list[str]) -> dict[str, Any]:
        blocks = {"weight_block_size": [_BLOCK, _BLOCK], "modules_to_not_convert": ignored}
        return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", **blocks}


@dataclass(frozen=True, slots=True)
class Fp4Writer:
    """`nvfp4` and `mxfp4` of compressed-tensors, of weights alone."""

    block: int  # 16: nvfp4, 32: mxfp4

    def tensors(self, module: str, weight: Tensor) -> dict[str, Tensor]:
        _check(module, weight, self.block)
        blocks = weight.float().unflatten(1, (-1, self.block))
        largest = blocks.abs().amax(-1, keepdim=True)
        if self.block == 16:
            # The scales of blocks fill the range of e4m3, and the scale of the matrix undoes that.
            overall = FLOAT8_MAX * _LARGEST / largest.max().clamp(min=1e-12)
            scales = (largest / _LARGEST * overall).clamp_(2.0**-9, FLOAT8_MAX).to(torch.float8_e4m3fn)
            codes = _e2m1_codes(blocks / (scales.float() / overall))
            made = {f"{module}.weight_scale": scales[..., 0], f"{module}.weight_global_scale": overall.reshape(1)}
        else:
            # A power of two, as of OCP Microscaling Formats 1.0: the largest number is below 8, and clipped to 6.
            exponents = (largest.clamp(min=2.0**-126).log2().floor() - 2).clamp_(-127, 127)
            codes = _e2m1_codes(blocks / exponents.exp2())
            made = {f"{module}.weight_scale": (exponents[..., 0] + 127).to(torch.uint8)}
        codes = codes.flatten(1)
        return {**made, f"{module}.weight_packed": codes[:, 0::2] | codes[:, 1::2] << 4}

    def config(self, ignored: list[str]) -> dict[str, Any]:
        strategy = "tensor_group" if self.block == 16 else "group"
        weights = {"num_bits": 4, "strategy": strategy, "group_size": self.block}
        return _compressed(
            "nvfp4-pack-quantized" if self.block == 16 else "mxfp4-pack-quantized", weights, None, ignored
        )


@dataclass(frozen=True, slots=True)
class NF4Writer:
    """`nf4` of bitsandbytes, whose scales are not quantised."""

    def tensors(self, module: str, weight: Tensor) -> dict[str, Tensor]:
        _check(module, weight, _NF4_BLOCK)
        table = torch.tensor(NF4)
        blocks = weight.float().reshape(-1, _NF4_BLOCK)
        largest = blocks.abs().amax(1)
        codes = nearest_codes(blocks / largest.clamp(min=1e-12)[:, None], table).flatten()
        dtype = str(weight.dtype).removeprefix("torch.")
        state = {"quant_type": "nf4", "blocksize": _NF4_BLOCK, "dtype": dtype, "shape": list(weight.shape)}
        name = f"{module}.weight"
        return {
            name: (codes[0::2] << 4 | codes[1::2])[:, None],
            f"{name}.absmax": largest,
            f"{name}.quant_map": table,
            f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }

    def config(self, ignored: list[str]) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "bfloat16",
            "llm_int8_skip_modules": ignored,
        }


def _e2m1_codes(values: Tensor) -> Tensor:
    """The codes of the nearest numbers of e2m1."""
    codes = nearest_codes(values.abs(), torch.tensor(E2M1[:8]))
    return torch.where(values < 0, codes | 8, codes)


def _check(module: str, weight: Tensor, block: int) -> None:
    if weight.shape[1] % block:
        raise ModelError(
            f"{module} has {weight.shape[1]} inputs, which are not blocks of {block}: choose another format"
        )


def _compressed(
    form: str, weights: dict[str, Any], inputs: dict[str, Any] | None, ignored: list[str]
) -> dict[str, Any]:
    arguments = {"type": "float", "symmetric": True, "dynamic": False, **weights}
    group = {"targets": ["Linear"], "weights": arguments, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignored,
        "kv_cache_scheme": None,
    }
