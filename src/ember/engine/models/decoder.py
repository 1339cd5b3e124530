"""The decoder: one forward pass for every family, whose differences are data in `DecoderConfig`.

    hidden = embed(tokens)
    for each layer:
        hidden = hidden + attention(norm(hidden))
        hidden = hidden + mlp(norm(hidden))
    logits = head(norm(hidden))

Norms may follow the sum instead (`norm_first` False). Call under `torch.inference_mode()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.layers.batch import Batch
from ember.engine.layers.block import Attention
from ember.engine.layers.cache import KVCache
from ember.engine.layers.linear import Pages, can_pack
from ember.engine.layers.rotary import Rotary
from ember.engine.models.build import Weights, build_parts, tensors_of
from ember.engine.operators.torch_attention import AttentionPlan, attend, plan_attention

if TYPE_CHECKING:
    from ember.engine.operators.native_ops import NativeForward
    from ember.engine.operators.triton_ops import FusedForward


@dataclass(slots=True)
class Step:
    """What all layers share in one forward pass."""

    plans: list[AttentionPlan]  # of each cache group
    cosines: Tensor | None  # [T, 1, rotary_dim]
    sines: Tensor | None  # [T, 1, rotary_dim]
    cache: KVCache


class Decoder:
    """A model's weights and its forward pass."""

    def __init__(self, config: DecoderConfig, weights: Weights) -> None:
        """`weights` by the names of `description.weights.weight_specs`, on one device; the dict is emptied."""
        self.config = config
        self.num_parameters = sum(tensor.numel() for tensor in tensors_of(weights))
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors_of(weights))  # that a step reads
        tokens = weights["embed_tokens"]
        assert isinstance(tokens, Tensor)
        self.dtype, self.device = tokens.dtype, tokens.device
        self.parts = build_parts(config, weights)
        self.rotary = Rotary.build(config.rope, self.device) if config.rope else None
        self._fused: FusedForward | None = None
        self._native: NativeForward | None = None

    def use_kernels(self) -> bool:
        """From here on run the forward pass in Triton kernels, where they know this form of decoder; returns whether.

        Raises ImportError where triton is not installed.
        """
        from ember.engine.operators.triton_ops import FusedForward

        if FusedForward.serves(self):
            self._fused = FusedForward(self)
        return self._fused is not None

    def use_native(self, weights: str = "auto", pages: Pages | None = None) -> bool:
        """From here on run in the C library for CPUs, where it is there and serves this form of decoder on this
        machine; returns whether. Weights then stay plain, or become `weights`: int8 or int4; what they replace leaves
        memory where it is mapped (`pages`)."""
        from ember.engine.operators.native_ops import NativeForward

        library = NativeForward.library_for(self, weights)
        if library is not None:
            self._native = NativeForward(self, library)
            if weights != "auto":
                self.weight_bytes = self._native.quantise(weights, pages)
        return library is not None

    @property
    def fused(self) -> FusedForward | None:
        """The forward pass in kernels, where `use_kernels` chose it."""
        return self._fused

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Run one step: K and V of the batch are written to the cache. Returns [T, hidden] after the final norm."""
        if self._fused is not None:
            return self._fused.forward(batch, cache)
        if self._native is not None:
            return self._native.forward(batch, cache)
        config = self.config
        hidden = self.parts.embedding(batch.token_ids, batch.positions)  # [T, hidden]
        plans = plan_attention(
            batch, self.parts.windows(), cache.block_size, config.num_kv_heads, config.head_dim, self.dtype
        )
        step = Step(plans, None, None, cache)
        if self.rotary is not None:
            step.cosines, step.sines = self.rotary.angles(batch.positions, self.dtype)
        for block in self.parts.blocks:
            if config.norm_first:
                hidden = hidden + self._attention(block.attention, block.attention_norm(hidden), step)
                hidden = hidden + block.mlp(block.mlp_norm(hidden))
            else:
                hidden = block.attention_norm(hidden + self._attention(block.attention, hidden, step))
                hidden = block.mlp_norm(hidden + block.mlp(hidden))
        if self.parts.final_norm is not None:
            hidden = self.parts.final_norm(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab_size] in the model's dtype, or float32."""
        if self._native is not None:
            return self._native.logits(hidden)
        if self.parts.project_out is not None:
            hidden = self.parts.project_out(hidden)
        return self.parts.head(hidden)

    @property
    def reads_packed(self) -> bool:
        """Whether matrices are to be packed for oneDNN: this CPU has packed products, and torch's operators compute."""
        return self._native is None and can_pack(self.device.type, self.dtype)

    def weights_moved(self, layer: int | None) -> None:
        """Matrices of a layer, or the head (None), were replaced: operators that hold addresses read them again."""
        if self._native is not None:
            if layer is None:
                self._native.refresh_head(self.parts.head)
            else:
                self._native.refresh(layer)

    def _attention(self, attention: Attention, hidden: Tensor, step: Step) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = attention.qkv(hidden).view(-1, heads + 2 * kv_heads, config.head_dim)  # [T, all heads, head_dim]
        query_key, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if attention.qk_norm is not None:
            query_key = attention.qk_norm(query_key)
        if self.rotary is not None:
            assert step.cosines is not None and step.sines is not None
            query_key = self.rotary.rotate(query_key, step.cosines, step.sines)
        query, key = query_key[:, :heads], query_key[:, heads:]
        keys, values = step.cache.keys[attention.place], step.cache.values[attention.place]
        return attention.output(attend(step.plans[attention.group], query, key, value, keys, values))
