"""Write bitsandbytes.safetensors: small matrices as the package bitsandbytes stores them, and as it restores them.

Run by hand, where that package is installed: python -m tests.quantization.make_bitsandbytes
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file
from torch import Tensor

FILE = Path(__file__).with_name("bitsandbytes.safetensors")
# name -> rows, columns, kind, whether scales are quantised too, dtype of the stored bytes, block
FORMS: dict[str, tuple[int, int, str, bool, torch.dtype, int]] = {
    "nf4": (6, 128, "nf4", False, torch.uint8, 64),
    "nf4_double": (24, 192, "nf4", True, torch.uint8, 64),
    "fp4": (6, 64, "fp4", False, torch.uint8, 64),
    "fp4_double_bfloat16": (10, 64, "fp4", True, torch.bfloat16, 64),
    "nf4_wide_blocks": (6, 96, "nf4", True, torch.float32, 128),  # a block ends within a row
}


def restored(codes: Tensor, state: Any, shape: torch.Size) -> Tensor:
    if shape[1] % state.blocksize == 0:
        return bnb.dequantize_4bit(codes, state)
    # The package's kernel for CPUs is wrong where a block ends within a row: its error is larger than that of nf4.
    scales = state.absmax
    if state.nested:
        scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    packed = codes.view(torch.uint8).flatten()
    numbers = state.code[torch.stack((packed >> 4, packed & 15), -1).flatten().long()]
    return (numbers * scales[torch.arange(len(numbers)) // state.blocksize]).view(shape)


def main() -> None:
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, (rows, columns, kind, is_double, storage, block) in FORMS.items():
        weight = torch.randn(rows, columns)
        options: dict[str, Any] = {"quant_type": kind, "quant_storage": storage, "blocksize": block}
        codes, state = bnb.quantize_4bit(weight, compress_statistics=is_double, **options)
        tensors[f"{name}.weight"] = codes
        tensors |= {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        tensors[f"restored.{name}"] = restored(codes, state, weight.shape)
    weight = torch.randn(5, 32)
    codes, largest, _ = bnb.int8_vectorwise_quant(weight.half())
    tensors |= {"int8.weight": codes, "int8.SCB": largest, "int8.weight_format": torch.tensor(0, dtype=torch.uint8)}
    tensors["restored.int8"] = bnb.int8_vectorwise_dequant(codes, largest)
    save_file(tensors, FILE)


if __name__ == "__main__":
    main()
