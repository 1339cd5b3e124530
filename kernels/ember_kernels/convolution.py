# mypy: disable-error-code="no-untyped-def"
"""The causal convolution of each channel with its own last inputs, which are a part of a sequence's state.

A layer's windows are [slots, window, channels] in float32, the last inputs before the next one. One kernel takes one
token of each sequence and shifts the window, the other ragged prompts with the runs of `state_math`: a program has some
tokens times some channels, and that with a sequence's first tokens, the only one that reads the old window, writes the
windows after all of its runs.

Bytes of a step: rows * channels * (8 * window + 2 * size of the type).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ember_kernels.attention import STARTS_BLOCK, prompt_tile
from ember_kernels.launch import cdiv, direct
from ember_kernels.rounding import rounded
from ember_kernels.specialisation import Specialisation
from ember_kernels.state_math import RUNS, check_runs, each_run, runs_of_steps

BLOCK_C = 128  # channels: one for each thread, which alone reads and writes the channel's window
BLOCK_T = 32
WARPS = 4


@triton.jit
def _finished(made, bias_ptr, columns, mask, SILU: tl.constexpr, ROWS: tl.constexpr):
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=mask, other=0.0)
        made += bias[None, :] if ROWS else bias
    return made * tl.sigmoid(made) if SILU else made


@direct
@triton.jit(do_not_specialize=["reads_ptr", "writes_ptr"])
def convolution_step_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    windows_ptr,
    reads_ptr,
    writes_ptr,
    out_ptr,
    x_stride,
    channels,
    WINDOW: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    write = tl.load(writes_ptr + row).to(tl.int64)
    if write < 0:
        return
    read = tl.load(reads_ptr + row).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = columns < channels
    has_old = columns < tl.where(read >= 0, channels, 0)
    current = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0).to(tl.float32)
    made = current * tl.load(weight_ptr + WINDOW * channels + columns, mask=mask, other=0.0)
    for tap in tl.static_range(WINDOW):
        old_ptr = windows_ptr + (read * WINDOW + tap) * channels
        old = tl.load(old_ptr + columns, mask=has_old, other=0.0)
        made += old * tl.load(weight_ptr + tap * channels + columns, mask=mask, other=0.0)
        if tap > 0:
            tl.store(windows_ptr + (write * WINDOW + tap - 1) * channels + columns, old, mask=mask)
    if WINDOW > 0:
        tl.store(windows_ptr + (write * WINDOW + WINDOW - 1) * channels + columns, current, mask=mask)
    made = _finished(made, bias_ptr, columns, mask, SILU, False)
    tl.store(out_ptr + row * channels + columns, rounded(made, out_ptr.dtype.element_ty), mask=mask)


@direct
@triton.jit(do_not_specialize=["starts_ptr", "runs_ptr", "num_seqs", "runs_stride"])
def convolution_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    windows_ptr,
    starts_ptr,
    runs_ptr,
    out_ptr,
    num_seqs,
    runs_stride,
    x_stride,
    channels,
    RUNS: tl.constexpr,
    WINDOW: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STARTS_BLOCK: tl.constexpr,
):
    seq, start, count, first = prompt_tile(starts_ptr, num_seqs, tl.program_id(0), BLOCK_T, STARTS_BLOCK)
    if first >= count:
        return
    tokens = first + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = columns < channels
    sequence_ptr = x_ptr + start.to(tl.int64) * x_stride
    runs_ptr += seq * RUNS
    read = tl.load(runs_ptr + runs_stride).to(tl.int64)
    old_ptr = windows_ptr + read * WINDOW * channels
    has_old = columns < tl.where(read >= 0, channels, 0)
    made = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for tap in tl.static_range(WINDOW + 1):
        at = tokens - WINDOW + tap
        given = mask[None, :] & ((at >= 0) & (tokens < count))[:, None]
        value_ptr = sequence_ptr + at.to(tl.int64)[:, None] * x_stride + columns[None, :]
        value = tl.load(value_ptr, mask=given, other=0.0).to(tl.float32)
        made += value * tl.load(weight_ptr + tap * channels + columns, mask=mask, other=0.0)[None, :]
    if first == 0:
        for tap in tl.static_range(WINDOW):
            at = tokens - WINDOW + tap
            before_ptr = old_ptr + (at + WINDOW)[:, None] * channels + columns[None, :]
            before = tl.load(before_ptr, mask=has_old[None, :] & (at < 0)[:, None], other=0.0)
            made += before * tl.load(weight_ptr + tap * channels + columns, mask=mask, other=0.0)[None, :]
    made = _finished(made, bias_ptr, columns, mask, SILU, True)
    out_at = (start + tokens).to(tl.int64)[:, None] * channels + columns[None, :]
    made = rounded(made, out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_at, made, mask=mask[None, :] & (tokens < count)[:, None])
    if first == 0:
        tl.debug_barrier()  # the old window may be overwritten
        for run in tl.static_range(RUNS):
            end = tl.load(runs_ptr + run + 1) - start
            write = tl.load(runs_ptr + 2 * runs_stride + run).to(tl.int64)
            if end > tl.load(runs_ptr + run) - start:
                for tap in tl.static_range(WINDOW):
                    source = end - WINDOW + tap
                    if source >= 0:
                        last = tl.load(sequence_ptr + source.to(tl.int64) * x_stride + columns, mask=mask, other=0.0)
                        last = last.to(tl.float32)
                    else:
                        last = tl.load(old_ptr + (source + WINDOW) * channels + columns, mask=has_old, other=0.0)
                    tl.store(windows_ptr + (write * WINDOW + tap) * channels + columns, last, mask=mask)


def convolution_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Tensor,
    reads: Tensor,
    writes: Tensor,
    *,
    silu: bool,
    out: Tensor,
) -> Tensor:
    """The convolution of one token of each sequence.

    x, out         [seqs, channels], rows contiguous; those of out lie one after the other
    weight, bias   float32 [window + 1, channels], the factor of the current input last; float32 [channels] or None
    windows        float32 [slots, window, channels]
    reads, writes  int32 [seqs]: slots; -1: there is no state yet, and padding, whose row of out is not written
    """
    window, channels = _check(x, weight, windows, out)
    if len(writes):
        convolution_step_kernel[(cdiv(channels, BLOCK_C), len(writes))](
            x,
            weight,
            bias,
            windows,
            reads,
            writes,
            out,
            x.stride(0),
            channels,
            WINDOW=window,
            SILU=silu,
            BLOCK_C=BLOCK_C,
            num_warps=WARPS,
            num_stages=1,
        )
    return out


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Tensor,
    starts: Tensor,
    runs: Tensor,
    *,
    silu: bool,
    out: Tensor,
) -> Tensor:
    """The convolution of ragged prompts.

    starts: int32 [seqs + 1], first token of each sequence and the end of the last. runs: those of the sequences
    (`state_math`). The other arguments as in `convolution_step`; rows of no sequence are not written.
    """
    window, channels = _check(x, weight, windows, out)
    num_seqs = check_runs(runs)
    if starts.shape != (num_seqs + 1,):
        raise ValueError(f"starts must be [{num_seqs + 1}] for the runs of {num_seqs} sequences")
    if window > BLOCK_T:
        raise ValueError(f"a window of {window} inputs is above {BLOCK_T}")
    if num_seqs and len(x):
        convolution_kernel[(len(x) // BLOCK_T + num_seqs, cdiv(channels, BLOCK_C))](
            x,
            weight,
            bias,
            windows,
            starts,
            runs,
            out,
            num_seqs,
            runs.stride(0),
            x.stride(0),
            channels,
            RUNS=RUNS,
            WINDOW=window,
            SILU=silu,
            BLOCK_T=BLOCK_T,
            BLOCK_C=BLOCK_C,
            STARTS_BLOCK=STARTS_BLOCK,
            num_warps=WARPS,
            num_stages=1,
        )
    return out


def convolution_step_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Tensor,
    reads: Tensor,
    writes: Tensor,
    *,
    silu: bool,
    out: Tensor,
) -> Tensor:
    """The specification of `convolution_step`."""
    return _reference(x, weight, bias, windows, runs_of_steps(reads, writes), silu, out)


def convolution_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Tensor,
    starts: Tensor,
    runs: Tensor,
    *,
    silu: bool,
    out: Tensor,
) -> Tensor:
    """The specification of `convolution`."""
    return _reference(x, weight, bias, windows, each_run(runs), silu, out)


def _reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Tensor,
    runs: list[tuple[int, int, int, int]],
    silu: bool,
    out: Tensor,
) -> Tensor:
    window = windows.shape[1]
    for first, count, read, write in runs:
        before = torch.zeros_like(windows[0]) if read < 0 else windows[read]
        inputs = torch.cat((before, x[first : first + count].float()))
        made = F.conv1d(inputs.t()[None], weight.t()[:, None], bias, groups=x.shape[1])[0].t()
        out[first : first + count] = (F.silu(made) if silu else made).to(out.dtype)
        windows[write] = inputs[len(inputs) - window :]
    return out


def _check(x: Tensor, weight: Tensor, windows: Tensor, out: Tensor) -> tuple[int, int]:
    """The window's length and the number of channels. Raise ValueError for what the kernels do not support."""
    window, channels = windows.shape[1:]
    if windows.dtype != torch.float32 or not windows.is_contiguous():
        raise ValueError("windows must be contiguous float32")
    if weight.shape != (window + 1, channels) or weight.dtype != torch.float32 or not weight.is_contiguous():
        raise ValueError(f"the weight must be contiguous float32 [{window + 1}, {channels}]")
    if x.shape[1] != channels or x.stride(1) != 1 or out.shape != x.shape or not out.is_contiguous():
        raise ValueError(f"x and out must be [tokens, {channels}] and are {list(x.shape)}, {list(out.shape)}")
    return window, channels


# The inputs before the current one, whether SiLU follows, and whether there is a bias: of the delta rule, of Mamba 2,
# of LFM2, and of LFM3.
KINDS = (
    (3, True, False),
    (3, True, True),
    *((window, False, has_bias) for window in (2, 6) for has_bias in (False, True)),
)


def specialisations(capability: int) -> Iterator[Specialisation]:
    """The row length of a projection, in which the inputs are, is not always a multiple of 16."""
    for dtype, (window, silu, has_bias), is_even in product(("bf16", "fp16", "fp32"), KINDS, (True, False)):
        pointers = {"x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "weight_ptr": "*fp32", "windows_ptr": "*fp32"}
        constants: dict[str, Any] = {"WINDOW": window, "SILU": silu, "BLOCK_C": BLOCK_C}
        if has_bias:
            pointers["bias_ptr"] = "*fp32"
        else:
            constants["bias_ptr"] = None
        signature = pointers | {"x_stride": "i32", "channels": "i32"}
        divisible = (*pointers, "channels", *(("x_stride",) if is_even else ()))
        name = (
            f"[{dtype} window{window}{' silu' if silu else ''}{' bias' if has_bias else ''}{'' if is_even else ' odd'}]"
        )
        typical = dtype == "bf16" and is_even and has_bias == (silu is False)
        slots = {"reads_ptr": "*i32", "writes_ptr": "*i32"}
        step = f"convolution_step{name}"
        yield Specialisation(step, convolution_step_kernel, signature | slots, constants, WARPS, 1, divisible, typical)
        runs = {"starts_ptr": "*i32", "runs_ptr": "*i32", "num_seqs": "i32", "runs_stride": "i32"}
        tiles = {"RUNS": RUNS, "BLOCK_T": BLOCK_T, "STARTS_BLOCK": STARTS_BLOCK}
        yield Specialisation(
            f"convolution{name}", convolution_kernel, signature | runs, constants | tiles, WARPS, 1, divisible, typical
        )
