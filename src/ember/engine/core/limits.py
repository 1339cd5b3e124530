"""The limits of an engine: its cache, its steps and its contexts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The limits of one engine. `memory.plan_memory` makes them from the settings."""

    block_size: int  # tokens of a page
    num_blocks: int  # pages of the cache
    max_num_seqs: int  # sequences in a step
    max_num_batched_tokens: int  # tokens in a step
    max_model_len: int  # tokens of a sequence, prompt and output
    # Slots of the prefix cache for states, in a model whose layers have states; None: it has none.
    num_checkpoints: int | None = None
    whole_texts: bool = False  # whether a text is computed in one step, since its tokens see later ones

    @property
    def num_states(self) -> int:
        """The slots of states: one for each sequence in a step, and the checkpoints."""
        return 0 if self.num_checkpoints is None else self.max_num_seqs + self.num_checkpoints
