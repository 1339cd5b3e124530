"""The decoder: one forward pass for every family, whose differences are data in `DecoderConfig`.

    hidden = embed(tokens)
    for each layer:
        hidden = hidden + attention(norm(hidden))
        hidden = hidden + mlp(norm(hidden))
    logits = head(norm(hidden))

Norms may follow the sum instead (`norm_first` False). Call under `torch.inference_mode()`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.layers.batch import Batch, KVCache
from ember.engine.layers.embedding import Embedding
from ember.engine.layers.linear import Linear, Pages, can_pack, in_own_memory
from ember.engine.layers.mlp import ACTIVATIONS, MLP
from ember.engine.layers.norm import LayerNorm, Norm, RMSNorm
from ember.engine.layers.rotary import Rotary
from ember.engine.operators.torch_attention import AttentionPlan, attend, plan_attention

if TYPE_CHECKING:
    from ember.engine.operators.native_ops import NativeForward
    from ember.engine.operators.triton_ops import FusedForward


_DONE = object()

Weights = dict[str, tuple[Tensor, ...]]
"""Parameters by name, in one piece; fused matrices may come as their parts, in row order."""


@dataclass(slots=True)
class Layer:
    """The weights of one decoder layer."""

    attention_norm: Norm
    qkv: Linear  # [(heads + 2 * kv_heads) * head_dim, hidden]
    qk_norm: RMSNorm | None  # weight [heads + kv_heads, head_dim]: the query norm's row for each query head, then key's
    output: Linear  # [hidden, heads * head_dim]
    mlp_norm: Norm
    mlp: MLP
    window: int | None


@dataclass(slots=True)
class Step:
    """What all layers share in one forward pass."""

    plans: dict[int | None, AttentionPlan]
    cosines: Tensor | None  # [T, 1, rotary_dim]
    sines: Tensor | None  # [T, 1, rotary_dim]
    cache: KVCache


class Decoder:
    """A model's weights and its forward pass."""

    def __init__(self, config: DecoderConfig, weights: Weights, pages: Pages | None = None) -> None:
        """`weights` by the names of `models.weights.parameters`, of one dtype on one device; the dict is emptied.

        `pages`: of their files, which they are part of and should leave for memory of their own in time (`pack_next`).
        """
        self.config = config
        self.num_parameters = sum(part.numel() for weight in weights.values() for part in weight)
        self.weight_bytes = sum(part.nbytes for weight in weights.values() for part in weight)  # that a step reads
        self.mapped_bytes = self.weight_bytes if pages is not None else 0
        self._pages = pages
        (tokens,) = weights.pop("embed_tokens.weight")
        self.dtype, self.device = tokens.dtype, tokens.device
        self.embedding = Embedding(
            tokens,
            _pop(weights, "embed_positions.weight"),
            config.position_offset or 0,
            _linear(weights, "project_in") if config.embed_dim else None,
        )
        self.rotary = Rotary.build(config.rope, self.device) if config.rope else None
        windows = config.windows()
        self.layers = [_layer(config, weights, layer, windows[layer]) for layer in range(config.num_layers)]
        self.final_norm = _norm(config, weights, "final_norm") if config.final_norm else None
        self.project_out = _linear(weights, "project_out") if config.embed_dim else None
        self._settling: Iterator[None] | None = None  # see `pack_next`
        self._fused: FusedForward | None = None
        self._native: NativeForward | None = None
        self.head = Linear(tokens) if config.tie_word_embeddings else _linear(weights, "lm_head")

    def use_kernels(self) -> bool:
        """From here on run the forward pass in Triton kernels, where they know this form of decoder; returns whether.

        Raises ImportError where triton is not installed.
        """
        from ember.engine.operators.triton_ops import FusedForward

        if FusedForward.serves(self):
            self._fused = FusedForward(self)
        return self._fused is not None

    def use_native(self, weights: str = "auto") -> bool:
        """From here on run in the C library for CPUs, where it is there and serves this form of decoder on this
        machine; returns whether. Weights then stay plain, or become `weights`: int8 or int4."""
        from ember.engine.operators.native_ops import NativeForward

        library = NativeForward.library_for(self, weights)
        if library is not None:
            self._native = NativeForward(self, library)
            if weights != "auto":
                self.weight_bytes = self._native.quantise(weights, self._pages)
                self._pages, self.mapped_bytes = None, 0
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
        hidden = self.embedding(batch.token_ids, batch.positions)  # [T, hidden]
        plans = plan_attention(
            batch, set(config.windows()), cache.block_size, config.num_kv_heads, config.head_dim, self.dtype
        )
        step = Step(plans, None, None, cache)
        if self.rotary is not None:
            step.cosines, step.sines = self.rotary.angles(batch.positions, self.dtype)
        for index, layer in enumerate(self.layers):
            if config.norm_first:
                hidden = hidden + self._attention(layer, index, layer.attention_norm(hidden), step)
                hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
            else:
                hidden = layer.attention_norm(hidden + self._attention(layer, index, hidden, step))
                hidden = layer.mlp_norm(hidden + layer.mlp(hidden))
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab_size] in the model's dtype, or float32."""
        if self._native is not None:
            return self._native.logits(hidden)
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        return self.head(hidden)

    def pack_next(self) -> bool:
        """Bring one more layer's matrices, at last the head's, into the layout that this CPU reads fastest, or a piece
        of them out of their files where they are mapped. Returns whether there is more to do; False at once where there
        is no use.

        Packed weights replace plain ones. The exception is a head tied to the token embedding: looking tokens up needs
        the plain rows, so packing it costs a second copy. Where the C library computes, plain weights stay plain.
        """
        if self._settling is None:
            packs = self._native is None and can_pack(self.device.type, self.dtype)
            self._settling = self._settle(packs) if packs or self.mapped_bytes else iter(())
        return next(self._settling, _DONE) is not _DONE

    def _settle(self, packs: bool) -> Iterator[None]:
        pages = self._pages
        for index, layer in enumerate(self.layers):
            for linear in (layer.qkv, layer.output, layer.mlp.up, layer.mlp.down):
                yield from linear.settle(packs, pages)
                if self._native is not None:
                    self._native.refresh(index)
            yield
        embedding = self.embedding
        if pages is not None:
            assert isinstance(embedding.tokens, Tensor)
            own = yield from in_own_memory(pages, embedding.tokens)
            embedding.tokens = own
            if embedding.positions is not None:
                embedding.positions = embedding.positions.clone()
            if self.config.tie_word_embeddings:
                self.head = Linear(own)
        yield from self.head.settle(packs, None if self.config.tie_word_embeddings else pages)
        if self._native is not None:
            self._native.refresh_head(self.head)
        for extra in (embedding.project, self.project_out):
            if extra is not None:
                yield from extra.settle(packs, pages)
        self._pages, self.mapped_bytes = None, 0

    def pack(self) -> float:
        """`pack_next` to the end; returns the seconds it took."""
        start = time.perf_counter()
        while self.pack_next():
            pass
        return time.perf_counter() - start

    def _attention(self, layer: Layer, index: int, hidden: Tensor, step: Step) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = layer.qkv(hidden).view(-1, heads + 2 * kv_heads, config.head_dim)  # [T, all heads, head_dim]
        query_key, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if layer.qk_norm is not None:
            query_key = layer.qk_norm(query_key)
        if self.rotary is not None:
            assert step.cosines is not None and step.sines is not None
            query_key = self.rotary.rotate(query_key, step.cosines, step.sines)
        query, key = query_key[:, :heads], query_key[:, heads:]
        mixed = attend(step.plans[layer.window], query, key, value, step.cache.keys[index], step.cache.values[index])
        return layer.output(mixed)


def _layer(config: DecoderConfig, weights: Weights, number: int, window: int | None) -> Layer:
    prefix = f"layers.{number}."
    qk_norm = None
    if config.qk_norm:
        (query,) = weights.pop(f"{prefix}query_norm.weight")
        (key,) = weights.pop(f"{prefix}key_norm.weight")
        qk_norm = RMSNorm(
            torch.cat((query.expand(config.num_heads, -1), key.expand(config.num_kv_heads, -1))),
            config.head_dim,
            config.norm_eps,
        )
    return Layer(
        attention_norm=_norm(config, weights, f"{prefix}attention_norm"),
        qkv=_linear(weights, f"{prefix}qkv"),
        qk_norm=qk_norm,
        output=_linear(weights, f"{prefix}output"),
        mlp_norm=_norm(config, weights, f"{prefix}mlp_norm"),
        mlp=MLP(
            up=_linear(weights, f"{prefix}up"),
            down=_linear(weights, f"{prefix}down"),
            activation=ACTIVATIONS[config.activation],
            gated=config.gated_mlp,
        ),
        window=window,
    )


def _linear(weights: Weights, name: str) -> Linear:
    return Linear(*weights.pop(f"{name}.weight"), bias=_pop(weights, f"{name}.bias"))


def _norm(config: DecoderConfig, weights: Weights, name: str) -> Norm:
    weight = _pop(weights, f"{name}.weight")
    if config.norm == "rms":
        return RMSNorm(weight, config.hidden_size, config.norm_eps)
    return LayerNorm(weight, _pop(weights, f"{name}.bias"), config.hidden_size, config.norm_eps)


def _pop(weights: Weights, name: str) -> Tensor | None:
    """A vector or table, which always comes in one piece; None where the model has none."""
    found = weights.pop(name, None)
    return None if found is None else found[0]
