"""The operator set of the C library for CPUs (`kernels/ember_cpu`), in bfloat16, on weights in the checkpoint's layout.

A step of few rows is one call of the library (`whole_step`) if it computes all operations of the decoder. For many
rows, which are mostly prompts, torch's matrix products and its attention over long contexts are faster on CPUs with
bfloat16 instructions, and the library computes the other operations.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.description.native_forms import is_whole
from ember.engine.description.operator_sets import Lacking
from ember.engine.layers.batch import Batch
from ember.engine.layers.block import Attention, DecoderParts
from ember.engine.layers.cache import KVCache
from ember.engine.layers.embedding import Embedding
from ember.engine.layers.experts import Experts
from ember.engine.layers.joined import JoinedLinear
from ember.engine.layers.latent import LatentAttention, LatentHeads
from ember.engine.layers.linear import Linear
from ember.engine.layers.mlp import MLP
from ember.engine.layers.norm import Norm, QkNorm, RMSNorm
from ember.engine.layers.scratch import scratch
from ember.engine.operators.base import Heads, Step
from ember.engine.operators.experts import compute_experts
from ember.engine.operators.native_matrix import is_quantised, matrix_of, takes_bfloat16
from ember.engine.operators.torch_attention import attend
from ember.engine.operators.torch_ops import TorchOperators
from ember_cpu import library as native
from ember_cpu.variants import cpu_flags, cpu_has_bfloat16

MAX_ROWS = native.MAX_ROWS
SHORT_CONTEXT = 512  # tokens of a prompt up to which the library's attention is faster


@dataclass(slots=True)
class NativeStep(Step):
    """A step in the library's structures. The tensors are those that `described` points to."""

    described: native.Step = field(default_factory=native.Step)
    embedding: Tensor | None = None
    is_whole: bool = False  # whether one call computes the step
    short: Tensor | None = None  # int64, the rows whose attention the library computes
    tensors: tuple[Tensor, ...] = ()


class NativeOperators:
    """`operators.base.Operators` over the C library. torch computes the operations in `lacking`."""

    is_recordable = False

    def __init__(
        self,
        torch_ops: TorchOperators,
        parts: DecoderParts,
        library: ctypes.CDLL,
        lacking: Lacking,
        activations: str = "auto",
    ) -> None:
        """`activations`: those that quantised weights are multiplied with: auto (8 bits) or float."""
        config = torch_ops.config
        self._floats = activations == "float"
        self._experts_of: dict[int, tuple[native.Experts, Tensor | None]] = {}  # by layer, with what they point to
        self._norms: dict[int, tuple[Norm | QkNorm, Tensor]] = {}  # each norm by its id, and its weights in float32
        self.torch_ops = torch_ops
        self._library = library
        self._parts = parts
        self._attends = "attend" not in lacking and config.latent is None
        self._layers = (native.Layer * config.num_layers)()
        self._model = native.Model(
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate=_largest_mlp(config),
            experts=0 if config.experts is None else config.experts.count,
            experts_per_token=0 if config.experts is None else config.experts.per_token,
            expert_size=0 if config.experts is None else config.experts.intermediate_size,
            rotary_dims=tuple(rope.rotary_dim for rope in config.ropes()),
            interleaved=config.rope is not None and config.rope.interleaved,
            rotates_before_norm=config.rope_before_norm,
            window_is_chunk=config.window_is_chunk,
            activation=native.ACTIVATIONS.index(config.activation) if config.activation in native.ACTIVATIONS else 0,
            eps=config.norm_eps,
            residual_scale=config.residual_scale,
            soft_cap=config.attention_soft_cap or 0.0,
            final_norm=self._weight_of(parts.final_norm),
            layers=self._layers,
        )
        # The most rows of a step that one call computes: none if torch computes some operation.
        self.max_whole_rows = MAX_ROWS if is_whole(config) and not lacking else 0
        for layer in range(config.num_layers):
            self.weights_moved(layer)
        self._described = {
            (block.mixer.group, block.mixer.place): described
            for block, described in zip(parts.blocks, self._layers, strict=True)
            if isinstance(block.mixer, Attention)
        }
        self.weights_moved(None)
        self._cache: KVCache | None = None
        self._workspace = torch.empty(0, dtype=torch.uint8)
        # The most rows for the library's products of matrices in bfloat16, or decoded to float32: any number without
        # bfloat16 instructions, as torch is slow. Others it multiplies faster than torch, except on CPUs with AMX.
        self.max_product_rows = MAX_ROWS if cpu_has_bfloat16() else math.inf
        self.max_quantised_rows = MAX_ROWS if "amx_bf16" in cpu_flags() else math.inf
        self.add_norm = torch_ops.add_norm if "add_norm" in lacking else self._add_norm
        self.convolve, self.gated_norm = torch_ops.convolve, torch_ops.gated_norm
        self.delta_rule, self.scan = torch_ops.delta_rule, torch_ops.scan
        self.selective_scan = torch_ops.selective_scan
        self.linear = torch_ops.linear if "linear" in lacking else self._linear
        self.place_heads = torch_ops.place_heads if "place_heads" in lacking else self._place_heads
        self.attend = torch_ops.attend if "attend" in lacking else self._attend
        self.place_latents = torch_ops.place_latents
        self.gate = torch_ops.gate if "gate" in lacking else self._gate
        self.experts = torch_ops.experts if "experts" in lacking else self._experts
        own_head = "logits" not in lacking and self._head is not None
        self.logits = self._logits if own_head else torch_ops.logits

    @property
    def reads_packed(self) -> bool:
        return False

    @property
    def max_mlp_rows(self) -> float:
        """Finite where the library multiplies all matrices, since it takes MAX_ROWS rows at a time anyway."""
        is_library = self.max_whole_rows and min(self.max_product_rows, self.max_quantised_rows) == math.inf
        return 4 * MAX_ROWS if is_library else math.inf

    def weights_moved(self, layer: int | None) -> None:
        if layer is None:
            self._head = matrix_of(self._parts.head, self._floats)
            return
        block = self._parts.blocks[layer]
        made = self._layers[layer]
        for name in ("attention_norm", "mlp_norm", "attention_output_norm", "mlp_output_norm"):
            setattr(made, name, self._weight_of(getattr(block, name)))
        weights: dict[str, Linear] = {}
        if isinstance(block.mixer, Attention):
            attention = block.mixer
            made.query_key_norm = self._weight_of(attention.qk_norm)
            made.scale = attention.sizes.head_dim**-0.5 if attention.scale is None else attention.scale
            made.window, made.group = attention.window or 0, attention.group
            made.rope = -1 if attention.rope is None else attention.rope
            weights = {"qkv": attention.qkv, "output": attention.output}
        if isinstance(block.mlp, MLP):
            weights |= {"up": block.mlp.up, "down": block.mlp.down}
        elif self.max_whole_rows and block.mlp is not None:
            self._place_experts(block.mlp, layer)
        for name, linear in weights.items():
            matrix = matrix_of(linear, self._floats)
            if matrix is None:
                self.max_whole_rows = 0
            else:
                setattr(made, name, matrix)

    def _place_experts(self, experts: Experts, layer: int) -> None:
        """Describe a layer's experts for the library, if it multiplies with the layouts of all matrices."""
        config = experts.config
        found = {
            "router": [experts.router],
            "up": [mlp.up for mlp in experts.each],
            "down": [mlp.down for mlp in experts.each],
        }
        if experts.shared is not None:
            found |= {"shared_up": [experts.shared.up], "shared_down": [experts.shared.down]}
        matrices: dict[str, list[native.Matrix]] = {}
        for name, linears in found.items():
            made_of = (matrix_of(linear, self._floats) for linear in linears)
            matrices[name] = [matrix for matrix in made_of if matrix is not None]
            if len(matrices[name]) < len(linears) or is_quantised(experts.router):
                self.max_whole_rows = 0
                return
        router = None if experts.shared_router is None else experts.shared_router.weight.to(torch.bfloat16).contiguous()
        made = native.Experts(
            count=config.count,
            per_token=config.per_token,
            router=matrices["router"][0],
            correction=native.address(experts.correction),
            up=(native.Matrix * config.count)(*matrices["up"]),
            down=(native.Matrix * config.count)(*matrices["down"]),
            sigmoid=config.scores == "sigmoid",
            normalised=config.normalised,
            groups=config.groups,
            chosen_groups=config.groups_per_token,
            norm_min=config.norm_min,
            scale=config.scale,
            shared=config.shared_size,
            shared_router=native.address(router),
        )
        if experts.shared is not None:
            made.shared_up, made.shared_down = matrices["shared_up"][0], matrices["shared_down"][0]
        self._experts_of[layer] = made, router
        self._layers[layer].experts = ctypes.pointer(made)

    def _weight_of(self, norm: Norm | QkNorm | None) -> int | None:
        """The address of a norm's weights in float32; None: there is no norm."""
        if norm is None or not isinstance(norm, RMSNorm):  # the library computes no others
            return None
        known = self._norms.get(id(norm))
        if known is None:
            weight = torch.ones(norm.size) if norm.weight is None else norm.weight.float().contiguous()
            known = self._norms[id(norm)] = norm, weight
        return known[1].data_ptr()

    def begin(self, batch: Batch, cache: KVCache) -> NativeStep:
        if self.torch_ops.config.bidirectional:  # torch computes its attention
            unused = batch.slot_mapping.unbind()
            texts = NativeStep(batch.token_ids, batch.positions, unused, cache, token_types=batch.token_types)
            texts.texts = self.torch_ops.plan_texts(batch)
            return texts
        if self._cache is not cache:
            self._cache = cache
            self._model.block_size = cache.block_size
            for block, described in zip(self._parts.blocks, self._layers, strict=True):
                if isinstance(block.mixer, Attention):
                    keys, values = cache.by_slot[block.mixer.place]
                    described.keys, described.values = keys.data_ptr(), values.data_ptr()
        step = NativeStep(batch.token_ids, batch.positions, batch.slot_mapping.unbind(), cache)
        step.states = self.torch_ops.plan_states(batch)
        rows, starts = len(batch.token_ids), batch.query_starts
        counts = np.diff(np.array(starts))
        sequences = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))  # of each row
        slots, block_tables = batch.slot_mapping.contiguous(), batch.block_tables.contiguous()
        step.tensors = (sequences, slots, block_tables)
        step.described = native.Step(
            rows=rows,
            num_sequences=block_tables.shape[1],
            max_blocks=block_tables.shape[2],
            positions=batch.positions.data_ptr(),
            slots=slots.data_ptr(),
            sequences=sequences.data_ptr(),
            block_tables=block_tables.data_ptr(),
        )
        for rope in range(len(self.torch_ops.rotaries)):
            angles = self.torch_ops.angles(rope, step)
            cosines, sines, scales = (angle if angle is None else angle.float().contiguous() for angle in angles)
            step.described.cosines[rope], step.described.sines[rope] = native.address(cosines), native.address(sines)
            step.described.query_scales[rope] = native.address(scales)
            step.tensors += tuple(tensor for tensor in (cosines, sines, scales) if tensor is not None)
        step.is_whole = rows <= self.max_whole_rows
        if not step.is_whole:
            is_short = [
                self._attends and (context <= SHORT_CONTEXT or starts[sequence + 1] - starts[sequence] == 1)
                for sequence, context in enumerate(batch.context_lens)
            ]
            step.short = torch.tensor(is_short)[sequences].nonzero().squeeze(1)
            step.plans = self.torch_ops.plan(batch, cache, {sequence for sequence, ours in enumerate(is_short) if ours})
        return step

    def whole_step(self, step: NativeStep) -> Tensor | None:
        if not step.is_whole:
            return None
        hidden = self.embed(self._parts.embedding, step)
        step.described.hidden = hidden.data_ptr()
        needed = self._library.ember_workspace(self._model, len(hidden))
        if len(self._workspace) < needed:
            self._workspace = torch.empty(needed, dtype=torch.uint8)
        self._library.ember_forward(self._model, step.described, self._workspace.data_ptr(), torch.get_num_threads())
        return hidden

    def embed(self, embedding: Embedding, step: NativeStep) -> Tensor:
        tokens, ids = embedding.tokens, step.token_ids
        matrix = matrix_of(tokens, self._floats) if isinstance(tokens, Linear) else None
        if matrix is None:
            return self.torch_ops.embed(embedding, step).contiguous()
        found = torch.empty(len(ids), matrix.columns, dtype=torch.bfloat16)
        native.restore_into(self._library, matrix, ids.contiguous(), found, torch.get_num_threads())
        return embedding.finish(found, step.positions, step.token_types).contiguous()

    def _add_norm(self, norm: Norm, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, size = residual.shape
        normed = torch.empty_like(residual)
        places = (residual.data_ptr(), native.address(delta), self._weight_of(norm), normed.data_ptr())
        self._library.ember_add_norm(*places, rows, size, norm.eps, torch.get_num_threads())
        return normed, residual

    def _linear(self, weight: Linear, x: Tensor, step: NativeStep) -> Tensor:
        matrix, threads = matrix_of(weight, self._floats), torch.get_num_threads()
        if matrix is None and isinstance(weight, JoinedLinear):
            return torch.cat([self._linear(part, x, step) for part in weight.parts], dim=-1)
        if matrix is None:
            return weight(x)
        if is_quantised(weight):
            if len(x) > (self.max_product_rows if takes_bfloat16(weight) else self.max_quantised_rows):
                if matrix.order:
                    return weight(x)
                restored = scratch(matrix.rows, matrix.columns, torch.bfloat16, x.device)
                native.restore_into(self._library, matrix, None, restored, threads)
                return F.linear(x, restored, weight.bias)
        elif len(x) > self.max_product_rows:
            return weight(x)
        out = x.new_empty(len(x), matrix.rows)
        for given, made in zip(x.split(MAX_ROWS), out.split(MAX_ROWS), strict=True):
            made.copy_(native.linear(self._library, matrix, given, threads))
        return out

    def attend_latents(self, attention: LatentAttention, heads: LatentHeads, step: NativeStep) -> Tensor:
        return self.torch_ops.attend_expanding(attention, heads, step, lambda weight, x: self.linear(weight, x, step))

    def _place_heads(self, attention: Attention, qkv: Tensor, step: NativeStep) -> Heads:
        rows, (heads, kv_heads, size) = len(qkv), attention.sizes
        queries, keys = qkv.new_empty(rows, heads, size), qkv.new_empty(rows, kv_heads, size)
        self._library.ember_place(
            self._model,
            self._described[attention.group, attention.place],
            step.described,
            qkv.data_ptr(),
            queries.data_ptr(),
            keys.data_ptr(),
            torch.get_num_threads(),
        )
        return Heads(queries, keys, qkv.view(rows, heads + 2 * kv_heads, size)[:, heads + kv_heads :])

    def _attend(self, attention: Attention, heads: Heads, step: NativeStep) -> Tensor:
        """Attention: the library's for decodes and short prompts, torch's for the others."""
        assert step.plans is not None and step.short is not None and heads.key is not None and heads.value is not None
        query = heads.query.contiguous()
        keys, values = step.cache.by_slot[attention.place]
        tensors = (query, heads.key, heads.value, keys, values)
        mixed = attend(step.plans[attention.group], *tensors, attention.scale, attention.soft_cap)
        self._library.ember_attend(
            self._model,
            self._described[attention.group, attention.place],
            step.described,
            step.short.data_ptr(),
            len(step.short),
            query.data_ptr(),
            mixed.data_ptr(),
            torch.get_num_threads(),
        )
        return mixed

    def _gate(self, mlp: MLP, up: Tensor) -> Tensor:
        rows, size = len(up), up.shape[1] // 2
        inner = up.new_empty(rows, size)
        kind = native.ACTIVATIONS.index(mlp.activation)
        self._library.ember_gate(up.data_ptr(), inner.data_ptr(), rows, size, kind, torch.get_num_threads())
        return inner

    def _experts(self, experts: Experts, hidden: Tensor, step: NativeStep, routed: Tensor | None = None) -> Tensor:
        return compute_experts(self, experts, hidden, step, routed)

    def _logits(self, project: Linear | None, head: Linear, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab_size] float32."""
        if project is not None:
            hidden = project(hidden)
        assert self._head is not None
        threads = torch.get_num_threads()
        parts = [native.linear(self._library, self._head, x.contiguous(), threads) for x in hidden.split(MAX_ROWS)]
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.torch_ops.finish_logits(logits)


def _largest_mlp(config: DecoderConfig) -> int:
    """The largest intermediate size of MLPs, beside the experts'."""
    is_dense = not all(map(config.has_experts, range(config.num_layers)))
    shared = 0 if config.experts is None else config.experts.shared_size
    return max(config.intermediate_size if is_dense else 0, shared)
