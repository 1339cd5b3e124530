"""What ends an output: stop strings, stop tokens, and the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ember.front.api.schemas import CompletionRequest, GenerationRequest
from ember.front.api.services import Services
from ember.front.api.vocabulary import check_token_ids
from ember.front.errors import bad_request
from ember.settings import Settings
from ember.wire import Ready, SamplingParams

COMPLETION_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Ends:
    """What ends the outputs of one request, whatever the prompt."""

    stop: Sequence[str]
    stop_token_ids: list[int]  # sorted; beside the model's end tokens
    ignore_eos: bool
    min_tokens: int
    limit: int | None  # output tokens at most; None = as many as fit into the context
    limit_field: str  # the field of the request that sets `limit`, or could
    scores_only: bool  # the prompt is scored, and there is no output

    def max_tokens(self, num_prompt_tokens: int, max_model_len: int) -> int:
        """The limit of an output after a prompt of that length: what the context leaves, or less. Raises ApiError 400
        where nothing is left."""
        room = max_model_len - num_prompt_tokens
        max_tokens = room if self.limit is None else min(self.limit, room)
        if max_tokens < 1 and not self.scores_only:
            raise bad_request(f"max_tokens must be at least 1, got {max_tokens}.", self.limit_field)
        if self.min_tokens > max_tokens:
            message = f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {self.min_tokens}."
            raise bad_request(message, "min_tokens")
        return max_tokens


def requested_ends(request: GenerationRequest, services: Services, info: Ready) -> Ends:
    """Raises ApiError 400."""
    check_token_ids(request.stop_token_ids or [], info, "stop_token_ids")
    min_tokens = request.min_tokens or 0
    if min_tokens < 0:
        raise bad_request(f"min_tokens must be greater than or equal to 0, got {min_tokens}.", "min_tokens")
    wanted, field = _wanted_tokens(request)
    if wanted is not None and wanted > info.max_model_len:
        message = (
            f"{field}={wanted} cannot be greater than max_model_len={info.max_model_len}. Please request fewer output "
            f"tokens. (parameter={field}, value={wanted})"
        )
        raise bad_request(message, field)
    return Ends(
        stop=_stop_strings(request, services.settings),
        stop_token_ids=sorted(set(request.stop_token_ids or [])),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=min_tokens,
        limit=_limit(wanted, services),
        limit_field=field,
        scores_only=isinstance(request, CompletionRequest) and wanted == 0 and bool(request.echo),
    )


def end_token_ids(params: SamplingParams, info: Ready) -> frozenset[int]:
    """Every token that ends an output: the request's stop tokens, and the model's end tokens unless it ignores them."""
    return frozenset(params.stop_token_ids).union(() if params.ignore_eos else info.eos_token_ids)


def _stop_strings(request: GenerationRequest, settings: Settings) -> list[str]:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stop) > settings.max_stop_strings:
        raise bad_request(f"stop must have at most {settings.max_stop_strings} items, got {len(stop)}.", "stop")
    if "" in stop:
        raise bad_request("stop cannot contain an empty string.", "stop")
    return list(dict.fromkeys(stop))


def _wanted_tokens(request: GenerationRequest) -> tuple[int | None, str]:
    """The output length that the request asks for, and the field that says so. None = as much as fits."""
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


def _limit(wanted: int | None, services: Services) -> int | None:
    """The request's limit and the deployment's. A max_new_tokens that the operator set is a cap; one of the model's own
    generation_config.json is a default, which a request may exceed."""
    settings = services.settings
    of_deployment: int | None = services.generation_defaults.get("max_new_tokens")
    is_cap = "max_new_tokens" in settings.override_generation_config or settings.generation_config not in (
        "auto",
        "vllm",
    )
    if wanted is None:
        return of_deployment
    return min(wanted, of_deployment) if is_cap and of_deployment is not None else wanted
