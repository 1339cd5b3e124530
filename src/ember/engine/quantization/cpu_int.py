"""Weights quantised to 8 or 4 bits at load, for the C library on CPUs (CPU_WEIGHTS): blocks as in GGUF files.

int8 is Q8_0 and int4 is Q4_0: 32 integers with a scale in float16. The library multiplies blocks as they lie.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ember.engine.description.native_forms import CPU_WEIGHTS
from ember.engine.errors import ModelError
from ember.engine.layers.block import DecoderParts
from ember.engine.layers.block_linear import BlockLinear
from ember.engine.layers.latent import LatentAttention
from ember.engine.layers.linear import Linear, Pages, fresh_memory
from ember.engine.layers.mixers import StateMixer
from ember.gguf.types import BY_NAME, NUMBERS
from ember_cpu import library as native

_PIECE = 32 << 20  # bytes quantised at a time


def to_blocks(library: ctypes.CDLL, linear: Linear, type: str, pages: Pages | None = None) -> BlockLinear:
    """A plain bfloat16 layer as blocks of Q8_0 or Q4_0. If it is mapped (`pages`), its pages are dropped chunk by
    chunk."""
    out, width, kind = linear.out_features, linear.in_features, BY_NAME[type]
    blocks = fresh_memory(out * kind.row_bytes(width), torch.uint8).view(out, -1)
    at, threads, number = 0, torch.get_num_threads(), NUMBERS[type]
    for piece in (piece for rows in linear.rows for piece in rows.split(max(1, _PIECE // (2 * width)))):
        library.ember_quantise(piece.data_ptr(), len(piece), width, number, blocks[at:].data_ptr(), threads)
        if pages is not None:
            pages.let_go(piece.data_ptr(), piece.nbytes)
        at += len(piece)
    return BlockLinear(blocks, type=type, dtype=torch.bfloat16, bias=linear.bias)


def quantise(parts: DecoderParts, weights: str, pages: Pages | None) -> int:
    """Quantise the matrices of the blocks to int8 or int4 (`weights`), and the embedding and the head, in which one row
    has all of a token, to int8. Returns the bytes that a step reads.

    Mapped weights (`pages`) are dropped from memory chunk by chunk. Raises ModelError if the C library is missing.
    """
    library = native.load()
    if library is None:
        raise ModelError("CPU_WEIGHTS: the C library for CPUs cannot be used; the log says why")
    made = []

    def small(linear: Linear, weights: str = weights) -> BlockLinear:
        made.append(to_blocks(library, linear, CPU_WEIGHTS[weights], pages))
        return made[-1]

    for block in parts.blocks:
        mixer = block.mixer
        if mixer is not None:
            mixer.output = small(mixer.output)
        if isinstance(mixer, LatentAttention):
            mixer.down = small(mixer.down)
            mixer.query_up = None if mixer.query_up is None else small(mixer.query_up)
        elif isinstance(mixer, StateMixer):
            mixer.inputs = small(mixer.inputs)
        elif mixer is not None:
            mixer.qkv = small(mixer.qkv)
            mixer.gate = None if mixer.gate is None else small(mixer.gate)
        if block.ssd is not None:
            block.ssd.inputs, block.ssd.output = small(block.ssd.inputs), small(block.ssd.output)
        for mlp in block.mlps():
            mlp.up, mlp.down = small(mlp.up), small(mlp.down)
    if parts.layer_inputs is not None:
        parts.layer_inputs.projection = small(parts.layer_inputs.projection)
    tokens = parts.embedding.tokens
    assert isinstance(tokens, Tensor)
    is_tied = parts.head.rows[0] is tokens
    parts.head = head = small(parts.head, "int8")
    parts.embedding.tokens = head if is_tied else to_blocks(library, Linear(tokens), CPU_WEIGHTS["int8"], pages)
    return sum(linear.nbytes for linear in made)
