"""The trial of a model of transformers at boot: it must say over the paged cache what it says by itself.

Two short sequences are computed whole by the model's own attention, and then over the cache in steps that mix and
divide them. A model whose tokens influence each other by anything but attention (a recurrent state, a convolution,
positions that it counts itself) says something else there, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.engine.errors import ModelError, described
from ember.engine.fallback.guard import no_exit
from ember.engine.fallback.model import ForeignModel
from ember.engine.layers.batch import Batch
from ember.engine.layers.cache import KVCache

Steps = Sequence[Sequence[tuple[int, int]]]
"""Steps of a run: each has sequences, with the number of tokens that it computes of them."""

_LENGTHS = (9, 6)
_STEPS: Steps = (  # of each sequence, the tokens of a step: whole chunks, a decode beside a chunk, a decode alone
    ((0, 4),),
    ((0, 1), (1, 4)),
    ((1, 1), (0, 3)),
    ((0, 1), (1, 1)),
)
_BLOCK_SIZE = 2
_CLOSE = {torch.float32: 1e-3}  # largest relative distance of logits
_CLOSE_IN_16_BITS = 0.1


def check(model: ForeignModel) -> None:
    """Raise ModelError if the model says something else over the cache than by itself, or fails."""
    try:
        with no_exit():
            _check(model)
    except ModelError:
        raise
    except Exception as error:  # code of any model
        raise ModelError(f"it failed in a trial: {described(error)}") from error


@torch.inference_mode()
def _check(model: ForeignModel) -> None:
    device, vocab_size = model.device, model.config.vocab_size
    tokens = [
        (torch.arange(3, 3 + 7 * length, 7, device=device) * (1 + row)) % vocab_size
        for row, length in enumerate(_LENGTHS)
    ]
    model.lm.set_attn_implementation("eager")
    try:
        expected = [model.lm(input_ids=each[None], use_cache=False).logits[0, :, :vocab_size] for each in tokens]
    finally:
        model.lm.set_attn_implementation(model.attention.name)
    whole = _run(model, tokens, [[(0, _LENGTHS[0])], [(1, _LENGTHS[1])]])
    if not _agree(whole, expected, model.dtype):
        raise ModelError("its attention computes something else than the attention interface says")
    if not _agree(_run(model, tokens, _STEPS), expected, model.dtype):
        raise ModelError(
            "its tokens influence each other by something else than attention: it has a state or counts positions of "
            "its own"
        )


def _agree(logits: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> bool:
    """Whether most tokens have the expected logits. Not all need to: a rounding may choose another expert."""
    close = _CLOSE.get(dtype, _CLOSE_IN_16_BITS)
    distances = [
        (one.float() - other.float()).norm(dim=-1) / other.float().norm(dim=-1)
        for one, other in zip(logits, expected, strict=True)
    ]
    return bool((torch.cat(distances) < close).float().mean() > 0.6)


def _run(model: ForeignModel, tokens: list[Tensor], steps: Steps) -> list[Tensor]:
    """The logits of every token of the sequences, computed in these steps: the number of tokens of each sequence."""
    device, groups = model.device, model.groups
    per_sequence = -(-max(_LENGTHS) // _BLOCK_SIZE)
    num_blocks = len(tokens) * per_sequence * len(groups)
    cache = KVCache.allocate(groups, num_blocks, _BLOCK_SIZE, model.dtype, device)
    tables = torch.arange(num_blocks).flip(0).view(len(groups), len(tokens), per_sequence)
    done = [0] * len(tokens)
    logits: list[list[Tensor]] = [[] for _ in tokens]
    for step in steps:
        rows = [row for row, _ in step]
        places = [torch.arange(done[row], done[row] + number) for row, number in step]
        starts = [0]
        for row, number in step:
            starts.append(starts[-1] + number)
            done[row] += number
        slots = [
            tables[:, row, at // _BLOCK_SIZE] * _BLOCK_SIZE + at % _BLOCK_SIZE
            for row, at in zip(rows, places, strict=True)
        ]
        batch = Batch(
            token_ids=torch.cat([tokens[row][at.to(device)] for row, at in zip(rows, places, strict=True)]),
            positions=torch.cat(places).to(device),
            slot_mapping=torch.cat(slots, dim=1).to(device),
            block_tables=tables[:, rows].to(device),
            query_starts=starts,
            context_lens=[done[row] for row in rows],
            logits_indices=torch.arange(starts[-1], device=device),
        )
        found = model.logits(model.forward(batch, cache))
        for index, row in enumerate(rows):
            logits[row].append(found[starts[index] : starts[index + 1]])
    return [torch.cat(each) for each in logits]
