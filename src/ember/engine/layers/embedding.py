"""The token embedding, with learned positions and a projection if the model has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ember.engine.layers.linear import Linear
from ember.engine.layers.norm import Norm


@dataclass(slots=True)
class Embedding:
    """The embedding of token ids and positions to the decoder's input."""

    tokens: Tensor | Linear  # [vocab_size, embed_dim]; quantised: the layout
    positions: Tensor | None = None  # [offset + max_position_embeddings, hidden]
    position_offset: int = 0
    project: Linear | None = None  # [hidden, embed_dim]
    scale: float = 1.0  # of the tokens' embeddings
    norm: Norm | None = None
    token_types: Tensor | None = None  # [types, hidden]
    projects_sum: bool = False  # `project` is of the normalised sum of all embeddings

    def __call__(self, token_ids: Tensor, positions: Tensor, token_types: Tensor | None = None) -> Tensor:
        """[T] ids, [T] positions and [T] token types (None: all 0) -> [T, hidden]."""
        return self.finish(look_up(self.tokens, token_ids), positions, token_types)

    def finish(self, hidden: Tensor, positions: Tensor, token_types: Tensor | None = None) -> Tensor:
        """The rest of `__call__`, from the rows of `tokens` on: [T, embed_dim] -> [T, hidden]."""
        if self.scale != 1.0:
            hidden = hidden * self.scale
        if self.project is not None and not self.projects_sum:
            hidden = self.project(hidden)
        if self.positions is not None:
            hidden = hidden + F.embedding(positions + self.position_offset, self.positions)
        if self.token_types is not None:
            same = self.token_types[0] if token_types is None else F.embedding(token_types, self.token_types)
            hidden = hidden + same
        if self.norm is not None:
            hidden = self.norm(hidden)
        return self.project(hidden) if self.project is not None and self.projects_sum else hidden


def look_up(table: Tensor | Linear, ids: Tensor) -> Tensor:
    """The rows of a table of embeddings: [T] -> [T, columns]."""
    return F.embedding(ids, table) if isinstance(table, Tensor) else table.look_up(ids)
