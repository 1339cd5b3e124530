"""Loading of the kernels of mixers with a state, as `touch` does it for the others. It is imported for models that have
such mixers."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ember.engine.description.config import DecoderConfig
from ember_kernels.convolution import convolution, convolution_step
from ember_kernels.delta_chunks import delta_chunks
from ember_kernels.gated_norm import gated_norm
from ember_kernels.selective_scan import selective_chunks, selective_step
from ember_kernels.ssd_chunks import ssd_chunks
from ember_kernels.state_math import RUNS
from ember_kernels.state_step import delta_step, ssd_step


def touch_states(config: DecoderConfig, x: Tensor, lacking: Collection[str]) -> None:
    """Launch what the layers launch, as they lay out their inputs: one launch for decodes, whose slots are those of
    padding, and one for prompts, whose runs have no tokens. `x`: zeros [tokens, hidden]. `lacking`: what torch
    computes."""
    mixers = set(map(config.mixer, range(config.num_layers)))
    if config.conv is not None and "conv" in mixers and "convolve" not in lacking:
        _convolve(x, config.conv.kernel, config.conv.bias, silu=False)
    if config.delta is not None and "delta" in mixers:
        _touch_delta(config, x, lacking)
    if config.ssd is not None and ("ssd" in mixers or config.ssd_beside_attention):
        _touch_ssd(config, x, lacking)
    if config.selective is not None and "selective" in mixers:
        _touch_selective(config, x, lacking)


def _touch_delta(config: DecoderConfig, x: Tensor, lacking: Collection[str]) -> None:
    part = config.delta
    assert part is not None
    qkv, gate = x.new_zeros(len(x), part.channels + part.value_size).split([part.channels, part.value_size], dim=-1)
    if "convolve" not in lacking:
        qkv = _convolve(qkv, part.kernel, False, silu=True)
    mixed = x.new_zeros(len(x), part.value_heads, part.value_dim)
    if "delta_rule" not in lacking:
        (reads, writes), _, runs = _places(x)
        decay = x.new_zeros(part.value_heads, dtype=torch.float32)
        states = x.new_zeros((1, part.value_heads, part.key_dim, part.value_dim), dtype=torch.float32)
        given = qkv.contiguous(), x.new_zeros(len(x), 2 * part.value_heads), decay, decay, states
        delta_step(*given, reads, writes, key_heads=part.key_heads, tiled=part.tiled, out=mixed)
        delta_chunks(*given, runs, key_heads=part.key_heads, tiled=part.tiled, out=mixed)
    if "gated_norm" not in lacking:
        weight = x.new_zeros(part.value_dim)
        gated_norm(mixed, gate.view(mixed.shape), weight, config.norm_eps, gate_first=False)


def _touch_ssd(config: DecoderConfig, x: Tensor, lacking: Collection[str]) -> None:
    part = config.ssd
    assert part is not None
    sizes = [part.inner_size, part.channels, part.heads]
    gate, inputs, dt = x.new_zeros(len(x), sum(sizes)).split(sizes, dim=-1)
    if "convolve" not in lacking:
        inputs = _convolve(inputs, part.kernel, part.conv_bias, silu=True)
    scanned = x.new_zeros((len(x), part.heads, part.head_dim), dtype=torch.float32)
    if "scan" not in lacking:
        (reads, writes), _, runs = _places(x)
        numbers = x.new_zeros(part.heads, dtype=torch.float32)
        states = x.new_zeros((1, part.heads, part.state_dim, part.head_dim), dtype=torch.float32)
        given = inputs.contiguous(), dt if part.dt_scale == 1.0 else dt.contiguous(), numbers, numbers, numbers, states
        limits = part.least_dt, part.most_dt
        ssd_step(*given, reads, writes, groups=part.groups, limits=limits, out=scanned)
        ssd_chunks(*given, runs, groups=part.groups, limits=limits, out=scanned)
    if part.norm != "none" and "gated_norm" not in lacking:
        of_groups = part.groups, -1
        gate = (gate if part.gate_scale == 1.0 else gate.contiguous()).unflatten(1, of_groups)
        weight = x.new_zeros(part.inner_size).unflatten(0, of_groups)
        is_first = part.norm == "after_gate"
        gated_norm(scanned.flatten(1).unflatten(1, of_groups), gate, weight, config.norm_eps, gate_first=is_first)


def _touch_selective(config: DecoderConfig, x: Tensor, lacking: Collection[str]) -> None:
    part = config.selective
    assert part is not None
    inputs = x.new_zeros(len(x), 2 * part.inner_size)[:, : part.inner_size]
    if "convolve" not in lacking:
        inputs = _convolve(inputs, part.kernel, part.conv_bias, silu=True)
    if "selective_scan" not in lacking:
        (reads, writes), _, runs = _places(x)
        out = x.new_zeros((len(x), part.inner_size), dtype=torch.float32)
        rates = x.new_zeros(len(x), part.dt_rank + 2 * part.state_dim)
        b, c = rates[:, part.dt_rank :].chunk(2, dim=-1)
        given = inputs.contiguous(), x.new_zeros(out.shape), b, c
        states = out.new_zeros(1, 1, part.state_dim, part.inner_size)
        numbers = states[0, 0], out[0], states
        selective_step(*given, *numbers, reads, writes, out=out)
        selective_chunks(*given, *numbers, runs, out=out)


def _convolve(x: Tensor, kernel: int, has_bias: bool, *, silu: bool) -> Tensor:
    channels = x.shape[1]
    weight = x.new_zeros((kernel, channels), dtype=torch.float32)
    windows = weight.new_zeros(1, kernel - 1, channels)
    given = weight, weight[0] if has_bias else None, windows
    (reads, writes), starts, runs = _places(x)
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    convolution_step(x, *given, reads, writes, silu=silu, out=out)
    return convolution(x, *given, starts, runs, silu=silu, out=out)


def _places(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The slots of decodes that are padding, and the first tokens and the runs of one prompt that has no tokens."""
    slots = torch.full((2, len(x)), -1, dtype=torch.int32, device=x.device)
    runs = torch.full((3, RUNS + 1), -1, dtype=torch.int32, device=x.device)
    runs[0] = 0
    return slots, torch.zeros(2, dtype=torch.int32, device=x.device), runs
