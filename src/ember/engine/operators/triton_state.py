"""Mixers with a state in Triton's kernels. torch makes nothing of them, so that steps can be recorded.

The slots of states are on the device: those that decodes read and write, and the runs of prompts
(`ember_kernels.state_math`), of which a sequence has a few. This module is imported for models that have states:
loading its kernels takes some of a boot's time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ember.engine.layers.mixers import Convolution, Delta, GatedNorm, Ssd
from ember.engine.operators.triton_step import TritonStep
from ember_kernels.convolution import convolution, convolution_step
from ember_kernels.gated_norm import gated_norm as launch_gated_norm
from ember_kernels.state_chunks import delta_chunks, ssd_chunks
from ember_kernels.state_step import delta_step, ssd_step


def convolve(conv: Convolution, x: Tensor, state: tuple[int, int], step: TritonStep) -> Tensor:
    """`Operators.convolve` (`operators.base`): one launch for the decodes and one for the prompts."""
    group, layer = state
    windows = step.cache.states[group].windows[layer]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    given = conv.weight, conv.bias, windows
    if (decodes := step.decodes) is not None:
        slots, count = decodes.states, len(decodes.context_lens)
        assert slots is not None, "a model with states has slots of them"
        convolution_step(x[:count], *given, *slots, silu=conv.has_silu, out=out[:count])
    if (chunks := step.chunks) is not None:
        assert chunks.runs is not None
        convolution(x, *given, chunks.starts, chunks.runs, silu=conv.has_silu, out=out)
    return out


def delta_rule(part: Delta, qkv: Tensor, rates: Tensor, step: TritonStep) -> Tensor:
    """`Operators.delta_rule` (`operators.base`)."""
    config, (group, layer) = part.config, part.state
    states = step.cache.states[group].matrices[layer]
    out = qkv.new_empty((len(qkv), config.value_heads, config.value_dim))
    given = part.decay, part.dt_bias, states
    keys: dict[str, Any] = {"key_heads": config.key_heads, "tiled": config.tiled}
    if (decodes := step.decodes) is not None:
        slots, count = decodes.states, len(decodes.context_lens)
        assert slots is not None
        delta_step(qkv[:count], rates[:count], *given, *slots, **keys, out=out[:count])
    if (chunks := step.chunks) is not None:
        assert chunks.runs is not None
        delta_chunks(qkv, rates, *given, chunks.runs, **keys, out=out)
    return out


def scan(part: Ssd, x: Tensor, dt: Tensor, step: TritonStep) -> Tensor:
    """`Operators.scan` (`operators.base`)."""
    config, (group, layer) = part.config, part.state
    states = step.cache.states[group].matrices[layer]
    out = x.new_empty((len(x), config.heads, config.head_dim), dtype=torch.float32)
    given = part.decay, part.dt_bias, part.skip, states
    limits = config.least_dt, config.most_dt
    if (decodes := step.decodes) is not None:
        slots, count = decodes.states, len(decodes.context_lens)
        assert slots is not None
        ssd_step(x[:count], dt[:count], *given, *slots, groups=config.groups, limits=limits, out=out[:count])
    if (chunks := step.chunks) is not None:
        assert chunks.runs is not None
        ssd_chunks(x, dt, *given, chunks.runs, groups=config.groups, limits=limits, out=out)
    return out


def gated_norm(norm: GatedNorm, x: Tensor, gate: Tensor) -> Tensor:
    """`Operators.gated_norm` (`operators.base`)."""
    return launch_gated_norm(x, gate, norm.weight, norm.eps, gate_first=norm.gate_first)
