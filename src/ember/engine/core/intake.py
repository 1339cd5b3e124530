"""The intake of requests: it makes a request's sequences, or finds the reason why it can never run."""

from __future__ import annotations

import os
import reprlib

import msgspec

from ember.engine.core.block_pool import root_hash
from ember.engine.core.limits import EngineLimits
from ember.engine.core.runner import StepRunner
from ember.engine.core.sequence import Sequence
from ember.wire import Generate, Pool, PoolingTask, SamplingParams, SequenceOutput, Task

TASKS: tuple[Task, ...] = ("generate",)  # tasks of every supported model
_VERBS: dict[PoolingTask, str] = {
    "embed": "embed",
    "token_embed": "embed tokens",
    "classify": "classify",
    "token_classify": "classify tokens",
    "score": "score",
}
OPTIONS = frozenset({"max_tokens", "n", "seed", "ignore_eos", "stop_token_ids"})
"""The options of `wire.SamplingParams` that the engine implements, independently of its runner."""
_DEFAULTS = SamplingParams(max_tokens=0)


class Intake:
    """Checks requests against the engine's limits and options, and makes their sequences."""

    def __init__(self, runner: StepRunner, limits: EngineLimits, seed: int | None, shares_prompts: bool) -> None:
        self._limits = limits
        self._vocab_size = runner.model.config.vocab_size
        self._seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed
        self._shares_prompts = shares_prompts  # whether the first of several samples computes the prompt for all
        self._num_arrivals = 0
        fields = SamplingParams.__struct_fields__
        self._unsupported = [name for name in fields if name not in OPTIONS | runner.options]

    def refusal(self, request: Generate, is_id_in_use: bool) -> list[SequenceOutput]:
        """The errors of a request that can never run; empty for other requests."""
        num_prompt_tokens, vocab_size = len(request.prompt_token_ids), self._vocab_size
        error, param = None, None
        if request.adapter is not None:
            error, param = f"The adapter {reprlib.repr(request.adapter)} is not loaded.", "model"
        elif not 0 < num_prompt_tokens <= self._limits.max_model_len:
            error = f"a prompt of {num_prompt_tokens} tokens cannot run, 1 to {self._limits.max_model_len} are possible"
        elif max(request.prompt_token_ids) >= vocab_size or min(request.prompt_token_ids) < 0:
            error = f"a token id of the prompt is not in [0, {vocab_size})"
        elif is_id_in_use:
            error = f"request id {request.request_id} is in use"
        elif option := self._unsupported_option(request.sampling):
            error, param = f"`{option}` is not supported with this model on this device", option
        if error is None:
            return []
        return [_refused(request.request_id, index, error, param) for index in range(request.sampling.n)]

    def sequences(self, request: Generate) -> list[Sequence]:
        """The samples of a request that can run."""
        sampling = request.sampling
        following = msgspec.structs.replace(sampling, prompt_logprobs=None)  # the first sample has them for all
        num_prompt_tokens = len(request.prompt_token_ids)
        made: list[Sequence] = []
        for index in range(sampling.n):
            self._num_arrivals += 1
            seed = sampling.seed + index if sampling.seed is not None else hash((self._seed, self._num_arrivals))
            sequence = Sequence(
                request_id=request.request_id,
                index=index,
                token_ids=request.prompt_token_ids,
                num_prompt_tokens=num_prompt_tokens,
                sampling=sampling if index == 0 else following,
                seed=seed,
                priority=request.priority,
                arrival=self._num_arrivals,
                salt=root_hash(request.cache_salt),
                max_num_tokens=min(num_prompt_tokens + sampling.max_tokens, self._limits.max_model_len),
                leader=made[0] if made and self._shares_prompts else None,
            )
            made.append(sequence)
        return made

    def _unsupported_option(self, sampling: SamplingParams) -> str | None:
        """The name of an option that is set and not implemented, which would be ignored silently; None if there is
        none."""
        for name in self._unsupported:
            if getattr(sampling, name) != getattr(_DEFAULTS, name):
                return name
        return None


def refuse_pooling(request: Pool) -> SequenceOutput:
    """The answer to a request for a pooling task: an error that names the task, since no supported model has a
    pooler."""
    return _refused(request.request_id, 0, f"This model generates; it does not {_VERBS[request.task]}.", "model")


def _refused(request_id: int, index: int, error: str, param: str | None) -> SequenceOutput:
    return SequenceOutput(request_id, index, [], finish_reason="error", error=error, error_param=param)
