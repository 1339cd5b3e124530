"""Counts of a sequence's tokens, for the sampler's penalties."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class TokenCounts:
    """Counts over the first `num_tokens` tokens of a sequence."""

    seen: Tensor  # [vocab] bool, whether the token is in prompt or output
    output: Tensor  # [vocab] float32, occurrences in the output
    num_tokens: int = 0

    @classmethod
    def create(cls, like: Tensor) -> TokenCounts:
        """Empty counts on the device of `like` [vocab]."""
        return cls(
            seen=torch.zeros(like.shape, dtype=torch.bool, device=like.device),
            output=torch.zeros(like.shape, dtype=torch.float32, device=like.device),
        )

    def update(self, token_ids: list[int], num_prompt_tokens: int) -> None:
        """Add the sequence's tokens that are not counted yet."""
        device = self.seen.device
        new = torch.tensor(token_ids[self.num_tokens :], dtype=torch.int64, device=device)
        if not len(new):
            return
        self.seen[new] = True
        generated = new[max(num_prompt_tokens - self.num_tokens, 0) :]
        self.output.index_add_(0, generated, torch.ones(len(generated), device=device))
        self.num_tokens += len(new)
