"""Converts a request to `wire.SamplingParams`: the sampling options, and what else the engine needs to run it."""

from __future__ import annotations

from ember.front.api.ends import Ends
from ember.front.api.logprob_options import requested_logprobs
from ember.front.api.sampling_ranges import in_range
from ember.front.api.schemas import GenerationRequest
from ember.front.api.services import Services
from ember.front.api.structured import structured_grammar
from ember.front.api.token_rules import allowed_token_ids, bad_words, logit_bias
from ember.front.errors import bad_request
from ember.wire import Ready, SamplingParams

MAX_N = 16384
LOWEST_TEMPERATURE = 0.01  # below it the logits overflow; 0 itself is greedy


def sampling_params(
    request: GenerationRequest, services: Services, info: Ready, ends: Ends, num_prompts: int
) -> SamplingParams:
    """The parameters without `max_tokens`, which depends on each prompt. Raises ApiError 400."""
    defaults = services.generation_defaults
    temperature = float(in_range("temperature", request, defaults, 1.0))
    top_p = float(in_range("top_p", request, defaults, 1.0))
    top_k = max(int(in_range("top_k", request, defaults, 0)), 0)
    min_p = float(in_range("min_p", request, defaults, 0.0))
    n, best_of = _num_samples(request, num_prompts, info)
    if temperature == 0:
        for name, count in (("n", n), ("best_of", best_of)):
            if count > 1 and not request.use_beam_search:
                raise bad_request(f"{name} must be 1 when using greedy sampling, got {count}.", name)
        top_p, top_k, min_p = 1.0, 0, 0.0
    elif temperature < LOWEST_TEMPERATURE:
        temperature = LOWEST_TEMPERATURE
    logprobs = requested_logprobs(request, services.settings, info, ends)
    num_logprobs = logprobs.output
    if best_of > n and num_logprobs is None and not request.use_beam_search:
        num_logprobs = 0  # the best samples are found by the log probabilities of their tokens
    return SamplingParams(
        max_tokens=1,
        n=n if request.use_beam_search else best_of,
        temperature=temperature,
        top_p=top_p,
        top_k=min(top_k, info.vocab_size),
        min_p=min_p,
        repetition_penalty=float(in_range("repetition_penalty", request, defaults, 1.0)),
        presence_penalty=float(in_range("presence_penalty", request, defaults, 0.0)),
        frequency_penalty=float(in_range("frequency_penalty", request, defaults, 0.0)),
        logit_bias=logit_bias(request.logit_bias or {}, info),
        allowed_token_ids=allowed_token_ids(request.allowed_token_ids, info),
        bad_words=bad_words(request.bad_words or [], services, info),
        min_tokens=ends.min_tokens,
        ignore_eos=ends.ignore_eos,
        stop_token_ids=ends.stop_token_ids,
        seed=None if request.seed == -1 else request.seed,
        logprobs=num_logprobs,
        logprob_token_ids=logprobs.token_ids,
        prompt_logprobs=logprobs.prompt,
        grammar=structured_grammar(request, services.tokenizer),
    )


def _num_samples(request: GenerationRequest, num_prompts: int, info: Ready) -> tuple[int, int]:
    """The values of `n` and `best_of`, whose default is `n`. Raises ApiError 400.

    Each sample takes memory in both processes from the start, so their number is limited. One sample per prompt is
    always allowed.
    """
    n = 1 if request.n is None else request.n
    best_of = n if request.best_of is None else request.best_of
    most = max_samples(info)
    for name, count in (("n", n), ("best_of", best_of)):
        if count > most:
            raise bad_request(f"{name} must be at most {most}, got {count}.", name)
    if n < 1:
        raise bad_request(f"n must be at least 1, got {n}.", "n")
    if best_of < n:
        raise bad_request(f"best_of must be greater than or equal to n, got n={n} and best_of={best_of}.", "best_of")
    if best_of > 1 and best_of * num_prompts > most:
        message = f"n times the number of prompts must be at most {most}, got {best_of * num_prompts}."
        raise bad_request(message, "n")
    return n, best_of


def max_samples(info: Ready) -> int:
    """The most samples of a request with several per prompt: those of four full steps, and never less than 128."""
    return min(MAX_N, max(128, 4 * info.max_num_seqs))
