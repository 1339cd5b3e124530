"""From a request's fields to `wire.SamplingParams`: every range is checked here, every default applied.

Request fields win over the deployment's generation defaults, and those over the neutral values.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ember.front.api.prompt import check_token_ids, encode, listed, out_of_vocabulary
from ember.front.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from ember.front.api.services import Services
from ember.front.api.structured import structured_grammar
from ember.front.errors import bad_request
from ember.settings import Settings
from ember.wire import Ready, SamplingParams

MAX_N = 16384
MAX_BAD_WORDS = 128
MAX_BAD_WORD_TOKENS = 1024  # of one: each step compares them with the end of the output
MAX_LOGPROB_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 100.0
LOWEST_TEMPERATURE = 0.01  # below it the logits overflow; 0 itself is greedy
COMPLETION_MAX_TOKENS = 16
INT64_MAX = 2**63 - 1


def sampling_params(request: GenerationRequest, services: Services, info: Ready) -> SamplingParams:
    """All but the lengths, which depend on the prompt: see `with_lengths`. Raises ApiError 400."""
    defaults = services.generation_defaults
    temperature = float(_checked("temperature", request, defaults, 1.0))
    top_p = float(_checked("top_p", request, defaults, 1.0))
    top_k = max(int(_checked("top_k", request, defaults, 0)), 0)
    min_p = float(_checked("min_p", request, defaults, 0.0))
    n, best_of = _num_samples(request, info)
    if temperature == 0:
        for name, count in (("n", n), ("best_of", best_of)):
            if count > 1 and not request.use_beam_search:
                raise bad_request(f"{name} must be 1 when using greedy sampling, got {count}.", name)
        top_p, top_k, min_p = 1.0, 0, 0.0
    elif temperature < LOWEST_TEMPERATURE:
        temperature = LOWEST_TEMPERATURE
    logprobs, prompt_logprobs = requested_logprobs(request, services.settings, info)
    check_token_ids(request.stop_token_ids or [], info, "stop_token_ids")
    if request.allowed_token_ids is not None and not request.allowed_token_ids:
        raise bad_request("allowed_token_ids must not be empty.", "allowed_token_ids")
    check_token_ids(request.allowed_token_ids or [], info, "allowed_token_ids")
    check_cache_salt(request.cache_salt)
    logprob_token_ids = _logprob_token_ids(request, logprobs, info)
    if logprob_token_ids:
        logprobs = 0  # the named tokens replace the most likely ones
    if best_of > n and logprobs is None and not request.use_beam_search:
        logprobs = 0  # by which the best are found
    return SamplingParams(
        max_tokens=1,
        n=n if request.use_beam_search else best_of,
        temperature=temperature,
        top_p=top_p,
        top_k=min(top_k, info.vocab_size),
        min_p=min_p,
        repetition_penalty=float(_checked("repetition_penalty", request, defaults, 1.0)),
        presence_penalty=float(_checked("presence_penalty", request, defaults, 0.0)),
        frequency_penalty=float(_checked("frequency_penalty", request, defaults, 0.0)),
        logit_bias=_logit_bias(request.logit_bias or {}, info),
        allowed_token_ids=sorted(set(request.allowed_token_ids)) if request.allowed_token_ids else None,
        bad_words=_bad_words(request.bad_words or [], services, info),
        ignore_eos=bool(request.ignore_eos),
        stop_token_ids=sorted(set(request.stop_token_ids or [])),
        seed=None if request.seed == -1 else request.seed,
        logprobs=logprobs,
        logprob_token_ids=logprob_token_ids,
        prompt_logprobs=prompt_logprobs,
        grammar=structured_grammar(request, services.tokenizer),
    )


def _num_samples(request: GenerationRequest, info: Ready) -> tuple[int, int]:
    """`n` and `best_of`, which is `n` unless it is given. Raises ApiError 400."""
    n = 1 if request.n is None else request.n
    best_of = n if request.best_of is None else request.best_of
    for name, count in (("n", n), ("best_of", best_of)):
        if count > max_samples(info):
            raise bad_request(f"{name} must be at most {max_samples(info)}, got {count}.", name)
    if n < 1:
        raise bad_request(f"n must be at least 1, got {n}.", "n")
    if best_of < n:
        raise bad_request(f"best_of must be greater than or equal to n, got n={n} and best_of={best_of}.", "best_of")
    return n, best_of


def _penalty_allowed(value: float) -> bool:
    return -2 <= value <= 2


# What a request and the deployment's defaults may say: the test of a value, and its words.
_ALLOWED: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value <= 2, "in [0, 2]"),
    "top_p": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "top_k": (lambda value: value >= -1, "0 (disable), or at least 1"),
    "min_p": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "presence_penalty": (_penalty_allowed, "in [-2, 2]"),
    "frequency_penalty": (_penalty_allowed, "in [-2, 2]"),
    "repetition_penalty": (lambda value: 0 < value < math.inf, "greater than zero"),
}


def checked_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The generation defaults as numbers, which may be written as a request may write them: 20.0 or "20" for 20. None
    stands for unset. Raises ValueError, one line, for the first that cannot be used."""
    checked: dict[str, Any] = {}
    for name, given in defaults.items():
        value: Any = None
        if name == "skip_special_tokens":
            value, allowed = _as_flag(given), "true or false"
        elif name == "max_new_tokens":
            value, allowed = _as_number(given, whole=True), "a whole number of at least 1"
            value = value if value is not None and value >= 1 else None
        elif name in _ALLOWED:
            is_fit, allowed = _ALLOWED[name]
            whole = name == "top_k"
            value = _as_number(given, whole)
            value = value if value is not None and is_fit(value) else None
            allowed = f"a {'whole ' if whole else ''}number, {allowed}"
        else:
            known = ", ".join(["max_new_tokens", *_ALLOWED, "skip_special_tokens"])
            raise ValueError(f"{name[:64]!r} is no sampling default; there are {known}")
        if given is not None and value is None:
            raise ValueError(f"the sampling default {name} must be {allowed}, not {reprlib.repr(given)}")
        checked[name] = value
    return checked


def _as_number(value: Any, whole: bool) -> float | None:
    """Converts a value to a number; None where it is none, or has a fraction and must be whole."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not whole:
        return value
    return int(value) if abs(value) <= INT64_MAX and value == int(value) else None


def _as_flag(value: Any) -> bool | None:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _checked(name: str, request: GenerationRequest, defaults: Mapping[str, Any], neutral: float) -> float:
    value = getattr(request, name)
    if value is None:
        value = defaults.get(name)
    if value is None:
        value = neutral
    is_fit, allowed = _ALLOWED[name]
    if not is_fit(value):
        raise bad_request(f"{name} must be {allowed}, got {value:g}.", name)
    return value


def max_samples(info: Ready) -> int:
    """Most samples of one request that asks for several of each prompt: four full steps, and 128 in any case."""
    return min(MAX_N, max(128, 4 * info.max_num_seqs))


def check_num_samples(n: int, num_prompts: int, info: Ready) -> None:
    """Each sample holds memory in both processes from the start. One of each prompt is always fine. Raises ApiError."""
    most = max_samples(info)
    if n > 1 and n * num_prompts > most:
        raise bad_request(f"n times the number of prompts must be at most {most}, got {n * num_prompts}.", "n")


def _logit_bias(given: dict[str, float], info: Ready) -> dict[int, float]:
    bias: dict[int, float] = {}
    if len(given) > info.vocab_size:
        message = f"logit_bias must have at most {info.vocab_size} entries, one for each token, got {len(given)}."
        raise bad_request(message, "logit_bias")
    invalid = []
    for key, value in given.items():
        try:
            bias[int(key)] = max(-MAX_LOGIT_BIAS, min(MAX_LOGIT_BIAS, value))
        except ValueError:
            invalid.append(key)
    problems = []
    if invalid:
        named = listed([repr(key[:64]) for key in invalid])
        message = f"Invalid key{'s' if len(invalid) > 1 else ''} in 'logit_bias': {named}. Keys must be token ids."
        problems.append(f"{message} (parameter=logit_bias, value={named})")
    if (unknown := out_of_vocabulary(bias.keys(), info, "logit_bias")) is not None:
        problems.append(unknown)
    no_numbers = [repr(key[:64]) for key, value in given.items() if math.isnan(value)]
    if no_numbers:
        problems.append(f"The value of {listed(no_numbers)} in 'logit_bias' is not a number.")
    if problems:
        raise bad_request(" ".join(problems), "logit_bias")
    return bias


def _bad_words(words: Sequence[str], services: Services, info: Ready) -> list[list[int]]:
    """Each word is forbidden as it is and after a blank, as tokens differ between the two."""
    if len(words) > MAX_BAD_WORDS:
        raise bad_request(f"bad_words must have at most {MAX_BAD_WORDS} entries, got {len(words)}.", "bad_words")
    sequences: list[list[int]] = []
    for word in words:
        bare = word.lstrip()
        if len(bare) > info.max_model_len:
            raise bad_request(f"bad_words contains a word of {len(bare)} characters, which is too long.", "bad_words")
        spelled = (bare, f" {bare}") if bare else ()
        found = [encode(services.tokenizer, text, False, "bad_words") for text in spelled]
        if not any(found):
            raise bad_request(f"bad_words contains {word[:64]!r}, which has no tokens.", "bad_words")
        sequences.extend(token_ids for token_ids in found if token_ids and token_ids not in sequences)
    if len(sequences) > MAX_BAD_WORDS:
        message = f"bad_words must have at most {MAX_BAD_WORDS} entries after tokenising, got {len(sequences)}."
        raise bad_request(message, "bad_words")
    for sequence in sequences:
        if len(sequence) > MAX_BAD_WORD_TOKENS:
            message = f"bad_words contains a word of {len(sequence)} tokens; {MAX_BAD_WORD_TOKENS} are allowed."
            raise bad_request(message, "bad_words")
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


def _logprob_token_ids(request: GenerationRequest, logprobs: int | None, info: Ready) -> list[int]:
    token_ids = request.logprob_token_ids or []
    if token_ids and logprobs is None:
        raise bad_request("when using `logprob_token_ids`, `logprobs` must be set.", "logprob_token_ids")
    if token_ids and _scores_only(request):
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
    if wanted is None:
        wanted = services.generation_defaults.get("max_new_tokens")
    limits = [
        wanted,
        _hard_cap(services.settings, services.generation_defaults),
        info.max_model_len - num_prompt_tokens,
    ]
    max_tokens = min(limit for limit in limits if limit is not None)
    if max_tokens < 1 and not _scores_only(request):
        raise bad_request(f"max_tokens must be at least 1, got {max_tokens}.", field)
    if min_tokens > max_tokens:
        message = f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
        raise bad_request(message, "min_tokens")
    return msgspec.structs.replace(params, max_tokens=max_tokens, min_tokens=min_tokens)


def wanted_tokens(request: GenerationRequest) -> tuple[int | None, str]:
    """The output length asked for, and the field it came from; None = as much as fits."""
    newer = request.max_completion_tokens
    if newer is not None:
        if isinstance(request, CompletionRequest) and request.max_tokens not in (None, newer):
            message = (
                f"max_tokens={request.max_tokens} and max_completion_tokens={newer} mean the same; give one of them."
            )
            raise bad_request(message, "max_completion_tokens")
        return newer, "max_completion_tokens"
    if isinstance(request, CompletionRequest) and request.max_tokens is None:
        return COMPLETION_MAX_TOKENS, "max_tokens"
    return request.max_tokens, "max_tokens"


def _scores_only(request: GenerationRequest) -> bool:
    """`max_tokens: 0` with `echo` wants the prompt back with its log probabilities, and no output."""
    return isinstance(request, CompletionRequest) and wanted_tokens(request)[0] == 0 and bool(request.echo)


def _hard_cap(settings: Settings, defaults: dict[str, Any]) -> int | None:
    """The operator's max_new_tokens binds; the one of the model's own generation_config is a mere default."""
    if "max_new_tokens" in settings.override_generation_config or settings.generation_config not in ("auto", "vllm"):
        return defaults.get("max_new_tokens")
    return None
