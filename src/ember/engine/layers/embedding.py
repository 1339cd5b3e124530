"""Token embedding, with learned positions and projections where a model has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.linear import Linear


@dataclass(slots=True)
class Embedding:
    """Token ids -> the decoder's input."""

    tokens: Tensor  # [vocab_size, embed_dim]
    positions: Tensor | None = None  # [offset + max_position_embeddings, hidden]
    position_offset: int = 0
    project: Linear | None = None  # [hidden, embed_dim]

    def __call__(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """[T] ids and [T] positions -> [T, hidden]."""
        hidden = F.embedding(token_ids, self.tokens)
        if self.project is not None:
            hidden = self.project(hidden)
        if self.positions is not None:
            hidden = hidden + F.embedding(positions + self.position_offset, self.positions)
        return hidden
