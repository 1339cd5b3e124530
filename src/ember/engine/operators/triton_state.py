"""Mixers with a state in Triton's kernels. torch makes nothing of them, so that steps can be recorded.

A layer repeats the launches of the first one with its own addresses (`ember_kernels.launch`), also those of parts of a
tensor that begin after it. Steps in which the device has more to do than the host make whole calls, so that the memory
between two kernels is not held until their end.

The slots of states are on the device: those that decodes read and write, and the runs of prompts
(`ember_kernels.state_math`), of which a sequence has a few. This module is imported for models that have states:
loading its kernels takes some of a boot's time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ember.engine.layers.mixers import Convolution, Delta, GatedNorm, Selective, Ssd
from ember.engine.operators.triton_step import MAX_REUSED_TOKENS, TritonStep
from ember_kernels.convolution import convolution, convolution_step
from ember_kernels.delta_chunks import delta_chunks
from ember_kernels.gated_norm import gated_norm as launch_gated_norm
from ember_kernels.launch import Launches
from ember_kernels.selective_scan import selective_chunks, selective_step
from ember_kernels.ssd_chunks import ssd_chunks
from ember_kernels.state_step import delta_step, ssd_step


def convolve(conv: Convolution, x: Tensor, state: tuple[int, int], step: TritonStep) -> Tensor:
    """`Operators.convolve` (`operators.base`): one launch for the decodes and one for the prompts."""
    group, layer = state
    windows = step.cache.states[group].windows[layer]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    given = conv.weight, conv.bias, windows

    def call() -> None:
        if (decodes := step.decodes) is not None:
            slots, count = decodes.states, len(decodes.context_lens)
            assert slots is not None, "a model with states has slots of them"
            convolution_step(x[:count], *given, *slots, silu=conv.has_silu, out=out[:count])
        if (chunks := step.chunks) is not None:
            assert chunks.runs is not None
            convolution(x, *given, chunks.starts, chunks.runs, silu=conv.has_silu, out=out)

    addresses = [each.data_ptr() for each in (x, out, *given) if each is not None]
    key = ("convolve", group, conv.has_silu, conv.bias is None, x.stride(0))
    _launch(step.launches, key, addresses, x.shape[0], call)
    return out


def delta_rule(part: Delta, qkv: Tensor, rates: Tensor, step: TritonStep) -> Tensor:
    """`Operators.delta_rule` (`operators.base`)."""
    config, (group, layer) = part.config, part.state
    states = step.cache.states[group].matrices[layer]
    out = qkv.new_empty((qkv.shape[0], config.value_heads, config.value_dim))
    given = part.decay, part.dt_bias, states
    keys: dict[str, Any] = {"key_heads": config.key_heads, "tiled": config.tiled}

    def call() -> None:
        if (decodes := step.decodes) is not None:
            slots, count = decodes.states, len(decodes.context_lens)
            assert slots is not None
            delta_step(qkv[:count], rates[:count], *given, *slots, **keys, out=out[:count])
        if (chunks := step.chunks) is not None:
            assert chunks.runs is not None
            delta_chunks(qkv, rates, *given, chunks.runs, **keys, out=out)

    addresses = [each.data_ptr() for each in (qkv, rates, out, *given)]
    addresses.append(addresses[0] + config.key_size * qkv.element_size())  # of the keys
    _launch(step.launches, ("delta", group, qkv.stride(0), rates.stride(0)), addresses, qkv.shape[0], call)
    return out


def scan(part: Ssd, x: Tensor, dt: Tensor, step: TritonStep) -> Tensor:
    """`Operators.scan` (`operators.base`)."""
    config, (group, layer) = part.config, part.state
    states = step.cache.states[group].matrices[layer]
    out = x.new_empty((x.shape[0], config.heads, config.head_dim), dtype=torch.float32)
    given = part.decay, part.dt_bias, part.skip, states
    limits = config.least_dt, config.most_dt

    def call() -> None:
        if (decodes := step.decodes) is not None:
            slots, count = decodes.states, len(decodes.context_lens)
            assert slots is not None
            ssd_step(x[:count], dt[:count], *given, *slots, groups=config.groups, limits=limits, out=out[:count])
        if (chunks := step.chunks) is not None:
            assert chunks.runs is not None
            ssd_chunks(x, dt, *given, chunks.runs, groups=config.groups, limits=limits, out=out)

    addresses = [each.data_ptr() for each in (x, dt, out, *given)]
    b = addresses[0] + config.inner_size * x.element_size()
    addresses += (b, b + config.group_size * x.element_size())
    _launch(step.launches, ("scan", group, x.stride(0), dt.stride(0)), addresses, x.shape[0], call)
    return out


def selective_scan(part: Selective, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, step: TritonStep) -> Tensor:
    """`Operators.selective_scan` (`operators.base`)."""
    group, layer = part.state
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    given = part.decay, part.skip, step.cache.states[group].matrices[layer]

    def call() -> None:
        if (decodes := step.decodes) is not None:
            slots, count = decodes.states, len(decodes.context_lens)
            assert slots is not None
            selective_step(x[:count], dt[:count], b[:count], c[:count], *given, *slots, out=out[:count])
        if (chunks := step.chunks) is not None:
            assert chunks.runs is not None
            selective_chunks(x, dt, b, c, *given, chunks.runs, out=out)

    addresses = [each.data_ptr() for each in (x, dt, b, c, out, *given)]
    key = ("selective", group, *(each.stride(0) for each in (x, dt, b, c)))
    _launch(step.launches, key, addresses, x.shape[0], call)
    return out


def gated_norm(norm: GatedNorm, x: Tensor, gate: Tensor, launches: Launches) -> Tensor:
    """`Operators.gated_norm` (`operators.base`)."""
    weight, out = norm.weight, torch.empty_like(x, dtype=gate.dtype)

    def call() -> None:
        launch_gated_norm(x, gate, weight, norm.eps, gate_first=norm.gate_first, out=out)

    addresses = [each.data_ptr() for each in (x, gate, weight, out)]
    key = ("gated norm", norm.eps, norm.gate_first, weight.dim(), gate.stride(0), *gate.shape[1:])
    _launch(launches, key, addresses, x.shape[0], call)
    return out


def _launch(launches: Launches, key: Hashable, addresses: list[int], num_tokens: int, call: Callable[[], None]) -> None:
    if num_tokens > MAX_REUSED_TOKENS:
        call()
    elif not launches.repeat(key, addresses):
        launches.make(key, addresses, call)
