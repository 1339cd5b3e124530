"""The operations of a model's forward pass, as a protocol. `models.decoder` has the loop over them.

Three sets implement them: `torch_ops` on every device, `triton_ops` on GPUs, `native_ops` on CPUs. A set computes some
operations itself. It takes the others from `torch_ops`, and those that a model needs in a form that it lacks. What each
set computes is declared in `description.operator_sets`, and `choose` decides.

T is the number of tokens of a step, in a flat run over all its sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from ember.engine.layers.batch import Batch
from ember.engine.layers.block import Attention
from ember.engine.layers.cache import KVCache
from ember.engine.layers.embedding import Embedding
from ember.engine.layers.experts import Experts
from ember.engine.layers.latent import LatentAttention, LatentHeads
from ember.engine.layers.linear import Linear
from ember.engine.layers.mixers import Convolution, Delta, GatedNorm, Selective, Ssd
from ember.engine.layers.mlp import MLP
from ember.engine.layers.norm import Norm
from ember.engine.operators.torch_plan import AttentionPlan
from ember.engine.operators.torch_state import Round
from ember.engine.operators.torch_texts import TextPlan


@dataclass(slots=True)
class Step:
    """The inputs that all blocks share in one forward pass. A set adds fields; these are for torch's operations."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slots: Sequence[Tensor]  # of each cache group, [T] int64: where K and V of the tokens are written
    cache: KVCache
    # Of each of `DecoderConfig.ropes`, made when first needed: cosines and signed sines, [T, 1, rotary_dim], and the
    # scales of queries [T, 1, 1], if they are scaled.
    angles: dict[int, tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=dict)
    plans: Sequence[AttentionPlan] | None = None  # of each cache group, where torch's attention computes
    states: Sequence[Round] = ()  # the plan of mixers with a state, where torch computes them
    layer_inputs: Tensor | None = None  # [T, layers, size], if layers have inputs of their own
    token_types: Tensor | None = None  # [T] int64; None: all 0
    texts: TextPlan | None = None  # of an encoder, whose attention needs no cache


class Heads(NamedTuple):
    """The heads of a step's tokens, normalised and rotated. Keys and values are in the cache already, if there is
    one."""

    query: Tensor  # [T, heads, head_dim]
    key: Tensor | None = None  # [T, kv_heads, head_dim]; None: attention reads it in the cache
    value: Tensor | None = None


S = TypeVar("S", bound=Step)


class Operators(Protocol[S]):
    """One way to compute a decoder's operations."""

    @property
    def is_recordable(self) -> bool:
        """Whether a step needs nothing on the host: it can be prepared on the device, and recorded as a graph."""

    @property
    def reads_packed(self) -> bool:
        """Whether matrices should be repacked for oneDNN, in time, so that `linear` reads them fastest."""

    @property
    def max_mlp_rows(self) -> float:
        """How many rows an MLP computes at a time. It is finite where more rows take memory and save no time."""

    def weights_moved(self, layer: int | None) -> None:
        """Matrices of a layer, or the head (None), were replaced: a set that holds addresses must read them again."""

    def begin(self, batch: Batch, cache: KVCache) -> S:
        """Prepare one forward pass: the attention plan, and inputs that are needed in another form."""

    def whole_step(self, step: S) -> Tensor | None:
        """The hidden states of the step, [T, hidden] after the final norm, where the set computes this step as one
        call; None: the loop has to run. Both give the same hidden states, but for the order of sums."""

    def embed(self, embedding: Embedding, step: S) -> Tensor:
        """The embeddings of the step's tokens, [T, hidden], in memory that `add_norm` may write to."""

    def add_norm(self, norm: Norm, residual: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """`norm` of residual + delta, and that sum, both [T, hidden]. Without `delta` the sum is the residual. The
        memory of `residual` may be overwritten with the sum."""

    def linear(self, weight: Linear, x: Tensor, step: S) -> Tensor:
        """x [T, in] times the weight's transpose, plus its bias: [T, out]."""

    def place_heads(self, attention: Attention, qkv: Tensor, step: S) -> Heads:
        """Normalise and rotate the query and key heads of qkv [T, (heads + 2 * kv_heads) * head_dim]. Write keys and
        values to the tokens' slots of the cache."""

    def attend(self, attention: Attention, heads: Heads, step: S) -> Tensor:
        """Attention of the queries to their sequences' contexts: [T, heads * head_dim]."""

    def place_latents(self, attention: LatentAttention, query: Tensor, latent: Tensor, step: S) -> LatentHeads:
        """Rotate the query heads [T, heads * (plain_dim + rotary_dim)] and the key in latent [T, kv_rank + rotary_dim],
        and normalise the rest of it. Write latents and keys to the tokens' slots of the cache."""

    def attend_latents(self, attention: LatentAttention, heads: LatentHeads, step: S) -> Tensor:
        """Attention of the queries to their sequences' contexts: [T, heads * value_dim]."""

    def convolve(self, conv: Convolution, x: Tensor, state: tuple[int, int], step: S) -> Tensor:
        """The causal convolution of x [T, channels]. The last inputs of each sequence are kept in `state`, a group of
        states and the layer's index there."""

    def delta_rule(self, delta: Delta, qkv: Tensor, rates: Tensor, step: S) -> Tensor:
        """The gated delta rule over the sequences' states, which are updated. qkv [T, channels] after the convolution,
        rates [T, 2 * value_heads]: [T, value_heads, value_dim]."""

    def scan(self, ssd: Ssd, x: Tensor, dt: Tensor, step: S) -> Tensor:
        """Mamba 2's recurrence over the sequences' states, which are updated. x [T, channels] after the convolution,
        dt [T, heads]: [T, heads, head_dim] float32."""

    def selective_scan(self, part: Selective, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, step: S) -> Tensor:
        """Mamba 1's recurrence over the sequences' states, which are updated. x [T, inner_size] after the convolution,
        dt [T, inner_size] before its softplus, b and c [T, state_dim]: [T, inner_size] float32."""

    def gated_norm(self, norm: GatedNorm, x: Tensor, gate: Tensor) -> Tensor:
        """The norm of each head of x [T, heads, size], times the SiLU of the gate of that shape, in the gate's
        dtype."""

    def gate(self, mlp: MLP, up: Tensor) -> Tensor:
        """The activation of up [T, intermediate]; gated: of its first half, times its second half."""

    def experts(self, experts: Experts, hidden: Tensor, step: S, routed: Tensor | None = None) -> Tensor:
        """The weighted sum of the experts that the router chooses for each token, and of the MLP that computes every
        token: [T, hidden] -> [T, hidden]. `routed`: what the router sees, if it is not `hidden`."""

    def logits(self, project: Linear | None, head: Linear, hidden: Tensor) -> Tensor:
        """[R, hidden] through the projection, where there is one, and the head: [R, vocab_size] in the model's dtype or
        float32."""
