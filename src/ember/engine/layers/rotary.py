"""Rotary position embedding (RoPE, arXiv 2104.09864), with dimensions paired by halves ("NeoX") or interleaved.

The angles of a step's tokens are computed once per step, in float32, and shared by all layers. That takes a few
microseconds. A table for the whole context would lengthen the boot of a long-context model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.engine.description.rope_config import RopeConfig


@dataclass(slots=True)
class Rotary:
    """Angles and rotation of the first `rotary_dim` dimensions of each head."""

    inverse_frequencies: Tensor  # [rotary_dim / 2] float32
    attention_factor: float
    rotary_dim: int
    interleaved: bool
    query_beta: float
    original_positions: int

    @classmethod
    def build(cls, config: RopeConfig, device: torch.device) -> Rotary:
        frequencies = inverse_frequencies(config).to(device) * (-1 if config.reversed else 1)
        return cls(
            frequencies,
            attention_factor(config),
            config.rotary_dim,
            config.interleaved,
            config.query_beta,
            config.original_max_position_embeddings,
        )

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines, and sines that are negative for the first of each pair, of [T] positions: two [T, 1, rotary_dim]."""
        angles = positions[:, None].float() * self.inverse_frequencies  # [T, rotary_dim / 2]
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        if self.interleaved:
            cosines, sines = torch.stack((cos, cos), dim=-1).flatten(1), torch.stack((-sin, sin), dim=-1).flatten(1)
        else:
            cosines, sines = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        cosines, sines = cosines.to(dtype), sines.to(dtype)
        return cosines[:, None], sines[:, None]

    def query_scales(self, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The factors of the queries at [T] positions, [T, 1, 1]; None: they are not scaled."""
        return query_scales(positions, self.query_beta, self.original_positions, dtype) if self.query_beta else None

    def rotate(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Rotate [T, heads, head_dim] by `angles`. Dimensions from `rotary_dim` on are not changed."""
        half = self.rotary_dim // 2
        turned = heads if self.rotary_dim == heads.shape[-1] else heads[..., : self.rotary_dim]
        if self.interleaved:
            swapped = turned.unflatten(-1, (half, 2)).flip(-1).flatten(-2)
        else:
            swapped = torch.cat((turned[..., half:], turned[..., :half]), dim=-1)
        rotated = torch.addcmul(turned * cosines, swapped, sines)
        if turned is heads:
            return rotated
        return torch.cat((rotated, heads[..., self.rotary_dim :]), dim=-1)


def query_scales(lengths: Tensor, beta: float, original: int, dtype: torch.dtype) -> Tensor:
    """Factors of queries [T, 1, 1], which grow with the logarithm of the context's length (arXiv 2501.19399)."""
    return (1 + beta * torch.log1p((lengths // original).float())).to(dtype)[:, None, None]


def inverse_frequencies(config: RopeConfig) -> Tensor:
    """[rotary_dim / 2] float32: radians per position of each pair of dimensions."""
    steps = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    if config.kind == "longrope":
        divisors = config.long_factor if _is_long(config) else config.short_factor
        return 1.0 / (torch.tensor(divisors, dtype=torch.float32) * config.theta**steps)
    frequencies = 1.0 / _dynamic_theta(config) ** steps
    if config.kind == "proportional":
        frequencies[config.num_pairs :] = 0.0
        return frequencies / config.factor
    if config.kind == "linear":
        return frequencies / config.factor
    if config.kind == "llama3":
        return _llama3(config, frequencies)
    if config.kind == "yarn":
        return _yarn(config, frequencies)
    return frequencies


def attention_factor(config: RopeConfig) -> float:
    """The factor of cosines and sines."""
    if config.long_attention_factor is not None and _is_long(config):
        return config.long_attention_factor
    return config.attention_factor


def _is_long(config: RopeConfig) -> bool:
    return config.served_length > config.original_max_position_embeddings


def _dynamic_theta(config: RopeConfig) -> float:
    """The base, of the kind dynamic enlarged so that the slowest pair turns as far at the served length as it did at
    the original one."""
    if config.kind != "dynamic" or not _is_long(config):
        return config.theta
    stretch = config.factor * config.served_length / config.original_max_position_embeddings - (config.factor - 1)
    return float(config.theta * stretch ** (config.rotary_dim / (config.rotary_dim - 2)))


def _llama3(config: RopeConfig, frequencies: Tensor) -> Tensor:
    """Llama 3.1's frequencies: low ones are divided by `factor`, high ones kept, those between interpolated. Where both
    limits are equal, as in Llama 4 Scout, none are between."""
    turns = config.original_max_position_embeddings * frequencies / (2 * math.pi)  # full turns in the original context
    low, high = config.low_freq_factor, config.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0) if high > low else (turns >= low).to(turns.dtype)
    return frequencies * kept + frequencies / config.factor * (1 - kept)


def _yarn(config: RopeConfig, frequencies: Tensor) -> Tensor:
    """YaRN's "NTK by parts" (arXiv 2309.00071, section 3.2): a linear ramp over dimensions from kept to divided."""

    def dimension(turns: float) -> float:
        length = config.original_max_position_embeddings / (turns * 2 * math.pi)
        return config.rotary_dim * math.log(length) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    if low == high:
        high += 0.001
    pairs = torch.arange(config.rotary_dim // 2, dtype=torch.float32)
    slowed = ((pairs - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies / config.factor * slowed + frequencies * (1 - slowed)
