"""The runner of a model of pooling tasks: each step runs the model over prompts, or chunks of them, and pools the
hidden states. Nothing is sampled."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch

from ember.engine.core.runner import Runner, StepResult, is_last_chunk
from ember.engine.core.scheduler import Scheduled
from ember.engine.layers.batch import Batch
from ember.engine.layers.cache import KVCache
from ember.engine.layers.pooler import Chunk, Pooler
from ember.engine.models.decoder import Decoder
from ember.wire import Pooled


class PoolRunner(Runner):
    """Runs the model over its cache, and the pooler, one step at a time, on any device."""

    options: frozenset[str] = frozenset()

    def __init__(self, decoder: Decoder, cache: KVCache, device: torch.device, pooler: Pooler) -> None:
        super().__init__(decoder, cache, device)
        self.decoder = decoder
        self.pooler = pooler

    @torch.inference_mode()
    def run(self, step: list[Scheduled]) -> StepResult:
        """Run one forward pass over the scheduled tokens, and pool the texts that are complete with them."""
        if self.decoder.config.bidirectional:
            step = sorted(step, key=lambda scheduled: scheduled.num_tokens)  # attention computes equal lengths at once
            return self.pool(self.decoder.states(self._texts(step), self.cache), step)
        return self.pool(self.decoder.states(self._batch(step), self.cache), step)

    def _texts(self, step: list[Scheduled]) -> Batch:
        """The batch of a step of whole texts, for a model without a cache."""
        requests = [scheduled.sequence.pool for scheduled in step]
        lengths = [scheduled.num_tokens for scheduled in step]
        ids = [token_id for scheduled in step for token_id in scheduled.sequence.token_ids]
        types = None
        if any(request is not None and request.token_type_ids for request in requests):
            types = [
                kind
                for request, length in zip(requests, lengths, strict=True)
                for kind in (request is not None and request.token_type_ids) or [0] * length
            ]
        empty = self._upload([])
        return Batch(
            token_ids=self._upload(ids),
            positions=self._upload(np.concatenate([np.arange(length) for length in lengths])),
            slot_mapping=empty[None],
            block_tables=empty[None, None],
            query_starts=list(accumulate(lengths, initial=0)),
            context_lens=lengths,
            logits_indices=empty,
            token_types=None if types is None else self._upload(types),
        )

    def pool(self, hidden: torch.Tensor, step: list[Scheduled]) -> StepResult:
        """Pool the hidden states of a step, [tokens, hidden]."""
        chunks = []
        for scheduled in step:
            sequence = scheduled.sequence
            assert sequence.pool is not None, "a model of pooling tasks has requests for them"
            first = sequence.num_computed_tokens
            before = sequence.partial if first else None  # a preempted sequence begins again
            chunks.append(Chunk(sequence.pool, first, scheduled.num_tokens, is_last_chunk(scheduled), before))
        outputs = self.pooler.pool(hidden, chunks)
        result = StepResult()
        for scheduled, found in zip(step, outputs, strict=True):
            scheduled.sequence.partial = found.partial
            if found.output is not None:
                values = found.output.numpy().astype("<f4", copy=False)
                result.is_broken.append(not np.isfinite(values).all())
                result.pooled.append(Pooled(values.tobytes(), list(values.shape)))
                result.sequences.append(scheduled.sequence)
        return result
