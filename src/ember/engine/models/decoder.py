"""The model: one loop over its blocks, for every family of decoders and encoders, and for every operator set.

The wiring connects a block's parts with the residual. The operators compute the parts (`operators.base`). Call this
under `torch.inference_mode()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember.engine.layers.batch import Batch
from ember.engine.layers.block import Attention, BesideExperts, Block, TextConv
from ember.engine.layers.cache import KVCache
from ember.engine.layers.embedding import look_up
from ember.engine.layers.latent import LatentAttention
from ember.engine.layers.layer_inputs import LayerInput, LayerInputs
from ember.engine.layers.mixers import Delta, Selective, ShortConvolution, Ssd
from ember.engine.layers.mlp import MLP
from ember.engine.layers.scratch import reserve
from ember.engine.models.build import build_parts
from ember.engine.models.weights import Weights, tensors_of
from ember.engine.operators.base import Operators, Step
from ember.engine.operators.experts import compute_mlp
from ember.engine.operators.torch_ops import TorchOperators
from ember.engine.operators.torch_texts import convolve_texts

Ops = Operators[Any]
Wire = Callable[[Ops, Block, Tensor, Tensor | None, Step], tuple[Tensor, Tensor | None]]
"""The function of one block: from the residual [T, hidden] and a delta that is still to be added to it, to the same two
after the block. The next norm adds them, since kernels compute the sum and the norm at once."""


def pre_norm(
    ops: Ops, block: Block, residual: Tensor, delta: Tensor | None, step: Step
) -> tuple[Tensor, Tensor | None]:
    """x + attention(norm(x)), then x + mlp(norm(x)): most families."""
    normed = residual
    if not block.enters_normed:
        normed, residual = ops.add_norm(block.attention_norm, residual, delta)
    normed, residual = ops.add_norm(block.mlp_norm, residual, _scaled(mix(ops, block, normed, step), block))
    return residual, _scaled(mlp(ops, block, normed, step), block)


def post_norm(
    ops: Ops, block: Block, residual: Tensor, delta: Tensor | None, step: Step
) -> tuple[Tensor, Tensor | None]:
    """norm(x + attention(x)), then norm(x + mlp(x)): OPT-350m, BERT. Nothing is left to be added."""
    normed, _ = ops.add_norm(block.attention_norm, residual, _scaled(mix(ops, block, residual, step), block))
    normed, _ = ops.add_norm(block.mlp_norm, normed, _scaled(mlp(ops, block, normed, step), block))
    return normed, None


def output_norm(
    ops: Ops, block: Block, residual: Tensor, delta: Tensor | None, step: Step
) -> tuple[Tensor, Tensor | None]:
    """x + norm(attention(x)), then x + norm(mlp(x)): Olmo 2, Exaone 4. Nothing is left to be added."""
    for part, norm in ((mix, block.attention_norm), (mlp, block.mlp_norm)):
        normed, _ = ops.add_norm(norm, part(ops, block, residual, step), None)
        residual = residual + _scaled(normed, block)
    return residual, None


def normed_residual(
    ops: Ops, block: Block, residual: Tensor, delta: Tensor | None, step: Step
) -> tuple[Tensor, Tensor | None]:
    """n = norm(x), n + attention(n), then the same with mlp: some models of BLOOM's line."""
    normed, _ = ops.add_norm(block.attention_norm, residual, delta)
    attended = _scaled(mix(ops, block, normed, step), block)
    normed, _ = ops.add_norm(block.mlp_norm, normed + attended, None)
    return normed, _scaled(mlp(ops, block, normed, step), block)


def sandwich(
    ops: Ops, block: Block, residual: Tensor, delta: Tensor | None, step: Step
) -> tuple[Tensor, Tensor | None]:
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))): Gemma 2, GLM-4."""
    assert block.attention_output_norm is not None and block.mlp_output_norm is not None
    normed, residual = ops.add_norm(block.attention_norm, residual, delta)
    delta, _ = ops.add_norm(block.attention_output_norm, mix(ops, block, normed, step), None)
    normed, residual = ops.add_norm(block.mlp_norm, residual, _scaled(delta, block))
    made = mlp(ops, block, normed, step)
    if block.beside is not None:
        made = with_experts(ops, block.beside, made, residual, step)
    return residual, _scaled(ops.add_norm(block.mlp_output_norm, made, None)[0], block)


def parallel(
    ops: Ops, block: Block, residual: Tensor, delta: Tensor | None, step: Step
) -> tuple[Tensor, Tensor | None]:
    """x + attention(norm(x)) + mlp(norm(x)), with one norm for both (GPT-J, Cohere) or one for each (GPT-NeoX)."""
    normed, residual = ops.add_norm(block.attention_norm, residual, delta)
    attended = _scaled(mix(ops, block, normed, step), block)
    if block.mlp_norm is not block.attention_norm:
        normed, residual = ops.add_norm(block.mlp_norm, residual, None)
    return residual + attended, _scaled(mlp(ops, block, normed, step), block)


def alone(ops: Ops, block: Block, residual: Tensor, delta: Tensor | None, step: Step) -> tuple[Tensor, Tensor | None]:
    """x + part(norm(x)), where a layer has a mixer, an MLP, or experts: Nemotron-H, Mamba 2."""
    normed, residual = ops.add_norm(block.attention_norm, residual, delta)
    part = mlp if block.mixer is None else mix
    return residual, _scaled(part(ops, block, normed, step), block)


WIRINGS: dict[str, Wire] = {
    "pre_norm": pre_norm,
    "post_norm": post_norm,
    "output_norm": output_norm,
    "normed_residual": normed_residual,
    "sandwich": sandwich,
    "parallel": parallel,
    "alone": alone,
}


def mix(ops: Ops, block: Block, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden] -> [T, hidden]: what the block's mixer makes of its tokens and of those before them."""
    mixed = MIXERS[type(block.mixer)](ops, block.mixer, hidden, step)
    return mixed if block.ssd is None else mixed + ssd(ops, block.ssd, hidden, step)


def attention(ops: Ops, part: Attention, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden] -> [T, hidden]; K and V of the tokens are written to the cache."""
    if part.input_scale != 1.0:
        hidden = hidden * part.input_scale
    heads = ops.place_heads(part, ops.linear(part.qkv, hidden, step), step)
    attended = ops.attend(part, heads, step)
    if part.gate is not None:
        gate = torch.sigmoid(ops.linear(part.gate, hidden, step))  # of each number, or of each head
        attended = (attended.unflatten(1, (gate.shape[1], -1)) * gate[..., None]).flatten(1)
    out = ops.linear(part.output, attended, step)
    return out if part.output_scale == 1.0 else out * part.output_scale


def latent_attention(ops: Ops, part: LatentAttention, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden] -> [T, hidden]; the latents of the tokens are written to the cache."""
    query, latent = ops.linear(part.down, hidden, step).split(part.down_sizes, dim=-1)
    if part.query_norm is not None and part.query_up is not None:
        normed, _ = ops.add_norm(part.query_norm, query.contiguous(), None)
        query = ops.linear(part.query_up, normed, step)
    heads = ops.place_latents(part, query, latent, step)
    return ops.linear(part.output, ops.attend_latents(part, heads, step), step)


def delta(ops: Ops, part: Delta, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden] -> [T, hidden]; the states of the step's sequences are updated."""
    inputs = ops.linear(part.inputs, hidden, step)
    qkv, gate = inputs.split([part.config.channels, part.config.value_size], dim=-1)
    qkv = ops.convolve(part.conv, qkv, part.state, step)
    mixed = ops.delta_rule(part, qkv, ops.linear(part.rates, hidden, step), step)
    return ops.linear(part.output, ops.gated_norm(part.norm, mixed, gate.view(mixed.shape)).flatten(1), step)


def ssd(ops: Ops, part: Ssd, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden] -> [T, hidden]; the states of the step's sequences are updated."""
    config = part.config
    if config.input_scale != 1.0:
        hidden = hidden * config.input_scale
    inputs = ops.linear(part.inputs, hidden, step)
    gate, mixed, dt = inputs.split([config.inner_size, config.channels, config.heads], dim=-1)
    gate = gate if config.gate_scale == 1.0 else gate * config.gate_scale
    dt = dt if config.dt_scale == 1.0 else dt * config.dt_scale
    scanned = ops.scan(part, ops.convolve(part.conv, mixed, part.state, step), dt, step).flatten(1)
    if part.norm is None:
        made = (scanned * F.silu(gate)).to(hidden.dtype)
    else:
        groups = (config.groups, -1)
        made = ops.gated_norm(part.norm, scanned.unflatten(1, groups), gate.unflatten(1, groups)).flatten(1)
    out = ops.linear(part.output, made, step)
    return out if config.output_scale == 1.0 else out * config.output_scale


def selective(ops: Ops, part: Selective, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden] -> [T, hidden]; the states of the step's sequences are updated."""
    config = part.config
    x, gate = ops.linear(part.inputs, hidden, step).chunk(2, dim=-1)
    x = ops.convolve(part.conv, x, part.state, step)
    dt, b, c = ops.linear(part.rates, x, step).split([config.dt_rank, config.state_dim, config.state_dim], dim=-1)
    if part.norms is not None:
        dt, b, c = (norm(each) for norm, each in zip(part.norms, (dt, b, c), strict=True))
    scanned = ops.selective_scan(part, x, ops.linear(part.dt, dt.contiguous(), step), b, c, step)
    return ops.linear(part.output, (scanned * F.silu(gate)).to(hidden.dtype), step)


def short_convolution(ops: Ops, part: ShortConvolution, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden] -> [T, hidden]; the states of the step's sequences are updated."""
    before, after, x = ops.linear(part.inputs, hidden, step).chunk(3, dim=-1)
    return ops.linear(part.output, after * ops.convolve(part.conv, before * x, part.state, step), step)


MIXERS: dict[type, Callable[[Ops, Any, Tensor, Step], Tensor]] = {
    Attention: attention,
    LatentAttention: latent_attention,
    Delta: delta,
    ShortConvolution: short_convolution,
    Ssd: ssd,
    Selective: selective,
}
"""The function that computes each kind of mixer."""


def mlp(ops: Ops, block: Block, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden] -> [T, hidden]."""
    part = block.mlp
    assert part is not None, "a layer without an MLP has another wiring"
    return compute_mlp(ops, part, hidden, step) if isinstance(part, MLP) else ops.experts(part, hidden, step)


def _scaled(x: Tensor, block: Block) -> Tensor:
    return x if block.residual_scale == 1.0 else x * block.residual_scale


def with_experts(ops: Ops, beside: BesideExperts, made: Tensor, residual: Tensor, step: Step) -> Tensor:
    """The norm of what the MLP has `made`, plus the norm of what experts make of the residual."""
    normed, _ = ops.add_norm(beside.input_norm, residual, None)
    mixed, _ = ops.add_norm(beside.output_norm, ops.experts(beside.experts, normed, step, residual), None)
    return ops.add_norm(beside.mlp_output_norm, made, None)[0] + mixed


def layer_inputs(ops: Ops, inputs: LayerInputs, embedded: Tensor, step: Step) -> Tensor:
    """The vectors of all layers for the step's tokens, whose embeddings are `embedded`: [T, layers, size]."""
    rows = look_up(inputs.table, step.token_ids) * inputs.scale
    projected = ops.linear(inputs.projection, embedded, step) * inputs.projection_scale
    return (inputs.norm(projected.unflatten(1, (-1, inputs.size))) + rows.unflatten(1, (-1, inputs.size))) * 2**-0.5


def with_layer_input(ops: Ops, part: LayerInput, hidden: Tensor, step: Step) -> Tensor:
    """[T, hidden]: what a layer makes of its vector, to be added to its output `hidden`."""
    assert step.layer_inputs is not None
    gate = torch.cat((ops.linear(part.mlp.up, hidden, step), step.layer_inputs[:, part.index]), dim=-1)
    return ops.add_norm(part.norm, ops.linear(part.mlp.down, ops.gate(part.mlp, gate), step), None)[0]


def beside_convolution(wire: Wire, conv: TextConv) -> Wire:
    """The wiring of a first layer, to whose output the convolution of the embeddings is added before another norm."""

    def run(ops: Ops, block: Block, residual: Tensor, delta: Tensor | None, step: Step) -> tuple[Tensor, Tensor | None]:
        assert step.texts is not None, "an encoder's step has a plan of its texts"
        convolved = convolve_texts(step.texts, conv, residual)  # the wiring may write to the residual's memory
        residual, delta = wire(ops, block, residual, delta, step)
        assert delta is None, "the family's wiring leaves no delta"
        return ops.add_norm(conv.norm, residual, convolved)[0], None

    return run


def extended(wire: Wire) -> Wire:
    """The wiring, with the layer's own input and the factor of its output."""

    def run(ops: Ops, block: Block, residual: Tensor, delta: Tensor | None, step: Step) -> tuple[Tensor, Tensor | None]:
        residual, delta = wire(ops, block, residual, delta, step)
        if block.layer_input is not None:
            residual = residual if delta is None else residual + delta
            delta = with_layer_input(ops, block.layer_input, residual, step)
        if block.scalar is not None:
            residual = (residual if delta is None else residual + delta) * block.scalar
            delta = None
        return residual, delta

    return run


class Decoder:
    """A model's weights and its forward pass. A model that is not causal is an encoder.

    `ops` computes it: torch's operators, until `operators.choose` has found better ones.
    """

    def __init__(self, config: DecoderConfig, weights: Weights) -> None:
        """`weights` by the names of `description.weight_specs.weight_specs`, on one device; the dict is emptied."""
        self.config = config
        self.num_parameters = sum(
            weight.numel() if isinstance(weight, Tensor) else weight.num_parameters for weight in weights.values()
        )
        self.weight_bytes = sum(tensor.nbytes for tensor in tensors_of(weights))
        tokens = weights["embed_tokens"]
        self.dtype, self.device = tokens.dtype, tokens.device
        self.parts = build_parts(config, weights)
        largest = max(linear.scratch_elements for linear in self.parts.matrices())
        if largest and self.device.type != "cpu":
            reserve(largest, self.dtype, self.device)  # before graphs hold its address, and the cache takes the memory
        self.ops: Ops = TorchOperators(config, self.parts, self.dtype, self.device)
        wire = WIRINGS[config.wiring]
        self._wire = extended(wire) if config.layer_input_size or config.layer_scalar else wire
        conv = self.parts.text_conv
        self._first_wire = self._wire if conv is None else beside_convolution(self._wire, conv)

    def bytes_read(self, num_tokens: int) -> float:
        """The bytes of weights that a step of that many tokens reads, if every expert is chosen equally often."""
        read = float(self.weight_bytes)
        for block in self.parts.blocks:
            experts = block.experts
            if experts is not None:
                config = experts.config
                nbytes = sum(mlp.up.nbytes + mlp.down.nbytes for mlp in experts.each)
                read -= (1 - config.per_token / config.count) ** num_tokens * nbytes
        if self.parts.layer_inputs is not None:
            read -= self.parts.layer_inputs.table.nbytes  # of which a step reads a row for each token
        return read

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Run one step: K and V of the batch are written to the cache. Returns [T, hidden] after the final norm."""
        return self.run(self.ops.begin(batch, cache))

    def run(self, step: Step) -> Tensor:
        """As `forward`, for a step that the operators began, or that was prepared for them on the device."""
        ops, parts = self.ops, self.parts
        whole = ops.whole_step(step)
        if whole is not None:
            return whole
        residual, delta = ops.embed(parts.embedding, step), None
        if parts.layer_inputs is not None:
            step.layer_inputs = layer_inputs(ops, parts.layer_inputs, residual, step)
        wire = self._first_wire
        for layer in parts.layer_order:
            residual, delta = wire(ops, parts.blocks[layer], residual, delta, step)
            wire = self._wire
        if parts.final_norm is not None:
            return ops.add_norm(parts.final_norm, residual, delta)[0]
        return residual if delta is None else residual + delta

    def states(self, batch: Batch, cache: KVCache) -> Tensor:
        """As `forward`, for a pooler: [T, width] after the projection out, where there is one."""
        hidden = self.forward(batch, cache)
        return hidden if self.parts.project_out is None else self.parts.project_out(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab_size] in the model's dtype, or float32."""
        assert self.parts.has_head, "the model has no logits"
        return self.ops.logits(self.parts.project_out, self.parts.head, hidden)
