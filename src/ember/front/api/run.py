"""One prompt of an API request in the engine: its options, and its samples as their outputs arrive."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ember.front.api.beams import BeamOptions, BeamSearch
from ember.front.api.clock import Clock
from ember.front.api.prompt import Prompt
from ember.front.api.samples import Piece, Sample, TextOptions
from ember.front.api.services import Services
from ember.front.link.generation import Generation
from ember.wire import SamplingParams, SequenceOutput, TokenLogprobs


@dataclass(slots=True)
class RunSpec:
    """One prompt with everything the engine and the detokenizer need to know about it.

    The answer has `n` choices. When the engine makes more samples (`best_of`), the choices are those with the highest
    cumulative log probability, so `sampling` must ask for log probabilities.
    """

    prompt: Prompt
    sampling: SamplingParams
    text: TextOptions
    priority: int = 0
    cache_salt: str | None = None
    n: int = 1
    beams: BeamOptions | None = None  # search instead of sampling


class Run:
    """One prompt in the engine. `samples[i]` is choice `number * n + i`, as soon as there are pieces of it."""

    def __init__(self, number: int, spec: RunSpec, generation: Generation | BeamSearch, services: Services) -> None:
        self.spec = spec
        self._metrics = services.metrics
        self.generation = generation
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._first_choice = number * spec.n
        n = spec.sampling.n
        self._waits_for_prompt = n > 1 and spec.sampling.prompt_logprobs is not None
        self._held: list[SequenceOutput] = []
        first = self._first_choice
        self.samples = [Sample(first + i, services.tokenizer, spec.prompt.token_ids, spec.text) for i in range(n)]
        self.clocks = {sample: Clock() for sample in self.samples}
        self._candidates = [Piece(sample.choice) for sample in self.samples] if n > spec.n else []

    def push(self, outputs: list[SequenceOutput]) -> list[Piece]:
        """One piece for each sample that has something new. A sample ended by a stop string is aborted at once.

        The first sample brings the prompt's log probabilities for all; until it does, the others' outputs wait here.
        """
        if self._waits_for_prompt:
            self._held += outputs
            if not any(
                output.prompt_logprobs is not None or (output.index == 0 and output.finish_reason is not None)
                for output in outputs
            ):
                return []
            outputs = self._release()
        pieces: dict[int, Piece] = {}
        gained: dict[Sample, int] = {}
        for output in outputs:
            self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
            if output.prompt_logprobs is not None:
                self.prompt_logprobs = output.prompt_logprobs
            sample = self.samples[output.index]
            was_over = sample.finish_reason is not None
            if not was_over and output.token_ids:
                gained[sample] = gained.get(sample, 0) + len(output.token_ids)
                self.clocks[sample].queue = max(self.clocks[sample].queue, output.queue_seconds)
                self.clocks[sample].num_preemptions = output.num_preemptions
            piece = pieces.get(output.index)
            if piece is None and not was_over:
                piece = pieces[output.index] = Piece(sample.choice)
            sample.push(output, piece or Piece(sample.choice))
            if sample.finish_reason is not None and output.finish_reason is None and not was_over:
                self.generation.abort(output.index)
        now = time.monotonic()
        for sample, num_tokens in gained.items():
            self.clocks[sample].push(num_tokens, now, self._metrics)
        if self._candidates:
            return self._choose(pieces)
        return list(pieces.values())

    def end(self) -> list[Piece]:
        """End the samples that the engine left unfinished, because they were aborted from outside."""
        pieces = self.push(self._release())
        for index, sample in enumerate(list(self.samples)):
            if sample.finish_reason is None:
                piece = Piece(sample.choice)
                sample.close(piece, "abort")
                pieces += self._choose({index: piece}) if self._candidates else [piece]
        return pieces

    def _choose(self, pieces: dict[int, Piece]) -> list[Piece]:
        """Hold the pieces of all candidates until the last one is finished. Then return the best ones, as choices in
        order."""
        for index, piece in pieces.items():
            self._candidates[index].extend(piece)
        if any(sample.finish_reason is None for sample in self.samples):
            return []
        candidates, self._candidates = self._candidates, []
        order = sorted(range(len(candidates)), key=lambda index: -self.samples[index].score)  # equal ones stay in order
        self.samples = [self.samples[index] for index in order]
        chosen = [candidates[index] for index in order[: self.spec.n]]
        for i, piece in enumerate(chosen):
            piece.choice = self.samples[i].choice = self._first_choice + i
        return chosen

    def _release(self) -> list[SequenceOutput]:
        self._waits_for_prompt = False
        held, self._held = self._held, []
        return held
