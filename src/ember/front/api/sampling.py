"""From a request's fields to `wire.SamplingParams`: every range is checked here, every default applied.

Request fields win over the deployment's generation defaults, and those over the neutral values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from ember.front.api.body import encodable
from ember.front.api.prompt import check_token_ids
from ember.front.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request
from ember.settings import Settings
from ember.wire import Ready, SamplingParams

MAX_N = 16384
MAX_BAD_WORDS = 128
MAX_LOGIT_BIAS = 100.0
LOWEST_TEMPERATURE = 0.01  # below it the logits overflow; 0 itself is greedy
COMPLETION_MAX_TOKENS = 16
INT64_MAX = 2**63 - 1


def sampling_params(request: GenerationRequest, services: Services, info: Ready) -> SamplingParams:
    """All but the lengths, which depend on the prompt: see `with_lengths`. Raises ApiError 400."""
    temperature, top_p, top_k, min_p = _distribution(request, services.generation_defaults)
    n = 1 if request.n is None else request.n
    if not 1 <= n <= MAX_N:
        wanted = "at least 1" if n < 1 else f"at most {MAX_N}"
        raise bad_request(f"n must be {wanted}, got {n}.", "n")
    if temperature == 0:
        if n > 1:
            raise bad_request(f"n must be 1 when using greedy sampling, got {n}.", "n")
        top_p, top_k, min_p = 1.0, 0, 0.0
    elif temperature < LOWEST_TEMPERATURE:
        temperature = LOWEST_TEMPERATURE
    logprobs, prompt_logprobs = requested_logprobs(request, services.settings, info)
    check_token_ids(request.stop_token_ids or [], info, "stop_token_ids")
    if request.allowed_token_ids is not None and not request.allowed_token_ids:
        raise bad_request("allowed_token_ids must not be empty.", "allowed_token_ids")
    check_token_ids(request.allowed_token_ids or [], info, "allowed_token_ids")
    check_cache_salt(request.cache_salt)
    return SamplingParams(
        max_tokens=1,
        n=n,
        temperature=temperature,
        top_p=top_p,
        top_k=min(top_k, info.vocab_size),
        min_p=min_p,
        repetition_penalty=_repetition_penalty(request, services.generation_defaults),
        presence_penalty=_penalty("presence_penalty", request, services.generation_defaults),
        frequency_penalty=_penalty("frequency_penalty", request, services.generation_defaults),
        logit_bias=_logit_bias(request.logit_bias or {}, info),
        allowed_token_ids=sorted(set(request.allowed_token_ids)) if request.allowed_token_ids else None,
        bad_words=_bad_words(request.bad_words or [], services, info),
        ignore_eos=bool(request.ignore_eos),
        stop_token_ids=sorted(set(request.stop_token_ids or [])),
        seed=None if request.seed == -1 else request.seed,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _number(value: float) -> str:
    return f"{value:g}"


def _value(name: str, request: GenerationRequest, defaults: dict[str, Any], neutral: float) -> float:
    value = getattr(request, name)
    if value is None:
        value = defaults.get(name)
    return neutral if value is None else value


def _distribution(request: GenerationRequest, defaults: dict[str, Any]) -> tuple[float, float, int, float]:
    temperature = _value("temperature", request, defaults, 1.0)
    if not 0 <= temperature <= 2:
        raise bad_request(f"temperature must be in [0, 2], got {_number(temperature)}.", "temperature")
    top_p = _value("top_p", request, defaults, 1.0)
    if not 0 < top_p <= 1:
        raise bad_request(f"top_p must be in (0, 1], got {_number(top_p)}.", "top_p")
    top_k = int(_value("top_k", request, defaults, 0))
    if top_k < -1:
        raise bad_request(f"top_k must be 0 (disable), or at least 1, got {top_k}.", "top_k")
    min_p = _value("min_p", request, defaults, 0.0)
    if not 0 <= min_p <= 1:
        raise bad_request(f"min_p must be in [0, 1], got {_number(min_p)}.", "min_p")
    return float(temperature), float(top_p), max(top_k, 0), float(min_p)


def _penalty(name: str, request: GenerationRequest, defaults: dict[str, Any]) -> float:
    value = _value(name, request, defaults, 0.0)
    if not -2 <= value <= 2:
        raise bad_request(f"{name} must be in [-2, 2], got {_number(value)}.", name)
    return float(value)


def _repetition_penalty(request: GenerationRequest, defaults: dict[str, Any]) -> float:
    value = _value("repetition_penalty", request, defaults, 1.0)
    if not (value > 0 and math.isfinite(value)):
        message = f"repetition_penalty must be greater than zero, got {_number(value)}."
        raise bad_request(message, "repetition_penalty")
    return float(value)


def _logit_bias(given: dict[str, float], info: Ready) -> dict[int, float]:
    bias = {}
    for key, value in given.items():
        try:
            token_id = int(key)
        except ValueError:
            raise _logit_bias_error(
                f"Invalid key in 'logit_bias': {key[:64]!r}. Keys must be token ids.", key
            ) from None
        if not 0 <= token_id < info.vocab_size:
            message = f"logit_bias names token {key[:64]}, out of the vocabulary of {info.vocab_size} tokens."
            raise _logit_bias_error(message, key)
        if math.isnan(value):
            raise _logit_bias_error(f"The value of {key[:64]!r} in 'logit_bias' is not a number.", key)
        bias[token_id] = max(-MAX_LOGIT_BIAS, min(MAX_LOGIT_BIAS, value))
    return bias


def _logit_bias_error(message: str, key: str) -> ApiError:
    return bad_request(encodable(f"{message} (parameter=logit_bias, value={key[:64]})"), "logit_bias")


def _bad_words(words: Sequence[str], services: Services, info: Ready) -> list[list[int]]:
    """Each word is forbidden as it is and after a blank, as tokens differ between the two."""
    if len(words) > MAX_BAD_WORDS:
        raise bad_request(f"bad_words must have at most {MAX_BAD_WORDS} entries, got {len(words)}.", "bad_words")
    sequences: list[list[int]] = []
    for word in words:
        bare = encodable(word).lstrip()
        if len(bare) > info.max_model_len:
            raise bad_request(f"bad_words contains a word of {len(bare)} characters, which is too long.", "bad_words")
        found = [services.tokenizer.encode(text, add_special_tokens=False) for text in (bare, f" {bare}") if bare]
        if not any(found):
            raise bad_request(encodable(f"bad_words contains {word[:64]!r}, which has no tokens."), "bad_words")
        sequences.extend(token_ids for token_ids in found if token_ids and token_ids not in sequences)
    if len(sequences) > MAX_BAD_WORDS:
        message = f"bad_words must have at most {MAX_BAD_WORDS} entries after tokenising, got {len(sequences)}."
        raise bad_request(message, "bad_words")
    for sequence in sequences:
        check_token_ids(sequence, info, "bad_words")
    return sequences


# ---------------------------------------------------------------------------------------------------------- logprobs


def requested_logprobs(request: GenerationRequest, settings: Settings, info: Ready) -> tuple[int | None, int | None]:
    """How many log probabilities the engine must return, for the output and for the prompt."""
    if isinstance(request, ChatRequest):
        wanted = _chat_logprobs(request)
        field = "top_logprobs"
    else:
        assert isinstance(request, CompletionRequest)
        wanted = request.logprobs
        field = "logprobs"
    logprobs = _checked_logprobs(wanted, "sample", field, settings, info)
    asked = request.prompt_logprobs
    if request.stream and asked is not None and (asked > 0 or asked == -1):
        message = f"`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs, value={asked})"
        raise bad_request(message, "prompt_logprobs")
    prompt_logprobs = _checked_logprobs(asked, "prompt", "prompt_logprobs", settings, info)
    if isinstance(request, CompletionRequest) and request.echo and logprobs is not None:
        wanted_of_prompt = {logprobs, logprobs if prompt_logprobs is None else prompt_logprobs}
        prompt_logprobs = -1 if -1 in wanted_of_prompt else max(wanted_of_prompt)
    elif request.stream:
        prompt_logprobs = None  # a stream of chunks has no place for them
    return logprobs, prompt_logprobs


def _chat_logprobs(request: ChatRequest) -> int | None:
    top = request.top_logprobs or 0
    if top and not request.logprobs:
        message = f"when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs, value={top})"
        raise bad_request(message, "top_logprobs")
    return top if request.logprobs else None


def _checked_logprobs(wanted: int | None, kind: str, field: str, settings: Settings, info: Ready) -> int | None:
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


# ------------------------------------------------------------------------------------------- stops, salts, priority


def stop_strings(request: GenerationRequest, settings: Settings) -> list[str]:
    """Raises ApiError 400 for too many, and for an empty one."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > settings.max_stop_strings:
        raise bad_request(f"stop must have at most {settings.max_stop_strings} items, got {len(stop)}.", "stop")
    if "" in stop:
        raise bad_request("stop cannot contain an empty string.", "stop")
    return list(dict.fromkeys(stop))


def check_cache_salt(salt: str | None) -> None:
    if salt is not None and (not 1 <= len(salt) <= 128 or any(char in salt for char in "@/\\\0")):
        raise bad_request("cache_salt must be a string of 1 to 128 characters without @, /, \\ and NUL.", "cache_salt")


def priority(request: GenerationRequest, header: str | None) -> int:
    """The header `X-Vllm-Priority` wins over the field."""
    if header is None:
        return request.priority or 0
    try:
        value = int(header)
    except ValueError:
        value = INT64_MAX + 1
    if not -INT64_MAX <= value <= INT64_MAX:
        raise bad_request(f"The header X-Vllm-Priority must be an integer, got {header[:64]!r}.", "priority")
    return value


# ----------------------------------------------------------------------------------------------------------- lengths


def with_lengths(
    params: SamplingParams, request: GenerationRequest, services: Services, info: Ready, num_prompt_tokens: int
) -> SamplingParams:
    """Sets max_tokens, cut to what the context leaves, and min_tokens. Raises ApiError 400."""
    min_tokens = request.min_tokens or 0
    if min_tokens < 0:
        raise bad_request(f"min_tokens must be greater than or equal to 0, got {min_tokens}.", "min_tokens")
    wanted, field = wanted_tokens(request)
    if wanted is not None and wanted > info.max_model_len:
        message = (
            f"{field}={wanted} cannot be greater than max_model_len={info.max_model_len}. Please request fewer output "
            f"tokens. (parameter={field}, value={wanted})"
        )
        raise bad_request(message, field)
    if scores_only(request):
        wanted, min_tokens = 1, 0
    if wanted is None:
        wanted = services.generation_defaults.get("max_new_tokens")
    limits = [
        wanted,
        _hard_cap(services.settings, services.generation_defaults),
        info.max_model_len - num_prompt_tokens,
    ]
    max_tokens = min(limit for limit in limits if limit is not None)
    if max_tokens < 1:
        raise bad_request(f"max_tokens must be at least 1, got {max_tokens}.", field)
    if min_tokens > max_tokens:
        message = f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
        raise bad_request(message, "min_tokens")
    return msgspec.structs.replace(params, max_tokens=max_tokens, min_tokens=min_tokens)


def wanted_tokens(request: GenerationRequest) -> tuple[int | None, str]:
    """The output length asked for, and the field it came from; None = as much as fits."""
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        return request.max_completion_tokens, "max_completion_tokens"
    if isinstance(request, CompletionRequest) and request.max_tokens is None:
        return COMPLETION_MAX_TOKENS, "max_tokens"
    return request.max_tokens, "max_tokens"


def scores_only(request: GenerationRequest) -> bool:
    """`max_tokens: 0` with `echo` wants the prompt back with its log probabilities, and no output."""
    return isinstance(request, CompletionRequest) and request.max_tokens == 0 and bool(request.echo)


def _hard_cap(settings: Settings, defaults: dict[str, Any]) -> int | None:
    """The operator's max_new_tokens binds; the one of the model's own generation_config is a mere default."""
    if "max_new_tokens" in settings.override_generation_config or settings.generation_config not in ("auto", "vllm"):
        return defaults.get("max_new_tokens")
    return None
