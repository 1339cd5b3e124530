"""Which log probabilities a request asks for, of the output's tokens and of the prompt's."""

from __future__ import annotations

from dataclasses import dataclass

from ember.front.api.ends import Ends
from ember.front.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from ember.front.api.vocabulary import check_token_ids
from ember.front.errors import bad_request
from ember.settings import Settings
from ember.wire import Ready

MAX_LOGPROB_TOKEN_IDS = 128


@dataclass(frozen=True, slots=True)
class LogprobOptions:
    """How many of the likeliest tokens come with each token, as `wire.SamplingParams` says it. None = none, not even
    the log probability of the token itself."""

    output: int | None
    prompt: int | None
    token_ids: list[int]  # further tokens, whose log probabilities come with each token of the output


def requested_logprobs(request: GenerationRequest, settings: Settings, info: Ready, ends: Ends) -> LogprobOptions:
    """Raises ApiError 400."""
    if isinstance(request, ChatRequest):
        wanted = _chat_logprobs(request)
        field = "top_logprobs"
    else:
        assert isinstance(request, CompletionRequest)
        wanted = request.logprobs
        field = "logprobs"
    logprobs = checked_logprobs(wanted, "sample", field, settings, info)
    asked = request.prompt_logprobs
    if request.stream and asked is not None and (asked > 0 or asked == -1):
        message = f"`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs, value={asked})"
        raise bad_request(message, "prompt_logprobs")
    prompt_logprobs = checked_logprobs(asked, "prompt", "prompt_logprobs", settings, info)
    if isinstance(request, CompletionRequest) and request.echo and logprobs is not None:
        wanted_of_prompt = {logprobs, logprobs if prompt_logprobs is None else prompt_logprobs}
        prompt_logprobs = -1 if -1 in wanted_of_prompt else max(wanted_of_prompt)
    elif request.stream:
        prompt_logprobs = None  # a stream of chunks has no place for them
    token_ids = _logprob_token_ids(request, logprobs, info, ends)
    return LogprobOptions(0 if token_ids else logprobs, prompt_logprobs, token_ids)


def _logprob_token_ids(request: GenerationRequest, logprobs: int | None, info: Ready, ends: Ends) -> list[int]:
    """The named tokens, which replace the likeliest ones."""
    token_ids = request.logprob_token_ids or []
    if token_ids and logprobs is None:
        raise bad_request("when using `logprob_token_ids`, `logprobs` must be set.", "logprob_token_ids")
    if token_ids and ends.scores_only:
        message = "`logprob_token_ids` are of generated tokens, and with `max_tokens` 0 there are none."
        raise bad_request(message, "logprob_token_ids")
    if len(token_ids) > MAX_LOGPROB_TOKEN_IDS:
        message = (
            f"Requested logprob_token_ids of length {len(token_ids)}, which is greater than max allowed: "
            f"{MAX_LOGPROB_TOKEN_IDS}"
        )
        raise bad_request(message, "logprob_token_ids")
    check_token_ids(token_ids, info, "logprob_token_ids")
    return list(dict.fromkeys(token_ids))


def _chat_logprobs(request: ChatRequest) -> int | None:
    top = request.top_logprobs or 0
    if top and not request.logprobs:
        message = f"when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs, value={top})"
        raise bad_request(message, "top_logprobs")
    return top if request.logprobs else None


def checked_logprobs(wanted: int | None, kind: str, field: str, settings: Settings, info: Ready) -> int | None:
    """The number of likely tokens, -1 for the whole vocabulary. Raises ApiError 400."""
    if wanted is None:
        return None
    if wanted < -1:
        raise bad_request(f"`{field}` must be a positive value or -1, got {wanted}.", field)
    most = settings.max_logprobs
    count = info.vocab_size if wanted == -1 else wanted
    if most != -1 and count > most:
        message = f"Requested {kind} logprobs of {count}, which is greater than max allowed: {most}"
        raise bad_request(message, field)
    return -1 if count >= info.vocab_size else wanted
