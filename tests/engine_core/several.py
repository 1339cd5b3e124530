"""A runner for tests whose steps give a sequence several tokens."""

from __future__ import annotations

import random

from ember.engine.core.runner import Done, Runner
from ember.engine.core.scheduler import Scheduled
from ember.wire import TokenLogprobs


class SeveralTokens:
    """A runner that computes every step, and says up to three tokens of a script for each sequence at once."""

    runs_ahead = False

    def __init__(self, runner: Runner, script: dict[int, list[int]], count: int | None = None) -> None:
        self.runner, self.script, self.count = runner, script, count
        self.model, self.device, self.options = runner.model, runner.device, runner.options
        self.rng = random.Random(0)
        self.counts: list[int] = []

    def launch(self, step: list[Scheduled]) -> Done:
        result = self.runner.run(step)
        for row, sequence in enumerate(result.sequences):
            said = self.script[sequence.request_id]
            assert len(result.token_ids[row]) == 1
            at = sequence.num_output_tokens
            several = said[at : at + (self.count or self.rng.randint(1, 3))]
            self.counts.append(len(several))
            result.token_ids[row] = several
            if row in result.logprobs:
                result.logprobs[row] = [
                    TokenLogprobs(token_id, -float(at + i), 1, [], []) for i, token_id in enumerate(several)
                ]
        return Done(result)
