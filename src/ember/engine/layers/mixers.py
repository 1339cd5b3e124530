"""Mixers with a state: the gated delta rule, Mamba 1 and 2 and the short convolution, and what they consist of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ember.engine.description.mixers import DeltaConfig, SelectiveConfig, SsdConfig
from ember.engine.layers.linear import Linear
from ember.engine.layers.norm import RMSNorm


@dataclass(slots=True)
class Convolution:
    """A causal convolution of each channel with its own last inputs."""

    weight: Tensor  # [kernel, channels] float32, the factor of the current input last
    bias: Tensor | None  # [channels] float32
    has_silu: bool  # whether its output goes through SiLU


@dataclass(slots=True)
class GatedNorm:
    """RMSNorm of each head, times the SiLU of a gate."""

    weight: Tensor  # [size], or [heads, size]
    eps: float
    gate_first: bool = False  # whether the gate is applied before the norm


@dataclass(slots=True)
class ShortConvolution:
    """A short convolution with gates (`description.mixers.ConvConfig`)."""

    inputs: Linear  # [3 * hidden, hidden]: the gate of the input, that of the output, and the input
    conv: Convolution
    output: Linear  # [hidden, hidden]
    state: tuple[int, int]  # the group of its state, and its index there (`StateCache`)

    def matrices(self) -> Iterator[Linear]:
        """Its matrices, in the order of the forward pass."""
        yield from (self.inputs, self.output)


@dataclass(slots=True)
class Delta:
    """The gated delta rule (`description.mixers.DeltaConfig`)."""

    config: DeltaConfig
    inputs: Linear  # [channels + value_size, hidden]: query, key and value of all heads, and the gates of its output
    rates: Linear  # [2 * value_heads, hidden]: beta and alpha of each value head
    conv: Convolution  # of query, key and value
    decay: Tensor  # [value_heads] float32, negative: the state decays by exp(decay * softplus(alpha + dt_bias))
    dt_bias: Tensor  # [value_heads] float32
    norm: GatedNorm
    output: Linear  # [hidden, value_size]
    state: tuple[int, int]  # the group of its state, and its index there (`StateCache`)

    def matrices(self) -> Iterator[Linear]:
        """Its matrices, in the order of the forward pass."""
        yield from (self.inputs, self.rates, self.output)


@dataclass(slots=True)
class Ssd:
    """Mamba 2 (`description.mixers.SsdConfig`)."""

    config: SsdConfig
    inputs: Linear  # [inner_size + channels + heads, hidden]: gates, the inputs x, b and c of the convolution, dt
    conv: Convolution
    decay: Tensor  # [heads] float32, negative: the state decays by exp(decay * dt)
    dt_bias: Tensor  # [heads] float32, added before the softplus of dt
    skip: Tensor  # [heads] float32, factor of x in the output
    norm: GatedNorm | None  # None: the output is multiplied by the SiLU of the gate alone
    output: Linear  # [hidden, inner_size]
    state: tuple[int, int]  # the group of its state, and its index there (`StateCache`)

    def matrices(self) -> Iterator[Linear]:
        """Its matrices, in the order of the forward pass."""
        yield from (self.inputs, self.output)


@dataclass(slots=True)
class Selective:
    """Mamba 1 (`description.mixers.SelectiveConfig`)."""

    config: SelectiveConfig
    inputs: Linear  # [2 * inner_size, hidden]: x, and the gates of the output
    conv: Convolution  # of x
    rates: Linear  # [dt_rank + 2 * state_dim, inner_size]: what dt is made of, b, and c
    norms: tuple[RMSNorm, RMSNorm, RMSNorm] | None  # of these three
    dt: Linear  # [inner_size, dt_rank]
    decay: Tensor  # [state_dim, inner_size] float32, negative: the state decays by exp(decay * dt)
    skip: Tensor  # [inner_size] float32, factor of x in the output
    output: Linear  # [hidden, inner_size]
    state: tuple[int, int]  # the group of its state, and its index there (`StateCache`)

    def matrices(self) -> Iterator[Linear]:
        """Its matrices, in the order of the forward pass."""
        yield from (self.inputs, self.rates, self.dt, self.output)


StateMixer = Delta | ShortConvolution | Ssd | Selective
