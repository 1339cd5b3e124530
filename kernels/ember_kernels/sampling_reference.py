"""The specification of `sampling.sample`, in torch: with sorts, in float32, one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ember_kernels.sampling import Constraints, Workspace, unpack_bitmask
from ember_kernels.step_update import SAMPLING_FIELDS

_MASK32 = (1 << 32) - 1
_MASK64 = (1 << 64) - 1


def sample_reference(
    logits: Tensor,
    sampling: Tensor,
    positions: Tensor,
    *,
    slots: Tensor | None = None,
    constraints: Constraints | None = None,
    has_filters: bool = True,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample a token for each row. Arguments and results are those of `sampling.sample`."""
    limits = constraints or Constraints()
    token_ids = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    is_broken = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    for row in range(len(logits)):
        values = row_parameters(sampling[:, row])
        slot = -1 if slots is None else int(slots[row])
        mask_row = -1 if limits.mask_rows is None else int(limits.mask_rows[row])
        x = process_row(logits[row].float(), values, slot, mask_row, limits)
        is_broken[row] = bool(x.isnan().any()) or not bool((x > float("-inf")).any())
        x = x.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
        if values["temperature"] > 0:
            x = x / torch.tensor(values["temperature"], device=x.device)  # by a number, CUDA multiplies with 1 / it
            kept = kept_tokens(x, values if has_filters else values | {"top_k": 0, "top_p": 1.0, "min_p": 0.0})
            noise = gumbel(int(values["seed"]), int(positions[row]), len(x)).to(x.device)
            x = torch.where(kept, x + noise, float("-inf"))
        token = int(torch.argsort(x, descending=True, stable=True)[0])
        token_ids[row] = token
        if limits.output_counts is not None and slot >= 0:
            limits.output_counts[slot, token] += 1
    return token_ids, is_broken


def row_parameters(words: Tensor) -> dict[str, float]:
    """One column of the table of parameters, by name; the seed as one number."""
    integers = dict(zip(SAMPLING_FIELDS, words.tolist(), strict=True))
    values = dict(zip(SAMPLING_FIELDS, words.contiguous().view(torch.float32).tolist(), strict=True))
    values["top_k"] = integers["top_k"]
    values["seed"] = (integers["seed_low"] & _MASK32) | (integers["seed_high"] & _MASK32) << 32
    return values


def process_row(x: Tensor, values: dict[str, float], slot: int, mask_row: int, limits: Constraints) -> Tensor:
    """Bias, mask and penalties. x: [vocab] float32."""
    vocab = len(x)
    x = x.clone()
    if slot >= 0 and limits.bias_ids is not None and limits.bias_values is not None and limits.bias_counts is not None:
        count = int(limits.bias_counts[slot])
        x[limits.bias_ids[slot, :count].long()] += limits.bias_values[slot, :count]
    if mask_row >= 0 and limits.mask is not None:
        x = torch.where(unpack_bitmask(limits.mask[mask_row], vocab), x, float("-inf"))
    if slot >= 0 and limits.output_counts is not None and limits.prompt_mask is not None:
        counts = limits.output_counts[slot].float()
        is_seen = unpack_bitmask(limits.prompt_mask[slot], vocab) | (counts > 0)
        repetition = torch.tensor(values["repetition_penalty"], device=x.device)
        x = torch.where(is_seen, torch.where(x > 0, x / repetition, x * repetition), x)
        penalty = values["frequency_penalty"] * counts + values["presence_penalty"]
        x = torch.where(counts > 0, x - penalty, x)
    return x


def kept_tokens(x: Tensor, values: dict[str, float]) -> Tensor:
    """Which tokens min-p, top-k and top-p keep, bool [vocab]. x: [vocab] float32 scaled logits without NaN."""
    largest = x.max()
    kept = x > float("-inf")
    if values["min_p"] > 0:
        kept &= x >= largest + torch.tensor(values["min_p"], dtype=torch.float32).log().to(x.device)
    order = torch.argsort(x, descending=True, stable=True)
    order = order[kept[order]]
    if 0 < values["top_k"] < len(x):
        order = order[: int(values["top_k"])]
    if values["top_p"] < 1.0 and len(order):
        masses = ((x[order] - largest).exp() * float(1 << 40)).to(torch.int64)
        before = masses.cumsum(dim=0) - masses
        target = max(1, int(values["top_p"] * float(masses.sum())))
        order = order[before < target]
    return torch.zeros_like(kept).index_fill_(0, order, True)


def gumbel(seed: int, position: int, vocab: int) -> Tensor:
    """The noise of every token, float32 [vocab]."""
    stream = _splitmix64(_splitmix64(seed & _MASK64) ^ (position & _MASK64))
    bits = _mix32(torch.arange(vocab, dtype=torch.int64) ^ (stream & _MASK32))
    bits = _mix32(bits ^ (stream >> 32))
    v = ((bits.float() + 0.5) * 2.0**-32).clamp(max=0.99999994)
    return -(-torch.log1p(-v)).log()


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _mix32(x: Tensor) -> Tensor:
    """int64 holding 32 bits; products wrap modulo 2^64, which leaves the low 32 bits right."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)
