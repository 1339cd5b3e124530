"""The Triton operator set, for GPUs. An operation is one or two launches, where torch needs several.

    norm of residual + delta, and the sum                                 one launch
    QK norm, rotary embedding, keys and values into the cache             one launch
    attention (`triton_attention`)             decodes: two launches; prompt chunks: one; texts of an encoder
                                               (`triton_texts`): one or two
    latent attention (`triton_latent`)         norm, rotation and the cache write: one launch; decodes: two, prompt
                                               chunks: one; torch's products absorb queries and expand outputs.
                                               Long chunks (`triton_expansion`): two and torch's product for each piece
    activation, times the other half                                      one launch
    matrix products of at most 16 rows                                    one or two launches, where `small_gemm` was
                                                                          measured to be faster than torch
    matrix products with quantised weights     one or two launches, or one and torch's product for many rows
    experts                                    three launches for few tokens, otherwise up to six
    mixers with a state (`triton_state`)       convolution, gated norm: one launch each; the delta rule, Mamba 1 and 2:
                                               decodes: one launch, prompt chunks: two, Mamba 1: three

torch computes the other matrix products, embedding and head. This module imports triton, so it is imported only where
it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.description.operator_sets import PLANNED_OPERATIONS, TORCH, TRITON, Lacking
from ember.engine.layers.batch import Batch
from ember.engine.layers.block import Attention
from ember.engine.layers.cache import KVCache
from ember.engine.layers.embedding import Embedding
from ember.engine.layers.joined import JoinedLinear
from ember.engine.layers.latent import LatentAttention, LatentHeads
from ember.engine.layers.linear import Linear
from ember.engine.layers.mlp import MLP
from ember.engine.layers.norm import Norm, RMSNorm
from ember.engine.layers.rotary import Rotary
from ember.engine.operators.base import Heads, Step
from ember.engine.operators.state_runs import runs_of_batch
from ember.engine.operators.torch_ops import TorchOperators
from ember.engine.operators.triton_attention import CachedAttention
from ember.engine.operators.triton_linear import multiply
from ember.engine.operators.triton_rounded import RoundedOutputs
from ember.engine.operators.triton_step import MAX_REUSED_TOKENS, Chunks, Decodes, TritonStep
from ember_kernels.activation import activation
from ember_kernels.launch import Launches
from ember_kernels.norm import layer_norm, rms_norm
from ember_kernels.small_gemm import MAX_ROWS, MEASURED_GAINS, small_gemm, uses_small_gemm
from ember_kernels.specialisation import device_capability

if TYPE_CHECKING:
    from ember.engine.operators.triton_latent import Latents
    from ember.engine.operators.triton_texts import Texts


class NormSite(NamedTuple):
    """What the kernel of one norm takes in every step. `kind`: equal for norms whose launches differ in nothing but
    addresses."""

    norm: Norm
    kind: int
    weight: Tensor | None
    bias: Tensor | None
    addresses: tuple[int, ...]  # of weight and bias


class TritonOperators:
    """`operators.base.Operators` in Triton kernels. torch computes the operations in `lacking`."""

    max_mlp_rows = math.inf

    def __init__(self, torch_ops: TorchOperators, lacking: Lacking) -> None:
        config = torch_ops.config
        self.torch_ops = torch_ops
        own_attention = "attend" not in lacking
        own_latents = "attend_latents" not in lacking
        self._plans_attention = not own_attention or (config.latent is not None and not own_latents)
        features = config.features().keys()
        on_host = [name for name in PLANNED_OPERATIONS if name in lacking or name not in TRITON.features]
        self._has_states = any(map(config.state, range(config.num_layers)))
        self._plans_states = any(TORCH.features[name] & features for name in on_host)
        self.is_recordable = not (self._plans_attention or self._plans_states or config.bidirectional)
        self.convolve, self.delta_rule, self.scan = torch_ops.convolve, torch_ops.delta_rule, torch_ops.scan
        self.gated_norm, self.selective_scan = torch_ops.gated_norm, torch_ops.selective_scan
        if self._has_states:
            self._take_state_kernels(lacking)
        has_more_norms = config.layer_input_size or config.layer_scalar or not self.is_recordable
        self._reuses_norms = config.wiring == "pre_norm" and not has_more_norms
        self._outputs: dict[Any, Tensor] = {}  # of norms and activations of the present step, for all layers
        self._rounded = RoundedOutputs(config.wiring, torch_ops.parts)
        self._kinds: dict[tuple[Any, ...], int] = {}  # descriptions of norms, MLPs and attentions, numbered
        self._norms: dict[int, NormSite] = {}  # by their ids, as the others
        self._mlps: dict[int, int] = {}  # their kinds
        self._capability: int | None = None  # of the device, when the first product asks for it
        self.linear = self._linear if torch_ops.dtype != torch.float32 else torch_ops.linear
        self.add_norm = torch_ops.add_norm if "add_norm" in lacking else self._add_norm
        self._launches = Launches()  # of the present step
        self._ones: Tensor | None = None  # the weights of RMSNorms without weights, when the first one is computed
        self.gate = torch_ops.gate if "gate" in lacking else self._gate
        own_experts = "experts" not in lacking and torch_ops.dtype != torch.float32
        self.experts = torch_ops.experts
        if config.experts is not None and own_experts:
            from ember.engine.operators.triton_experts import compute_experts

            self.experts = partial(compute_experts, self)
        elif config.experts is not None:
            self.is_recordable = False  # the host reads how many tokens each expert has
        self._take_attention_kernels(lacking)

    def _take_attention_kernels(self, lacking: Lacking) -> None:
        """Take the operations of attention that the kernels have. A model imports those of its kind of attention."""
        torch_ops, config = self.torch_ops, self.torch_ops.config
        own_attention, own_latents = "attend" not in lacking, "attend_latents" not in lacking
        turns = "place_heads" not in lacking if config.latent is None else own_latents
        rotaries = torch_ops.rotaries if turns else []
        tables = [_angle_table(rotary, config.max_position_embeddings) for rotary in rotaries]
        self.place_heads: Callable[[Attention, Tensor, TritonStep], Heads] = torch_ops.place_heads
        self.attend: Callable[[Attention, Heads, TritonStep], Tensor] = torch_ops.attend
        self.place_latents: Callable[[LatentAttention, Tensor, Tensor, TritonStep], LatentHeads]
        self.attend_latents: Callable[[LatentAttention, LatentHeads, TritonStep], Tensor]
        self.place_latents, self.attend_latents = torch_ops.place_latents, torch_ops.attend_latents
        self._attention: CachedAttention | Texts | None = None
        self._latents: Latents | None = None
        if config.bidirectional:
            from ember.engine.operators.triton_texts import Texts

            self._attention = texts = Texts(torch_ops, tables)
            self.attend = texts.attend if own_attention else torch_ops.attend
            self.place_heads = torch_ops.place_heads if "place_heads" in lacking else texts.place_heads
        else:
            self._attention = cached = CachedAttention(torch_ops, tables, self._number)
            self.attend = cached.attend if own_attention else torch_ops.attend
            if "place_heads" not in lacking:
                self.place_heads = cached.place_heads
            elif own_attention:
                self.place_heads = cached.place_torch_heads
        if config.latent is not None and own_latents:
            from ember.engine.operators.triton_latent import Latents

            self._latents = latents = Latents(self, torch_ops, config.latent, tables, self._number)
            self.place_latents, self.attend_latents = latents.place_latents, latents.attend_latents

    def _take_state_kernels(self, lacking: Lacking) -> None:
        """Take the operations of mixers with a state that the kernels have. Other models do not import them."""
        from ember.engine.operators import triton_state

        for name in ("convolve", "delta_rule", "scan", "selective_scan"):
            if name not in lacking:
                setattr(self, name, getattr(triton_state, name))
        if "gated_norm" not in lacking:
            self.gated_norm = lambda norm, x, gate: triton_state.gated_norm(norm, x, gate, self._launches)

    @property
    def reads_packed(self) -> bool:
        return False

    def weights_moved(self, layer: int | None) -> None:
        """These operators store the addresses of norms' weights."""
        self._norms.clear()
        for part in (self._attention, self._latents):
            if part is not None:
                part.weights_moved()

    def embed(self, embedding: Embedding, step: Step) -> Tensor:
        assert isinstance(step, TritonStep)
        self._outputs, self._launches = {}, step.launches
        if self._latents is not None:
            self._latents.begin_step()
        self._rounded.clear()
        return self.torch_ops.embed(embedding, step)

    def begin(self, batch: Batch, cache: KVCache) -> TritonStep:
        if self.torch_ops.config.bidirectional:
            return TritonStep(
                token_ids=batch.token_ids,
                positions=batch.positions,
                slots=batch.slot_mapping.unbind(),
                cache=cache,
                token_types=batch.token_types,
                texts=self.torch_ops.plan_texts(batch),
                decodes=None,
                chunks=None,
            )
        starts = batch.query_starts
        counts = [stop - start for start, stop in pairwise(starts)]
        num_decodes = next((i for i, count in enumerate(counts) if count != 1), len(counts))
        device = batch.token_ids.device
        tables = batch.block_tables.to(torch.int32)
        lens = torch.tensor(batch.context_lens, dtype=torch.int32).to(device, non_blocking=True)
        decodes = chunks = slots = runs = None
        if self._has_states:
            rows = runs_of_batch(batch.state_runs, starts, num_decodes)
            slots, runs = (torch.from_numpy(each).to(device, non_blocking=True) for each in rows)
        if num_decodes:
            decodes = Decodes(tables[:, :num_decodes].unbind(), lens[:num_decodes], states=slots)
        if num_decodes < len(counts):
            first_tokens = torch.tensor(starts[num_decodes:], dtype=torch.int32).to(device, non_blocking=True)
            places = tables[:, num_decodes:].unbind(), first_tokens, lens[num_decodes:]
            chunks = Chunks(*places, max(counts), starts[num_decodes:], batch.context_lens[num_decodes:], runs)
        return TritonStep(
            token_ids=batch.token_ids,
            positions=batch.positions,
            slots=batch.slot_mapping.unbind(),
            cache=cache,
            plans=self.torch_ops.plan(batch, cache) if self._plans_attention else None,
            states=self.torch_ops.plan_states(batch) if self._plans_states else (),
            decodes=decodes,
            chunks=chunks,
        )

    def whole_step(self, step: TritonStep) -> None:
        return None

    def _output(self, like: Tensor, shape: tuple[int, int]) -> Tensor:
        """A matrix for what is read before the next output of this shape is written. Steps in which the device has more
        to do than the host allocate their own, so that no memory is held until the next step."""
        if shape[0] > MAX_REUSED_TOKENS:
            return like.new_empty(shape)
        known = self._outputs.get(shape)
        if known is None:
            known = self._outputs[shape] = like.new_empty(shape)
        return known

    def _add_norm(self, norm: Norm, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        x, added = (residual, None) if delta is None else (delta, residual)
        num_tokens, width = x.shape
        shape = num_tokens, width
        site = self._norms.get(id(norm))
        if site is None:
            site = self._norms[id(norm)] = self._norm_site(norm, x)
        is_shared = num_tokens <= MAX_REUSED_TOKENS
        rounded_to = self._rounded.allocate(norm, x, shape, is_shared)
        own: tuple[int, ...] = ()
        if is_shared and self._reuses_norms:
            out = self._output(x, shape)  # its address is that of the launches which are repeated
        else:
            out = x.new_empty(shape)
            own = (out.data_ptr(),)
        if rounded_to is not None and not is_shared:
            own = (*own, *[part.data_ptr() for part in rounded_to])
        stride = width if x.is_contiguous() else x.stride(0)
        key: tuple[Any, ...] = (site.kind, num_tokens, stride, rounded_to is None)
        if added is None:
            addresses = (x.data_ptr(), *site.addresses, *own)
        else:
            key = (*key, added.is_contiguous())
            addresses = (x.data_ptr(), added.data_ptr(), *site.addresses, *own)
        if not self._launches.repeat(key, addresses):
            options: dict[str, Any] = {"residual": added, "rounded_to": rounded_to, "out": out}
            if isinstance(norm, RMSNorm):
                self._launches.make(key, addresses, lambda: rms_norm(x, site.weight, norm.eps, **options))
            else:
                self._launches.make(key, addresses, lambda: layer_norm(x, site.weight, site.bias, norm.eps, **options))
        self._rounded.store(out, rounded_to)
        return out, residual

    def _norm_site(self, norm: Norm, x: Tensor) -> NormSite:
        weight, bias = norm.weight, None if isinstance(norm, RMSNorm) else norm.bias
        if weight is None and isinstance(norm, RMSNorm):
            weight = self._ones = x.new_ones(norm.size) if self._ones is None else self._ones
        dtype = None if weight is None else weight.dtype
        kind = self._number(type(norm), norm.eps, norm.size, x.dtype, dtype, bias is None)
        addresses = tuple(each.data_ptr() for each in (weight, bias) if each is not None)
        return NormSite(norm, kind, weight, bias, addresses)

    def _number(self, *description: Any) -> int:
        """A number for a description of launches: a short key."""
        return self._kinds.setdefault(description, len(self._kinds))

    def _gate(self, mlp: MLP, up: Tensor) -> Tensor:
        num_tokens, width = up.shape
        gated = mlp.gated
        limit = mlp.limit if gated else None
        shape = num_tokens, width // 2 if gated else width
        is_shared = num_tokens <= MAX_REUSED_TOKENS
        out = self._output(up, shape)
        rounded_to = None if limit is not None else self._rounded.allocate(mlp, up, shape, is_shared)
        kind = self._mlps.get(id(mlp))
        if kind is None:
            kind = self._mlps[id(mlp)] = self._number(mlp.activation, gated, limit, mlp.alpha, up.dtype)
        stride = width if up.is_contiguous() else up.stride(0)
        key = (kind, num_tokens, width, stride, rounded_to is None)
        addresses = [up.data_ptr()]
        if not is_shared:
            addresses += [tensor.data_ptr() for tensor in (out, *(rounded_to or ()))]
        if not self._launches.repeat(key, addresses):
            name = mlp.activation if limit is None else "silu"
            options: dict[str, Any] = {"rounded_to": rounded_to, "limit": limit, "alpha": mlp.alpha, "out": out}
            self._launches.make(key, addresses, lambda: activation(up, name, gated=gated, **options))
        if rounded_to is not None or self._rounded.find(out) is not None:
            self._rounded.store(out, rounded_to)  # otherwise the MLP beside experts may still need that of the norm
        return out

    def _linear(self, weight: Linear, x: Tensor, step: Step) -> Tensor:
        if type(weight) is not Linear:
            if isinstance(weight, JoinedLinear):
                return torch.cat([self._linear(part, x, step) for part in weight.parts], dim=-1)
            made = multiply(weight, x, self._rounded.find(x))
            return self.torch_ops.linear(weight, x, step) if made is None else made
        if len(weight.rows) > 1:
            return self.torch_ops.linear(weight, x, step)
        (matrix,) = weight.rows
        if MEASURED_GAINS and x.shape[0] <= MAX_ROWS:
            if self._capability is None:
                self._capability = device_capability(x.device)
            n, k = matrix.shape
            if uses_small_gemm(x.shape[0], n, k, self._capability) and x.is_contiguous():
                return small_gemm(x, matrix, weight.bias)
        return F.linear(x, matrix, weight.bias)

    def logits(self, project: Linear | None, head: Linear, hidden: Tensor) -> Tensor:
        made = None if project is not None else multiply(head, hidden)
        return self.torch_ops.logits(project, head, hidden) if made is None else self.torch_ops.finish_logits(made)


def _angle_table(rotary: Rotary, max_positions: int) -> Tensor:
    """[max_positions, 2 * pairs] float32: cosines, then sines, of each position. Pairs that are not rotated, which are
    the last ones, are left out."""
    frequencies = rotary.inverse_frequencies
    frequencies = frequencies[: max(int(frequencies.count_nonzero()), 1)]
    positions = torch.arange(max_positions, dtype=torch.float32, device=frequencies.device)
    angles = positions[:, None] * frequencies  # [max_positions, rotary_dim / 2]
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * rotary.attention_factor
