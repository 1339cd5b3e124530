"""Beam search in the front: each step asks the engine for the likeliest next tokens of every beam.

The rules are those of transformers' `generate(num_beams=...)`, so the results are too: a hypothesis counts by its
summed log probability over its length (end token included) to the power of `length_penalty`. The prompt and the common
part of the beams are computed once, as the engine's prefix cache holds them; log probabilities are those of the raw
distribution.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import msgspec

from ember.front.api.ends import Ends, end_token_ids
from ember.front.api.schemas import CompletionRequest, GenerationRequest
from ember.front.errors import bad_request
from ember.front.link.engine import Engine
from ember.front.link.generation import Generation
from ember.wire import Ready, SamplingParams, SequenceOutput, TokenLogprobs

MAX_LENGTH_PENALTY = 20.0  # beyond it powers of a length leave the range of floating point numbers

# Fields that shape a distribution to draw from. A search draws nothing and looks at the raw one.
_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")
# Fields that forbid or change outputs in ways that the search does not implement.
_UNKNOWN_TO_SEARCH = (
    "stop",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "logprob_token_ids",
    "repetition_detection",
)


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """`early_stopping`: True ends the search when `width` hypotheses are complete; False when the best open beam, were
    it to end now, would not be among them; "never" when it could not even at its best length."""

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False


def requested_beams(request: GenerationRequest, params: SamplingParams, ends: Ends, info: Ready) -> BeamOptions | None:
    """What `use_beam_search` asks for; `best_of` is the width, and without it `n`. Raises ApiError 400."""
    if not request.use_beam_search:
        return None
    if isinstance(request, CompletionRequest):
        if request.stream:
            raise bad_request("`stream` cannot be used with `use_beam_search` in completions.", "stream")
        if request.echo and request.logprobs is not None:
            raise bad_request("`echo` with `logprobs` cannot be used with `use_beam_search`.", "use_beam_search")
        if ends.scores_only:
            message = f"`{ends.limit_field}` must be at least 1 with `use_beam_search`."
            raise bad_request(message, ends.limit_field)
    for name in _UNKNOWN_TO_SEARCH:
        if getattr(request, name):
            raise bad_request(f"`{name}` cannot be used with `use_beam_search`.", name)
    for name, neutral in (("presence_penalty", 0.0), ("frequency_penalty", 0.0), ("repetition_penalty", 1.0)):
        if getattr(request, name) not in (None, neutral):
            raise bad_request(f"`{name}` cannot be used with `use_beam_search`.", name)
    if params.grammar is not None:
        raise bad_request(f"`{params.grammar.param}` cannot be used with `use_beam_search`.", params.grammar.param)
    if params.thinking is not None and params.thinking.budget is not None:
        raise bad_request("`thinking_token_budget` cannot be used with `use_beam_search`.", "thinking_token_budget")
    penalty = 1.0 if request.length_penalty is None else request.length_penalty
    if not abs(penalty) <= MAX_LENGTH_PENALTY:
        message = f"length_penalty must be in [-{MAX_LENGTH_PENALTY:g}, {MAX_LENGTH_PENALTY:g}], got {penalty:g}."
        raise bad_request(message, "length_penalty")
    stopping = False if request.early_stopping is None else request.early_stopping
    if isinstance(stopping, str) and stopping != "never":
        message = f'early_stopping must be true, false or "never", got {stopping[:64]!r}.'
        raise bad_request(message, "early_stopping")
    width = request.best_of or request.n or 1
    most = info.vocab_size - len(end_token_ids(params, info))
    if width > most:
        raise bad_request(f"A beam search over this vocabulary has at most {most} beams, got {width}.", "best_of")
    return BeamOptions(width, penalty, "never" if isinstance(stopping, str) else stopping)


def without_effect(request: GenerationRequest) -> list[str]:
    """The given fields that have no effect: a beam search ignores them, or only a beam search reads them."""
    if request.use_beam_search:
        return [name for name in _OF_SAMPLING if getattr(request, name) is not None]
    names = [] if request.length_penalty in (None, 1.0) else ["length_penalty"]
    return [*names, "early_stopping"] if request.early_stopping else names


@dataclass(slots=True)
class _Beam:
    score: float = 0.0  # sum of the log probabilities
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class BeamSearch:
    """One search with the interface of a `Generation`: `sampling.n` samples, whose outputs all come at the end.

    Each step is a request to the engine for every beam. They run only while somebody waits for the outputs.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: list[int],
        sampling: SamplingParams,
        options: BeamOptions,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> None:
        self._engine = engine
        self._prompt = prompt
        self._sampling = sampling
        self._options = options
        self._priority = priority
        self._cache_salt = cache_salt
        self._end_ids = end_token_ids(sampling, engine.info)
        self._num_cached_tokens = 0
        self._prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._is_over = False
        self._is_aborted = False
        self._step: list[Generation] = []  # the generations of the current step

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True

    def __aiter__(self) -> AsyncIterator[list[SequenceOutput]]:
        return self

    async def __anext__(self) -> list[SequenceOutput]:
        if self._is_over:
            raise StopAsyncIteration
        self._is_over = True
        self._engine.gate.inside.add(self)
        try:
            return await self._search()
        finally:
            self._engine.gate.inside.discard(self)

    def abort(self, index: int | None = None) -> None:
        """End the search, whose outputs are then the best hypotheses so far. A single sample is not left out, because
        the hypotheses compete."""
        if index is not None:
            return
        self._is_over = self._is_aborted = True
        for generation in self._step:
            generation.abort()

    async def _search(self) -> list[SequenceOutput]:
        options, max_tokens = self._options, self._sampling.max_tokens
        open_beams = [_Beam()]
        complete: list[tuple[float, _Beam]] = []  # by score, the best first
        for length in range(1, max_tokens + 1):
            answers = await self._ask(open_beams)
            if answers is None:
                return self._unfinished(open_beams, complete)
            failed = next((answer for answer in answers if answer.finish_reason == "error"), None)
            if failed is not None:
                return [msgspec.structs.replace(failed, index=0)]
            candidates = self._candidates(open_beams, answers, length)
            is_last = length == max_tokens
            complete += [
                (beam.score / length**options.length_penalty, beam)
                for beam in candidates[: options.width]
                if is_last or beam.token_ids[-1] in self._end_ids
            ]
            complete = sorted(complete, key=lambda scored: -scored[0])[: options.width]
            open_beams = [beam for beam in candidates if beam.token_ids[-1] not in self._end_ids][: options.width]
            if is_last or self._is_decided(open_beams, complete, length):
                break
        return [self._output(index, beam) for index, (_, beam) in enumerate(complete[: self._sampling.n])]

    def _unfinished(self, open_beams: list[_Beam], complete: list[tuple[float, _Beam]]) -> list[SequenceOutput]:
        """The best hypotheses of a search that was aborted. Those without an end have no finish reason."""
        penalty = self._options.length_penalty
        is_open = [(beam.score / len(beam.token_ids) ** penalty, beam) for beam in open_beams if beam.token_ids]
        best = sorted([*complete, *is_open], key=lambda scored: -scored[0])[: self._sampling.n]
        outputs = [self._output(index, beam) for index, (_, beam) in enumerate(best)]
        return [
            output if output.finish_reason == "stop" else msgspec.structs.replace(output, finish_reason=None)
            for output in outputs
        ]

    def _is_decided(self, open_beams: list[_Beam], complete: list[tuple[float, _Beam]], length: int) -> bool:
        options = self._options
        if len(complete) < options.width:
            return False
        if options.early_stopping is True:
            return True
        is_patient = options.early_stopping == "never" and options.length_penalty > 0
        best_length = self._sampling.max_tokens if is_patient else length
        best = open_beams[0].score / best_length**options.length_penalty
        return best <= complete[-1][0]

    def _candidates(self, beams: list[_Beam], answers: list[SequenceOutput], length: int) -> list[_Beam]:
        """Every beam continued with each of its likeliest tokens, the best first."""
        scored: list[tuple[float, int, int]] = []
        for number, (beam, answer) in enumerate(zip(beams, answers, strict=True)):
            assert answer.logprobs is not None
            entry = answer.logprobs[0]
            for rank, (token_id, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True)):
                if length > self._sampling.min_tokens or token_id not in self._end_ids:
                    scored.append((beam.score + logprob, number, rank))
        scored.sort(key=lambda item: -item[0])
        kept = scored[: (1 + len(self._end_ids)) * self._options.width]
        return [self._extended(beams[number], answers[number], rank, score) for score, number, rank in kept]

    def _extended(self, beam: _Beam, answer: SequenceOutput, rank: int, score: float) -> _Beam:
        assert answer.logprobs is not None
        entry = answer.logprobs[0]
        token_id, logprob = entry.top_ids[rank], entry.top_logprobs[rank]
        logprobs = beam.logprobs
        shown = self._sampling.logprobs
        if shown is not None:
            count = len(entry.top_ids) if shown == -1 else shown
            top_ids, top_logprobs = entry.top_ids[:count], entry.top_logprobs[:count]
            own = msgspec.structs.replace(
                entry, token_id=token_id, logprob=logprob, rank=rank + 1, top_ids=top_ids, top_logprobs=top_logprobs
            )
            logprobs = [*logprobs, own]
        return _Beam(score, [*beam.token_ids, token_id], logprobs)

    async def _ask(self, beams: list[_Beam]) -> list[SequenceOutput] | None:
        """Ask the engine for the next token's log probabilities of each beam. The token that it samples is ignored.
        None: the search was aborted."""
        wanted = self._sampling.logprobs or 0
        width = self._options.width + len(self._end_ids)  # of each beam; further tokens cannot be in the result
        is_first = not beams[0].token_ids
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            ignore_eos=True,
            logprobs=-1 if wanted == -1 else max(wanted, width),
            prompt_logprobs=self._sampling.prompt_logprobs if is_first else None,
        )
        answers = []
        async with AsyncExitStack() as stack:
            self._step = []
            for beam in beams:
                prompt = self._prompt + beam.token_ids
                generation = self._engine.generate(
                    prompt, params, priority=self._priority, cache_salt=self._cache_salt, is_step=not is_first
                )
                self._step.append(await stack.enter_async_context(generation))
            for generation in self._step:
                outputs = [output async for step in generation for output in step]
                is_answered = outputs and (outputs[-1].logprobs or outputs[-1].finish_reason == "error")
                if self._is_aborted or not is_answered:
                    return None
                answers.append(outputs[-1])
        if is_first:
            self._num_cached_tokens = answers[0].num_cached_tokens
            self._prompt_logprobs = answers[0].prompt_logprobs
        return answers

    def _output(self, index: int, beam: _Beam) -> SequenceOutput:
        is_ended = beam.token_ids[-1] in self._end_ids
        return SequenceOutput(
            request_id=0,
            index=index,
            token_ids=beam.token_ids,
            finish_reason="stop" if is_ended else "length",
            stop_reason=beam.token_ids[-1] if is_ended else None,
            logprobs=beam.logprobs or None,
            num_cached_tokens=self._num_cached_tokens,
            prompt_logprobs=self._prompt_logprobs if index == 0 else None,
        )
