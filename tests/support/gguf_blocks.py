"""Random blocks of GGUF's types, with scales of an ordinary size."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from torch import Tensor

_HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2))}
"""Where a block has numbers in float16; by default at its start alone."""


def random_blocks(name: str, rows: int, columns: int, seed: int = 0, scale: float = 0.01) -> Tensor:
    """Rows of blocks of the type: uint8 [rows, bytes of a row]. All codes and integer scales occur;
    `scale` is the spread of the float ones (MXFP4 has its own)."""
    generator = np.random.default_rng(seed)
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = generator.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    if name == "MXFP4":
        blocks[..., 0] = generator.integers(118, 124, blocks.shape[:2])
    for at in () if name == "MXFP4" else _HALVES.get(name, (0,)):
        halves = (generator.standard_normal(blocks.shape[:2]) * scale).astype(np.float16)
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    return torch.from_numpy(blocks.reshape(rows, -1))


def dequantized(blocks: Tensor, name: str) -> Tensor:
    """The weights as the gguf package restores them: [rows, columns] float32."""
    return torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[name]))
