"""The `usage` object, and the chunks of a stream that carry it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ember.front.api.schemas import GenerationRequest
from ember.front.errors import bad_request
from ember.settings import Settings


@dataclass(frozen=True, slots=True)
class StreamUsage:
    """Where a stream reports usage: `at_end` in a last chunk of its own, `in_chunks` so far in every chunk."""

    at_end: bool = False
    in_chunks: bool = False


def stream_usage(request: GenerationRequest, settings: Settings) -> StreamUsage:
    """The chunks that report usage. Raises ApiError 400 for stream options without a stream."""
    options = request.stream_options
    if options is not None and not request.stream:
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")
    if settings.enable_force_include_usage:
        return StreamUsage(True, True)
    if options is None:
        return StreamUsage()
    wanted = bool(options.continuous_usage_stats) if options.include_usage is None else options.include_usage
    return StreamUsage(wanted, wanted and bool(options.continuous_usage_stats))


def usage_body(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int | None, reasoning_tokens: int | None = None
) -> dict[str, Any]:
    """The usage of a whole answer. `cached_tokens` is None when the deployment does not report them, `reasoning_tokens`
    when outputs are not read for reasoning."""
    details = None
    if cached_tokens is not None:
        details = {"cached_tokens": cached_tokens, "created_cache_tokens": None, "multimodal_tokens": None}
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": details,
        "completion_tokens_details": _completion_details(reasoning_tokens),
    }


def _completion_details(reasoning_tokens: int | None) -> dict[str, Any] | None:
    return None if reasoning_tokens is None else {"reasoning_tokens": reasoning_tokens}


def usage_for_stream(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int | None, reasoning_tokens: int | None = None
) -> dict[str, Any]:
    """The usage in a stream: the same without nulls."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }
    if cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    if reasoning_tokens is not None:
        usage["completion_tokens_details"] = _completion_details(reasoning_tokens)
    return usage
