"""Rotary positions as data. This module does not import torch, since a configuration is read before torch's import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary positions: the base frequencies of `rotary_dim` dimensions, and how `kind` rescales them.

    Sources: RoPE arXiv 2104.09864, YaRN arXiv 2309.00071, LongRoPE arXiv 2402.13753; `llama3` is Llama 3.1's
    frequency-dependent scaling, `dynamic` is NTK-aware scaling by the length.

    The frequencies of dynamic and longrope depend on the length of a sequence. Those of `served_length`, the longest
    that is served, hold for all sequences: keys in the cache stay valid, and no result depends on a batch.
    """

    rotary_dim: int
    theta: float = 10_000.0
    interleaved: bool = False  # dimensions 2i and 2i + 1 are a pair; otherwise i and i + rotary_dim / 2
    reversed: bool = False  # pairs are turned in the other direction
    kind: RopeKind = "default"
    factor: float = 1.0
    num_pairs: int = 0  # proportional: the number of pairs that are rotated; the others have frequency 0
    original_max_position_embeddings: int = 0  # dynamic, llama3, yarn, longrope, query_beta
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    query_beta: float = (
        0.0  # queries are scaled by 1 + query_beta * ln(1 + position // original_max_position_embeddings)
    )
    attention_factor: float = 1.0  # scales cos and sin; by default computed from the factor of yarn or longrope
    short_factor: tuple[float, ...] = ()  # longrope: divisor of each frequency, up to the original length
    long_factor: tuple[float, ...] = ()  # longrope: the same beyond it
    long_attention_factor: float | None = None  # longrope: beyond the original length, if it is another one
    served_length: int = 0  # dynamic, longrope: the longest sequence in tokens
