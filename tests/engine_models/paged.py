"""A small stand-in for the scheduler: sequences in scattered pages, stepped in whatever mixture a test asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ember.engine.description.cache_groups import cache_groups, paged
from ember.engine.layers.batch import Batch, StateRun
from ember.engine.layers.cache import CacheScales, KVCache
from ember.engine.layers.mixers import StateMixer
from ember.engine.models.decoder import Decoder


class Paged:
    """Sequences of known tokens; `step` feeds some of each and collects the logits of all fed tokens."""

    def __init__(
        self,
        model: Decoder,
        sequences: list[Tensor],
        *,
        block_size: int = 8,
        scattered: bool = True,
        spare: int = 3,
        cache_scales: tuple[float, float] | None = None,
    ) -> None:
        """`cache_scales`: those of K and V in every layer of a float8 cache; None: a cache in the model's dtype."""
        dtype = model.dtype
        if cache_scales is not None:
            dtype = torch.float8_e4m3fn
            for mixer in (block.mixer for block in model.parts.blocks):
                if mixer is not None and not isinstance(mixer, StateMixer):
                    mixer.cache_scales = CacheScales.of(*cache_scales, model.device)
        self.model, self.sequences, self.block_size = model, sequences, block_size
        config = model.config
        every = cache_groups(config, dtype.itemsize)
        self.groups = groups = paged(every)
        self.has_states = len(every) > len(groups)
        needed = [-(-len(sequence) // block_size) for sequence in sequences]
        num_blocks = sum(needed) * len(groups) + spare
        sizes = num_blocks, block_size
        self.cache = KVCache.allocate(every, *sizes, dtype, model.device, 2 * len(sequences))
        self.cache.keys.fill_(torch.nan)  # whoever reads a slot that was not written shows it
        self.cache.values.fill_(torch.nan)
        for states in self.cache.states:
            states.windows.fill_(torch.nan)
            states.matrices.fill_(torch.nan)
        self.slots = list(range(len(sequences)))
        order = torch.randperm(num_blocks) if scattered else torch.arange(num_blocks)
        self.tables = torch.zeros(len(groups), len(sequences), max(needed) + 1, dtype=torch.int64)
        pages = iter(order)
        for table in self.tables:
            for row, count in enumerate(needed):
                table[row, :count] = torch.stack([next(pages) for _ in range(count)])
        self.fed = [0] * len(sequences)
        self.logits: list[list[Tensor]] = [[] for _ in sequences]

    def step(self, counts: Iterable[tuple[int, int]]) -> None:
        """Feed the next `count` tokens of each (sequence, count), in that order, as one batch."""
        counts = list(counts)
        self._give_back([row for row, _ in counts])
        rows, starts, contexts = [], [0], []
        tokens, positions, slots = [], [], []
        runs: list[StateRun] = []
        for row, count in counts:
            at = torch.arange(self.fed[row], self.fed[row] + count)
            tokens.append(self.sequences[row][at])
            positions.append(at)
            slots.append(self.tables[:, row, at // self.block_size] * self.block_size + at % self.block_size)
            if self.has_states:
                runs += self._runs(row, count, starts[-1])
            self.fed[row] += count
            rows.append(row)
            starts.append(starts[-1] + count)
            contexts.append(self.fed[row])
        device = self.model.device
        batch = Batch(
            token_ids=torch.cat(tokens).to(device),
            positions=torch.cat(positions).to(device),
            slot_mapping=torch.cat(slots, dim=1).to(device),
            block_tables=self.tables[:, rows].to(device),
            query_starts=starts,
            context_lens=contexts,
            logits_indices=torch.arange(starts[-1], device=device),
            state_runs=runs,
        )
        with torch.inference_mode():
            hidden = self.model.forward(batch, self.cache)
            logits = self.model.logits(hidden[batch.logits_indices]).float().cpu()
        for index, row in enumerate(rows):
            self.logits[row].append(logits[starts[index] : starts[index + 1]])

    def _runs(self, row: int, count: int, first: int) -> Iterator[StateRun]:
        """The sequence's run. Of 5 or more tokens the first half leaves its state in another slot, in which the second
        half finds it."""
        read = self.slots[row] if self.fed[row] else -1
        if count < 5:
            yield StateRun(first, count, read, self.slots[row], 0)
            return
        half, other = count // 2, (self.slots[row] + len(self.sequences)) % (2 * len(self.sequences))
        yield StateRun(first, half, read, other, 0)
        yield StateRun(first + half, count - half, other, self.slots[row], 1)

    def _give_back(self, rows: list[int]) -> None:
        """Poison the pages before the windows of the rows' next tokens, and take them out of the tables."""
        for group, table in zip(self.groups, self.tables, strict=True):
            for row in rows:
                first = 0 if group.window is None else max(0, self.fed[row] - group.window + 1) // self.block_size
                pages = table[row, :first]
                self.cache.keys[:, pages[pages >= 0]] = torch.nan
                self.cache.values[:, pages[pages >= 0]] = torch.nan
                table[row, :first] = -1

    def finish(self) -> list[Tensor]:
        """The logits of each sequence's fed tokens, [fed, vocab_size]."""
        return [torch.cat(parts) for parts in self.logits]
