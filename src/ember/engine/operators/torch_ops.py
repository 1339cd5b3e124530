"""The torch operator set: it works on every device and computes every feature. Other sets use it for what they lack."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.layers.batch import Batch
from ember.engine.layers.block import Attention, DecoderParts
from ember.engine.layers.cache import CacheScales, KVCache, from_float8, to_float8
from ember.engine.layers.embedding import Embedding
from ember.engine.layers.experts import Experts
from ember.engine.layers.latent import LatentAttention, LatentHeads
from ember.engine.layers.linear import Linear, can_pack
from ember.engine.layers.mixers import Convolution, Delta, GatedNorm, Selective, Ssd
from ember.engine.layers.mlp import MLP
from ember.engine.layers.norm import Norm
from ember.engine.layers.rotary import Rotary, query_scales
from ember.engine.operators import native_texts
from ember.engine.operators.base import Heads, Step
from ember.engine.operators.experts import compute_experts
from ember.engine.operators.torch_attention import attend
from ember.engine.operators.torch_latent import attend_latents
from ember.engine.operators.torch_plan import AttentionPlan, GroupShape, plan_attention
from ember.engine.operators.torch_selective import selective_scan
from ember.engine.operators.torch_state import Round, convolve, delta_rule, gated_norm, plan_states, scan
from ember.engine.operators.torch_texts import TextPlan, attend_texts

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class TorchOperators:
    """`operators.base.Operators` over torch's operators. They multiply every layout of weights."""

    is_recordable = False  # attention is planned on the host
    max_mlp_rows = math.inf

    def __init__(self, config: DecoderConfig, parts: DecoderParts, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.parts = parts
        self.dtype = dtype
        self.device = device
        self.rotaries = [Rotary.build(rope, device) for rope in config.ropes()]
        self._groups = [GroupShape.of(each) for each in parts.groups()]
        self._has_scores = config.attention_soft_cap is not None or config.attention_sinks
        self.texts = native_texts.load(config, dtype, device)
        self.slopes = torch.tensor(config.alibi, dtype=torch.float32, device=device) if config.alibi else None

    @property
    def reads_packed(self) -> bool:
        return can_pack(self.device.type, self.dtype)

    def weights_moved(self, layer: int | None) -> None:
        """These operators store no addresses."""

    def begin(self, batch: Batch, cache: KVCache) -> Step:
        step = Step(batch.token_ids, batch.positions, batch.slot_mapping.unbind(), cache, token_types=batch.token_types)
        if self.config.bidirectional:
            step.texts = self.plan_texts(batch)
            return step
        step.plans = self.plan(batch, cache)
        step.states = self.plan_states(batch)
        return step

    def plan_texts(self, batch: Batch) -> TextPlan:
        """The plan of an encoder's attention."""
        return TextPlan(batch.query_starts, self.dtype, self.device)

    def plan_states(self, batch: Batch) -> list[Round]:
        """The plan of the step's mixers with a state."""
        return plan_states(batch.state_runs, self.device)

    def plan(self, batch: Batch, cache: KVCache, without: Container[int] = ()) -> list[AttentionPlan]:
        """The attention plan of the step for each cache group. `without`: sequences that another set attends to."""
        kinds = self.slopes, self._has_scores, self.config.window_is_chunk
        return plan_attention(batch, self._groups, cache.block_size, self.dtype, without, *kinds)

    def whole_step(self, step: Step) -> None:
        return None

    def embed(self, embedding: Embedding, step: Step) -> Tensor:
        return embedding(step.token_ids, step.positions, step.token_types)

    def add_norm(self, norm: Norm, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        made = None if self.texts is None else self.texts.add_norm(norm, residual, delta)
        if made is not None:
            return made
        if delta is not None:
            residual = residual + delta
        return norm(residual), residual

    def linear(self, weight: Linear, x: Tensor, step: Step) -> Tensor:
        return weight(x)

    def place_heads(self, attention: Attention, qkv: Tensor, step: Step) -> Heads:
        query, key, value = self.heads(attention, qkv, step)
        if step.texts is not None:
            return Heads(query, key, value)
        slots, (keys, values) = step.slots[attention.group], step.cache.by_slot[attention.place]
        scales = attention.cache_scales
        if key is None or value is None:
            return Heads(query, *_read_slots(keys, values, slots, scales, query.dtype))
        if scales is not None:
            stored = to_float8(key, scales.key), to_float8(value, scales.value)
            for cached, new in zip((keys, values), stored, strict=True):
                cached.view(torch.uint8).index_copy_(0, slots, new.view(torch.uint8))
            # Attention computes with what the cache has, whether or not it reads it there.
            key, value = from_float8(stored[0], scales.key, key.dtype), from_float8(stored[1], scales.value, key.dtype)
            return Heads(query, key, value)
        keys.index_copy_(0, slots, key)
        values.index_copy_(0, slots, value)
        return Heads(query, key, value)

    def heads(self, attention: Attention, qkv: Tensor, step: Step) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Queries, keys and values [T, heads, head_dim], normalised and rotated. The cache is not written. A layer
        without K and V of its own has no keys and values here."""
        config = self.config
        heads, kv_heads, head_dim = attention.sizes
        qkv = qkv.unflatten(1, (-1, head_dim))
        limit = config.qkv_clip
        if limit is not None and not config.clips_after_norm:
            qkv = qkv.clamp(-limit, limit)
        if not attention.has_own_kv:
            kv_heads = 0
        query_key = qkv[:, : heads + kv_heads]
        value = query_key[:, heads:] if attention.values_are_keys else qkv[:, heads + kv_heads :]
        if attention.value_norm is not None and attention.has_own_kv:
            value = attention.value_norm(value)
        norm, scales = attention.qk_norm, None
        if norm is not None and not config.rope_before_norm:
            query_key = norm(query_key)
        if limit is not None and config.clips_after_norm:
            query_key, value = query_key.clamp(-limit, limit), value.clamp(-limit, limit)
        if attention.rope is not None:
            cosines, sines, scales = self.angles(attention.rope, step)
            query_key = self.rotaries[attention.rope].rotate(query_key, cosines, sines)
        elif config.nope_beta:
            scales = query_scales(step.positions + 1, config.nope_beta, config.nope_length, self.dtype)
        if norm is not None and config.rope_before_norm:
            query_key = norm(query_key)
        query, key = query_key[:, :heads], query_key[:, heads:]
        query = query if scales is None else query * scales
        return (query, key, value) if attention.has_own_kv else (query, None, None)

    def angles(self, rope: int, step: Step) -> tuple[Tensor, Tensor, Tensor | None]:
        """The angles of the step's tokens for the rotary positions number `rope`, and the scales of queries."""
        found = step.angles.get(rope)
        if found is None:
            rotary = self.rotaries[rope]
            scales = rotary.query_scales(step.positions, self.dtype)
            found = step.angles[rope] = *rotary.angles(step.positions, self.dtype), scales
        return found

    def attend(self, attention: Attention, heads: Heads, step: Step) -> Tensor:
        if step.texts is not None:
            assert heads.key is not None and heads.value is not None
            parts = attention, heads.query, heads.key, heads.value
            made = None if self.texts is None else self.texts.attend(step.texts, *parts)
            return attend_texts(step.texts, *parts) if made is None else made
        assert step.plans is not None and heads.key is not None and heads.value is not None
        keys, values = step.cache.by_slot[attention.place]
        tensors = (heads.query, heads.key, heads.value, keys, values)
        options = attention.scale, attention.soft_cap, attention.sinks, attention.cache_scales
        return attend(step.plans[attention.group], *tensors, *options)

    def place_latents(self, attention: LatentAttention, query: Tensor, latent: Tensor, step: Step) -> LatentHeads:
        heads, made = self.latents(attention, query, latent, step)
        slots, (keys, _) = step.slots[attention.group], step.cache.by_slot[attention.place]
        if attention.cache_scales is not None:
            scale = attention.cache_scales.key
            stored = to_float8(made, scale)
            keys.view(torch.uint8).index_copy_(0, slots, stored.view(torch.uint8)[:, None])
            return LatentHeads(heads, from_float8(stored, scale, made.dtype))
        keys.index_copy_(0, slots, made[:, None])
        return LatentHeads(heads, made)

    def latents(self, attention: LatentAttention, query: Tensor, latent: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The rotated query heads and the latents of `place_latents`, which are not written to the cache."""
        sizes = attention.sizes
        plain, turned = query.unflatten(1, (attention.heads, -1)).split((sizes.plain_dim, sizes.rotary_dim), dim=-1)
        latent, key = latent.split((sizes.kv_rank, sizes.rotary_dim), dim=-1)
        cosines, sines, scales = self.angles(attention.rope, step)
        rotated = self.rotaries[attention.rope].rotate(torch.cat((turned, key[:, None]), dim=1), cosines, sines)
        query = torch.cat((plain, rotated[:, :-1]), dim=-1)
        if scales is not None:
            query = query * scales
        return query, torch.cat((attention.kv_norm(latent), rotated[:, -1]), dim=-1)

    def attend_latents(self, attention: LatentAttention, heads: LatentHeads, step: Step) -> Tensor:
        return self.attend_expanding(attention, heads, step, lambda weight, x: weight(x))

    def attend_expanding(
        self, attention: LatentAttention, heads: LatentHeads, step: Step, linear: Callable[[Linear, Tensor], Tensor]
    ) -> Tensor:
        """The attention of `attend_latents`. `linear` multiplies latents with the matrix that expands them."""
        assert step.plans is not None
        keys, _ = step.cache.by_slot[attention.place]
        return attend_latents(step.plans[attention.group], attention, heads, keys, linear)

    def convolve(self, conv: Convolution, x: Tensor, state: tuple[int, int], step: Step) -> Tensor:
        group, layer = state
        return convolve(conv, x, step.states, step.cache.states[group], layer)

    def delta_rule(self, delta: Delta, qkv: Tensor, rates: Tensor, step: Step) -> Tensor:
        return delta_rule(delta, qkv, rates, step.states, step.cache.states[delta.state[0]])

    def scan(self, ssd: Ssd, x: Tensor, dt: Tensor, step: Step) -> Tensor:
        return scan(ssd, x, dt, step.states, step.cache.states[ssd.state[0]])

    def selective_scan(self, part: Selective, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, step: Step) -> Tensor:
        return selective_scan(part, x, dt, b, c, step.states, step.cache.states[part.state[0]])

    def gated_norm(self, norm: GatedNorm, x: Tensor, gate: Tensor) -> Tensor:
        return gated_norm(norm, x, gate)

    def gate(self, mlp: MLP, up: Tensor) -> Tensor:
        activation = mlp.xielu or ACTIVATIONS[mlp.activation]
        if not mlp.gated:
            return activation(up)
        gate, up = up.chunk(2, dim=-1)
        if mlp.limit is not None:
            gate, up = gate.clamp(max=mlp.limit), up.clamp(-mlp.limit, mlp.limit)
            return (up + 1) * (gate * torch.sigmoid(gate * mlp.alpha))
        return activation(gate).mul_(up)

    def experts(self, experts: Experts, hidden: Tensor, step: Step, routed: Tensor | None = None) -> Tensor:
        return compute_experts(self, experts, hidden, step, routed)

    def logits(self, project: Linear | None, head: Linear, hidden: Tensor) -> Tensor:
        if project is not None:
            hidden = project(hidden)
        return self.finish_logits(head(hidden))

    def finish_logits(self, logits: Tensor) -> Tensor:
        """The head's products with their scale and soft cap, in the same memory."""
        scale, cap = self.config.logits_scale, self.config.logits_soft_cap
        if scale != 1.0:
            logits.mul_(scale)
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _read_slots(
    keys: Tensor, values: Tensor, slots: Tensor, scales: CacheScales | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """K and V of some slots of a layer's cache [slots, kv_heads, head_dim], in `dtype`."""
    if scales is None:
        return keys[slots], values[slots]
    stored = [cached.view(torch.uint8)[slots].view(cached.dtype) for cached in (keys, values)]
    return from_float8(stored[0], scales.key, dtype), from_float8(stored[1], scales.value, dtype)
