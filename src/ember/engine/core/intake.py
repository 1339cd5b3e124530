"""The intake of requests: it makes a request's sequences, or finds the reason why it can never run."""

from __future__ import annotations

import os
import reprlib

import msgspec

from ember.engine.core.block_pool import root_hash
from ember.engine.core.limits import EngineLimits
from ember.engine.core.outputs import failed
from ember.engine.core.runner import StepRunner
from ember.engine.core.sequence import Sequence
from ember.wire import Generate, Pool, PoolingTask, Request, SamplingParams, SequenceOutput

_VERBS: dict[PoolingTask, str] = {
    "embed": "embed",
    "token_embed": "embed tokens",
    "classify": "classify",
    "token_classify": "classify tokens",
    "score": "score",
}
_POOLS = SamplingParams(max_tokens=0)  # of a request for a pooling task
OPTIONS = frozenset({"max_tokens", "n", "seed", "ignore_eos", "stop_token_ids"})
"""The options of `wire.SamplingParams` that the engine implements, independently of its runner."""
_DEFAULTS = SamplingParams(max_tokens=0)


class Intake:
    """Checks requests against the engine's limits and options, and makes their sequences."""

    def __init__(self, runner: StepRunner, limits: EngineLimits, seed: int | None, shares_prompts: bool) -> None:
        """`shares_prompts`: whether the first of several samples computes the prompt for all."""
        self._limits = limits
        self._vocab_size = runner.model.config.vocab_size
        self._num_token_types = max(1, runner.model.config.token_types)
        self._seed = int.from_bytes(os.urandom(8), "little") if seed is None else seed
        self._shares_prompts = shares_prompts
        self._num_arrivals = 0
        self._pooling = runner.model.config.pooling
        fields = SamplingParams.__struct_fields__
        self._unsupported = [name for name in fields if name not in OPTIONS | runner.options]

    def refusal(self, request: Generate, is_id_in_use: bool) -> list[SequenceOutput]:
        """The errors of a request that can never run; empty for other requests."""
        error, param = None, None
        if self._pooling is not None:
            error, param = f"This model does not generate; its tasks are {', '.join(self._pooling.tasks)}.", "model"
        elif fault := self._fault(request, is_id_in_use):
            error, param = fault
        elif option := self._unsupported_option(request.sampling):
            error, param = f"`{option}` is not supported with this model on this device", option
        if error is None:
            return []
        return [failed(request.request_id, index, error, param) for index in range(request.sampling.n)]

    def pool_refusal(self, request: Pool, is_id_in_use: bool) -> list[SequenceOutput]:
        """The error of a request for a pooling task that can never run; empty for other requests."""
        pooling = self._pooling
        error: tuple[str, str | None] | None = None
        if pooling is None:
            error = f"This model generates; it does not {_VERBS[request.task]}.", "model"
        elif request.task not in pooling.tasks:
            error = f"This model does not {_VERBS[request.task]}; its tasks are {', '.join(pooling.tasks)}.", "model"
        elif fault := self._fault(request, is_id_in_use):
            error = fault
        elif len(request.token_type_ids) not in (0, len(request.prompt_token_ids)):
            error = f"{len(request.token_type_ids)} token types for {len(request.prompt_token_ids)} tokens", None
        elif wrong_type := self._type_fault(request):
            error = wrong_type, "input"
        return [] if error is None else [failed(request.request_id, 0, *error)]

    def pool_sequence(self, request: Pool) -> Sequence:
        """The sequence of a request that can run."""
        assert self._pooling is not None
        self._num_arrivals += 1
        is_pooled = request.task not in ("token_embed", "token_classify")
        return Sequence(
            request_id=request.request_id,
            index=0,
            token_ids=request.prompt_token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            sampling=_POOLS,
            seed=0,
            priority=request.priority,
            arrival=self._num_arrivals,
            salt=root_hash(request.cache_salt),
            max_num_tokens=len(request.prompt_token_ids),
            pool=request,
            reads_whole_prompt=self._limits.whole_texts or not (is_pooled and self._pooling.reads_last_token_alone),
        )

    def _fault(self, request: Request, is_id_in_use: bool) -> tuple[str, str | None] | None:
        """What is wrong with a request of any kind, and the field; None: nothing."""
        num_prompt_tokens, vocab_size = len(request.prompt_token_ids), self._vocab_size
        if request.adapter is not None:
            return f"The adapter {reprlib.repr(request.adapter)} is not loaded.", "model"
        if not 0 < num_prompt_tokens <= self._limits.max_model_len:
            possible = f"1 to {self._limits.max_model_len} are possible"
            return f"a prompt of {num_prompt_tokens} tokens cannot run, {possible}", None
        if max(request.prompt_token_ids) >= vocab_size or min(request.prompt_token_ids) < 0:
            return f"a token id of the prompt is not in [0, {vocab_size})", "prompt"
        return (f"request id {request.request_id} is in use", None) if is_id_in_use else None

    def _type_fault(self, request: Pool) -> str | None:
        """What is wrong with the token types; None: nothing. The tokenizer's post-processor chooses them."""
        kinds = request.token_type_ids
        wrong = next((kind for kind in kinds if not 0 <= kind < self._num_token_types), None)
        if wrong is None:
            return None
        return (
            f"The tokenizer gives tokens the type {wrong} (type_id of the post_processor in tokenizer.json), but the "
            f"model has {self._num_token_types} (type_vocab_size in config.json)."
        )

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
