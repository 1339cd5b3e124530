"""What mixes the tokens of a layer in place of attention, as data. This module does not import torch.

These mixers have a state of fixed size for each sequence: the last inputs of a short convolution, and a matrix for each
head that every token changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import Literal, NamedTuple

STATE_BYTES = 4  # of a number in a state, which is float32
STATE_CHUNK = 64  # most tokens that are computed together before the state is changed


@dataclass(frozen=True, slots=True)
class SelectiveNames:
    """The checkpoint's names for Mamba 1, relative to the layer."""

    inputs: str
    conv: str
    rates: str
    dt: str
    decay: str  # the logarithm of the rates of decay
    skip: str
    output: str
    dt_norm: str = ""
    b_norm: str = ""
    c_norm: str = ""


SelectiveNorm = Literal["weighted", "plain"]
SsdNorm = Literal["after_gate", "before_gate", "none"]


class StateShape(NamedTuple):
    """The state of one sequence in one layer."""

    window: int  # inputs of the convolution before the next one
    channels: int  # of the convolution
    matrix: tuple[int, ...]  # [heads, rows, columns]; (): there is none

    @property
    def nbytes(self) -> int:
        return STATE_BYTES * (self.window * self.channels + (prod(self.matrix) if self.matrix else 0))


@dataclass(frozen=True, slots=True)
class DeltaNames:
    """The checkpoint's names for the gated delta rule, relative to the layer."""

    conv: str
    dt_bias: str
    decay: str  # the logarithm of each head's rate of decay
    norm: str
    output: str
    qkv: str = ""  # query, key, value of all heads
    gate: str = ""
    beta: str = ""
    alpha: str = ""
    qkv_gate: str = ""  # one matrix in place of `qkv` and `gate`: query, key, value and gate of each key head in turn
    beta_alpha: str = ""  # one in place of `beta` and `alpha`: those of each key head's value heads in turn


@dataclass(frozen=True, slots=True)
class DeltaConfig:
    """The gated delta rule (arXiv 2412.06464): linear attention whose state is a matrix S of each value head.

    S <- a S + k (b (v - a S^T k))^T, and the output is S^T q. A key head serves consecutive value heads.
    """

    key_heads: int
    value_heads: int
    key_dim: int  # of a head
    value_dim: int
    kernel: int  # inputs of the convolution of queries, keys and values, the current one included
    tiled: bool = False  # value head i has key head i % key_heads, in place of consecutive value heads for each

    @property
    def key_size(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        return 2 * self.key_size + self.value_size

    @property
    def state(self) -> StateShape:
        return StateShape(self.kernel - 1, self.channels, (self.value_heads, self.key_dim, self.value_dim))


@dataclass(frozen=True, slots=True)
class ConvNames:
    """The checkpoint's names for a short convolution, relative to the layer."""

    inputs: str
    conv: str
    output: str


@dataclass(frozen=True, slots=True)
class ConvConfig:
    """A short convolution with gates: the output is W (c * conv(b * x)), where b, c and x are projections."""

    kernel: int  # inputs of the convolution, the current one included
    bias: bool = False  # of the convolution and of both projections

    def state(self, channels: int) -> StateShape:
        return StateShape(self.kernel - 1, channels, ())


@dataclass(frozen=True, slots=True)
class SsdNames:
    """The checkpoint's names for Mamba 2, relative to the layer."""

    inputs: str
    conv: str
    dt_bias: str
    decay: str  # the logarithm of each head's rate of decay
    skip: str
    norm: str
    output: str


@dataclass(frozen=True, slots=True)
class SsdConfig:
    """Mamba 2 (arXiv 2405.21060): linear attention whose state is a matrix S of each head.

    S <- a S + b (dt x)^T with a = exp(A dt), and the output is S^T c + D x. The heads of a group share b and c.
    """

    heads: int
    head_dim: int
    groups: int
    state_dim: int  # of b and c
    kernel: int  # inputs of the convolution of x, b and c, the current one included
    conv_bias: bool = True
    bias: bool = False  # of the first projection
    output_bias: bool = False
    # The norm of the output, of each group: after the output is multiplied by the SiLU of the gate, before that, or
    # none.
    norm: SsdNorm = "after_gate"
    least_dt: float = 0.0
    most_dt: float = inf
    # Factors of the hidden states, of the gate, of x, b and c before the convolution, of dt, and of the output.
    input_scale: float = 1.0
    gate_scale: float = 1.0
    channel_scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    dt_scale: float = 1.0
    output_scale: float = 1.0

    @property
    def inner_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def group_size(self) -> int:
        """The size of b and of c of all groups."""
        return self.groups * self.state_dim

    @property
    def channels(self) -> int:
        return self.inner_size + 2 * self.group_size

    @property
    def state(self) -> StateShape:
        return StateShape(self.kernel - 1, self.channels, (self.heads, self.state_dim, self.head_dim))


@dataclass(frozen=True, slots=True)
class SelectiveConfig:
    """Mamba 1 (arXiv 2312.00752): every channel i has a state of its own, of which each number s fades at its own rate.

    S[s, i] <- exp(A[s, i] dt[i]) S[s, i] + b[s] dt[i] x[i], and the output is S^T c + D x. dt, b and c are projections
    of x, that of dt in two parts.
    """

    inner_size: int
    state_dim: int  # of b and c
    dt_rank: int  # between the two projections of dt
    kernel: int  # inputs of the convolution of x, the current one included
    conv_bias: bool = True
    bias: bool = False  # of the first and of the last projection
    norm: SelectiveNorm | None = None  # RMSNorm of dt (between its projections), b and c, with weights or without
    norm_eps: float = 1e-6

    @property
    def state(self) -> StateShape:
        return StateShape(self.kernel - 1, self.inner_size, (1, self.state_dim, self.inner_size))
