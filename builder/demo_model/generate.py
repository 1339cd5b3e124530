"""Batched greedy decoding with a key-value cache, for the evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from builder.demo_model.model import Cache, Qwen3

_BATCH = 96


def _decode_batch(model: Qwen3, prompts: list[list[int]], stops: set[int], limit: int) -> list[list[int]]:
    device = model.model.embed_tokens.weight.device
    config = model.config
    longest = max(map(len, prompts))
    count, capacity = len(prompts), longest + limit
    ids = torch.zeros(count, longest, dtype=torch.long)
    real = torch.zeros(count, capacity, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        real[row, longest - len(prompt) :] = True
    ids, real = ids.to(device), real.to(device)
    shape = (count, config.num_key_value_heads, capacity, config.head_dim)
    cache: Cache = [
        (torch.zeros(shape, device=device), torch.zeros(shape, device=device)) for _ in range(config.num_hidden_layers)
    ]
    positions = (real[:, :longest].cumsum(1) - 1).clamp(min=0)
    # Padding sees only itself, so that no row of the mask is empty.
    itself = torch.eye(longest, dtype=torch.bool, device=device)
    mask = (real[:, None, :longest] & itself.new_ones(longest, longest).tril()) | itself
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(count))
    hidden = model(ids, positions, mask[:, None], cache, 0)[:, -1]
    place = positions[:, -1]
    for at in range(longest, capacity):
        chosen: Tensor = model.logits(hidden).argmax(-1)
        going = []
        for index, token in enumerate(chosen.tolist()):
            answers[rows[index]].append(token)
            if token not in stops:
                going.append(index)
        if not going or at == capacity - 1:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=device)
            rows = [rows[index] for index in going]
            chosen, place, real = chosen[kept], place[kept], real[kept]
            cache = [(keys[kept], values[kept]) for keys, values in cache]
        place = place + 1
        hidden = model(chosen[:, None], place[:, None], real[:, None, None, : at + 1], cache, at)[:, -1]
    return answers


@torch.inference_mode()
def generate(model: Qwen3, prompts: list[list[int]], stops: set[int], limit: int) -> list[list[int]]:
    """The greedy continuation of every prompt up to and with its stop token, at most `limit` tokens."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), _BATCH):
        chunk = order[start : start + _BATCH]
        for index, answer in zip(chunk, _decode_batch(model, [prompts[i] for i in chunk], stops, limit), strict=True):
            answers[index] = answer
    return answers
