"""The forward pass on a CPU by a C library (`kernels/ember_cpu`), on the weights as they lie.

It serves what most models on CPUs are: RMSNorm before, rotary heads, gated SiLU, bfloat16. A step of few rows is one
call. For many, as prompts bring them, torch's matrix products and attention are the faster ones, and the library does
what is between them. CPUs with AMX stay with torch's operators: oneDNN's packed weights are the fastest there.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ember.engine.description.native_forms import SMALL_ALIGNMENT, serves
from ember.engine.layers.batch import Batch
from ember.engine.layers.block import Block
from ember.engine.layers.cache import KVCache
from ember.engine.layers.linear import Linear, Pages
from ember.engine.layers.norm import Norm, RMSNorm
from ember.engine.operators.torch_attention import attend_written, plan_attention
from ember.engine.quantization.cpu_int import BITS, QuantisedLinear, Scratch
from ember_cpu import library as native
from ember_cpu.variants import cpu_flags, cpu_has_bfloat16

if TYPE_CHECKING:
    from ember.engine.models.decoder import Decoder

MAX_ROWS = native.MAX_ROWS
SHORT_CONTEXT = 512  # of prompts, up to which the library's attention is the faster one


class NativeForward:
    """The layers of one decoder as the library sees them; what it points to belongs to the decoder."""

    def __init__(self, model: Decoder, library: ctypes.CDLL) -> None:
        config = model.config
        assert config.rope is not None and isinstance(model.parts.final_norm, RMSNorm)
        self._library = library
        self._decoder = model
        self._layers = (native.Layer * config.num_layers)()
        self._model = native.Model(
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate_size,
            rotary_dim=config.rope.rotary_dim,
            eps=config.norm_eps,
            final_norm=native.address(model.parts.final_norm.weight),
            layers=self._layers,
        )
        for index in range(config.num_layers):
            self.refresh(index)
        self._head = _matrix(model.parts.head)
        self._cache: KVCache | None = None
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self.max_rows = MAX_ROWS  # tokens of a step that one call is used for
        # Whether its products are the faster ones for many rows too: torch has poor ones where the CPU has none.
        self.multiplies = not cpu_has_bfloat16()

    @staticmethod
    def library_for(model: Decoder, weights: str = "auto") -> ctypes.CDLL | None:
        """The library, where it can serve this decoder on this machine with `weights`: auto, int8 or int4."""
        if weights == "auto":
            chosen = serves(model.config) and "amx_bf16" not in cpu_flags()
        else:
            chosen = serves(model.config, SMALL_ALIGNMENT)
        return native.load() if chosen and model.device.type == "cpu" and model.dtype == torch.bfloat16 else None

    def quantise(self, weights: str, pages: Pages | None) -> int:
        """Make the layers' matrices int8 or int4, the embedding and the head, where a token's meaning is in one row,
        int8, and let go of what was there before (`pages`, where it is mapped).

        Returns the bytes that a step reads.
        """
        model, made, scratch = self._decoder, [], Scratch()

        def small(linear: Linear, bits: int = BITS[weights]) -> QuantisedLinear:
            made.append(QuantisedLinear(self._library, linear, bits, scratch, pages))
            return made[-1]

        for index, block in enumerate(model.parts.blocks):
            attention, mlp = block.attention, block.mlp
            attention.qkv, attention.output = small(attention.qkv), small(attention.output)
            mlp.up, mlp.down = small(mlp.up), small(mlp.down)
            self.refresh(index)
        is_tied, tokens = model.config.tie_word_embeddings, model.parts.embedding.tokens
        assert isinstance(tokens, Tensor)
        model.parts.head = head = small(model.parts.head, 8)
        self.refresh_head(head)
        own = head if is_tied else QuantisedLinear(self._library, Linear(tokens), 8, scratch, pages)
        model.parts.embedding.tokens = own
        return sum(linear.nbytes for linear in made)

    def refresh(self, index: int) -> None:
        """A layer's matrices may lie elsewhere now."""
        block: Block = self._decoder.parts.blocks[index]
        attention, mlp, made = block.attention, block.mlp, self._layers[index]
        assert isinstance(block.attention_norm, RMSNorm) and isinstance(block.mlp_norm, RMSNorm)
        made.attention_norm = native.address(block.attention_norm.weight)
        made.mlp_norm = native.address(block.mlp_norm.weight)
        made.query_key_norm = native.address(attention.qk_norm.weight) if attention.qk_norm is not None else None
        matrices = (("qkv", attention.qkv), ("output", attention.output), ("up", mlp.up), ("down", mlp.down))
        for name, linear in matrices:
            setattr(made, name, _matrix(linear))
        made.window, made.group = attention.window or 0, attention.group

    def refresh_head(self, head: Linear) -> None:
        self._head = _matrix(head)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """As `Decoder.forward`."""
        decoder = self._decoder
        if self._cache is not cache:
            self._cache = cache
            self._model.block_size = cache.block_size
            for block, layer in zip(decoder.parts.blocks, self._layers, strict=True):
                place = block.attention.place
                layer.keys, layer.values = cache.keys[place].data_ptr(), cache.values[place].data_ptr()
        hidden = decoder.parts.embedding(batch.token_ids, batch.positions).contiguous()
        assert decoder.rotary is not None
        cosines, sines = (angle.float().contiguous() for angle in decoder.rotary.angles(batch.positions, hidden.dtype))
        slots, block_tables = batch.slot_mapping.contiguous(), batch.block_tables.contiguous()
        step = native.Step(
            rows=len(hidden),
            num_sequences=block_tables.shape[1],
            max_blocks=block_tables.shape[2],
            positions=batch.positions.data_ptr(),
            slots=slots.data_ptr(),
            block_tables=block_tables.data_ptr(),
            cosines=cosines.data_ptr(),
            sines=sines.data_ptr(),
            hidden=hidden.data_ptr(),
        )
        counts = np.diff(np.array(batch.query_starts))
        sequences = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        step.sequences = sequences.data_ptr()
        if len(hidden) > self.max_rows:
            return self._run_parts(batch, cache, step, hidden, sequences)
        needed = self._library.ember_workspace(self._model, len(hidden))
        if len(self._workspace) < needed:
            self._workspace = torch.empty(needed, dtype=torch.uint8)
        self._library.ember_forward(self._model, step, self._workspace.data_ptr(), torch.get_num_threads())
        return hidden

    def _run_parts(self, batch: Batch, cache: KVCache, step: native.Step, hidden: Tensor, sequences: Tensor) -> Tensor:
        """The layers on [rows, hidden] with torch's matrix products, and its attention for long prompts, which many
        rows are better with. `sequences`: that of each row."""
        config, library, threads = self._decoder.config, self._library, torch.get_num_threads()
        rows, heads, kv_heads, size = len(hidden), config.num_heads, config.num_kv_heads, config.head_dim
        starts = batch.query_starts
        is_short = [
            context <= SHORT_CONTEXT or starts[sequence + 1] - starts[sequence] == 1
            for sequence, context in enumerate(batch.context_lens)
        ]
        short = torch.tensor(is_short)[sequences].nonzero().squeeze(1)  # rows
        ours = {sequence for sequence, answer in enumerate(is_short) if answer}
        windows = self._decoder.parts.windows()
        plans = plan_attention(batch, windows, cache.block_size, kv_heads, size, hidden.dtype, without=ours)
        normed, inner = torch.empty_like(hidden), hidden.new_empty(rows, config.intermediate_size)
        queries, keys = hidden.new_empty(rows, heads, size), hidden.new_empty(rows, kv_heads, size)

        def add_norm(delta: Tensor | None, norm: Norm | None) -> None:
            assert norm is not None
            places = (hidden.data_ptr(), native.address(delta), native.address(norm.weight), normed.data_ptr())
            library.ember_add_norm(*places, rows, config.hidden_size, config.norm_eps, threads)

        delta: Tensor | None = None
        for block, described in zip(self._decoder.parts.blocks, self._layers, strict=True):
            attention = block.attention
            add_norm(delta, block.attention_norm)
            qkv = self._product(attention.qkv, normed)
            outputs = (qkv.data_ptr(), queries.data_ptr(), keys.data_ptr())
            library.ember_place(self._model, described, step, *outputs, threads)
            values = qkv.view(rows, heads + 2 * kv_heads, size)[:, heads + kv_heads :]
            cached = cache.keys[attention.place], cache.values[attention.place]
            mixed = attend_written(plans[attention.group], queries, keys, values, *cached)
            places = (short.data_ptr(), len(short), queries.data_ptr(), mixed.data_ptr())
            library.ember_attend(self._model, described, step, *places, threads)
            add_norm(self._product(attention.output, mixed), block.mlp_norm)
            up = self._product(block.mlp.up, normed)
            library.ember_gate(up.data_ptr(), inner.data_ptr(), rows, config.intermediate_size, threads)
            delta = self._product(block.mlp.down, inner)
        add_norm(delta, self._decoder.parts.final_norm)
        return normed

    def _product(self, linear: Linear, x: Tensor) -> Tensor:
        """[rows, in] -> [rows, out] bfloat16."""
        if not self.multiplies:
            return linear(x)
        matrix, threads = _matrix(linear), torch.get_num_threads()
        out = x.new_empty(len(x), sum(matrix.rows))
        for given, made in zip(x.split(MAX_ROWS), out.split(MAX_ROWS), strict=True):
            made.copy_(native.linear(self._library, matrix, given, threads))
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, vocab_size] float32."""
        threads = torch.get_num_threads()
        parts = [native.linear(self._library, self._head, x.contiguous(), threads) for x in hidden.split(MAX_ROWS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _matrix(linear: Linear) -> native.Matrix:
    return linear.matrix if isinstance(linear, QuantisedLinear) else native.matrix(linear.rows, linear.bias)
