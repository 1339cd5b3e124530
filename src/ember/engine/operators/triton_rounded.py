"""Inputs of products in float8, which the kernel before the product rounds beside its output.

Products of more rows in float8 (`triton_float8`) take inputs that are rounded with a scale for each row. A norm and an
activation have the row in registers or in the cache, so they write the codes and the scales too, and the product needs
no launch of its own to round them. Which product follows which norm or activation is known from the wiring.
"""

from __future__ import annotations

from torch import Tensor

from ember.engine.layers.block import Attention, Block, DecoderParts
from ember.engine.layers.experts import Experts
from ember.engine.layers.joined import parts_of
from ember.engine.layers.latent import LatentAttention
from ember.engine.layers.linear import Linear
from ember.engine.layers.mlp import MLP
from ember.engine.layers.norm import Norm
from ember.engine.operators.triton_linear import is_rounded, rounds_inputs
from ember_kernels.rounding import Rounded, new_rounded

_PRE_NORM_WIRINGS = ("pre_norm", "normed_residual", "sandwich", "parallel", "alone")
"""The wirings in which the norms of a block come directly before its mixer and its MLP."""


class RoundedOutputs:
    """The last output of a norm or an activation, if it was written in float8 too, and memory for such outputs."""

    def __init__(self, wiring: str, parts: DecoderParts) -> None:
        self._followers = _followers(wiring, parts)
        self._memory: dict[tuple[int, int], Rounded] = {}  # of the present step, for all layers
        self._last: tuple[Tensor, Rounded] | None = None

    def clear(self) -> None:
        """Begin a step."""
        self._memory, self._last = {}, None

    def allocate(self, part: Norm | MLP, like: Tensor, shape: tuple[int, int], is_shared: bool) -> Rounded | None:
        """Memory for the output of `part` in float8; None: no product that follows multiplies it so. `like`: a tensor
        of its rows and dtype. `is_shared`: whether later outputs of this shape are written to the same memory."""
        if not self._followers or not any(is_rounded(linear, like) for linear in self._followers.get(id(part), ())):
            return None
        if not is_shared:
            return new_rounded(like, *shape)
        known = self._memory.get(shape)
        if known is None:
            known = self._memory[shape] = new_rounded(like, *shape)
        return known

    def store(self, out: Tensor, rounded: Rounded | None) -> None:
        """Remember what was written beside `out`, in place of what belongs to the output before it."""
        self._last = None if rounded is None else (out, rounded)

    def find(self, x: Tensor) -> Rounded | None:
        """x in float8, if x is the very tensor that was written last."""
        return self._last[1] if self._last is not None and self._last[0] is x else None


def _followers(wiring: str, parts: DecoderParts) -> dict[int, list[Linear]]:
    """The layers that may round their inputs, by the id of the norm or of the MLP whose output they multiply."""
    found: dict[int, list[Linear]] = {}
    for block in parts.blocks:
        pairs: list[tuple[Norm | MLP, list[Linear]]] = [*_after_activations(block)]
        if wiring in _PRE_NORM_WIRINGS:
            pairs += _after_norms(block)
        for before, linears in pairs:
            rounding = [part for linear in linears for part in parts_of(linear) if rounds_inputs(part)]
            if rounding:
                found.setdefault(id(before), []).extend(rounding)
    return found


def _after_activations(block: Block) -> list[tuple[MLP, list[Linear]]]:
    """Without the MLPs of single experts, which are computed together."""
    experts = block.experts
    mlps = (block.mlp, None if experts is None else experts.shared)
    return [(mlp, [mlp.down]) for mlp in mlps if isinstance(mlp, MLP)]


def _after_norms(block: Block) -> list[tuple[Norm, list[Linear]]]:
    mixer = block.mixer
    mlp = block.mlp.shared if isinstance(block.mlp, Experts) else block.mlp
    pairs: list[tuple[Norm, list[Linear]]] = []
    if isinstance(mixer, Attention):
        pairs.append((block.attention_norm, [mixer.qkv] if mixer.gate is None else [mixer.qkv, mixer.gate]))
    elif isinstance(mixer, LatentAttention):
        pairs.append((block.attention_norm, [mixer.down]))
        if mixer.query_norm is not None and mixer.query_up is not None:
            pairs.append((mixer.query_norm, [mixer.query_up]))
    elif mixer is not None:
        pairs.append((block.attention_norm, [mixer.inputs]))
    if block.ssd is not None:
        pairs.append((block.attention_norm, [block.ssd.inputs]))
    if mlp is not None:
        pairs.append((block.mlp_norm, [mlp.up]))
    return pairs
