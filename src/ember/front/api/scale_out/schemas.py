"""The bodies of the routes that divide a request between servers, under vLLM's names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ember.front.api.schemas import (
    MAX_PROMPTS,
    ChatRequest,
    CompletionRequest,
    Int64,
    Items,
    OpenModel,
    StreamOptions,
    TokenIds,
    few_keys,
)

Count = Annotated[int, Field(ge=0, le=2**31)]


class TokensRequest(OpenModel):
    """POST /inference/v1/generate, which is also what /render answers."""

    request_id: str | None = None
    token_ids: Annotated[TokenIds, Field(min_length=1)]
    sampling_params: Annotated[dict[str, Any], BeforeValidator(few_keys)]
    model: str | None = None
    output_mode: Literal["tokens", "text"] | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    priority: Int64 | None = None
    features: Any = None
    content_parts: Any = None
    kv_transfer_params: Any = None
    ec_transfer_params: Any = None


def _with_id(given: Any) -> Any:
    """An entry that has its token as `token_id:123`, as answers of chats may have it, with that number as its id."""
    token = given.get("token") if isinstance(given, dict) and "token_id" not in given else None
    if isinstance(token, str) and (number := token.removeprefix("token_id:")) != token and number.isdecimal():
        return {**given, "token_id": number[:12]}
    return given


class IdLogprob(OpenModel):
    token_id: Count
    logprob: float
    rank: Count | None = None


class IdLogprobAtPosition(IdLogprob):
    top_logprobs: Items[Annotated[IdLogprob, BeforeValidator(_with_id)]] | None = None


class IdLogprobs(OpenModel):
    content: (
        Annotated[
            list[Annotated[IdLogprobAtPosition, BeforeValidator(_with_id)]], Field(max_length=2**17, fail_fast=True)
        ]
        | None
    ) = None


class GeneratedChoice(OpenModel):
    index: Count
    finish_reason: Literal["stop", "length", "abort", "error", "repetition", "tool_calls"] | None = "stop"
    token_ids: TokenIds | None = None
    logprobs: IdLogprobs | None = None

    @property
    def entries(self) -> list[IdLogprobAtPosition]:
        """The log probabilities at each position; empty without them."""
        return (self.logprobs.content if self.logprobs is not None else None) or []


class Generated(OpenModel):
    """An answer of /inference/v1/generate in its mode `tokens`."""

    request_id: str | None = None
    output_mode: Literal["tokens"] = "tokens"
    choices: Annotated[list[GeneratedChoice], Field(min_length=1, max_length=1024, fail_fast=True)]
    prompt_token_ids: TokenIds | None = None
    prompt_logprobs: Items[dict[str, Any] | None] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    ec_transfer_params: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None


class GeneratedPart(GeneratedChoice):
    finish_reason: Literal["stop", "length", "abort", "error", "repetition", "tool_calls"] | None = None


class GeneratedChunk(OpenModel):
    """A chunk of a stream of /inference/v1/generate in its mode `tokens`."""

    request_id: str | None = None
    output_mode: Literal["tokens"] = "tokens"
    choices: Annotated[list[GeneratedPart], Field(max_length=1024, fail_fast=True)] = Field(default_factory=list)
    usage: dict[str, Any] | None = None


class StreamState(OpenModel):
    """What a stream has had before a chunk. A client sends back what it got with the last one."""

    request_id: str | None = None
    has_begun: bool = False
    output_token_ids: TokenIds = Field(default_factory=list)
    tool_call_ids: Items[str] = Field(default_factory=list)


class DerenderChatRequest(OpenModel):
    """POST /v1/chat/completions/derender."""

    model: str | None = None
    stream: Literal[False] = False
    generate_response: Generated
    prompt_tokens: Count | None = None
    prompt_token_ids: TokenIds | None = None
    chat_request: ChatRequest | None = None


class DerenderCompletionRequest(OpenModel):
    """POST /v1/completions/derender."""

    model: str | None = None
    stream: Literal[False] = False
    generate_responses: Annotated[list[Generated], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    prompt_tokens: Annotated[list[Count], Field(max_length=MAX_PROMPTS, fail_fast=True)] | None = None
    prompt_token_ids: Annotated[list[TokenIds | None], Field(max_length=MAX_PROMPTS, fail_fast=True)] | None = None
    completion_request: CompletionRequest | None = None


class _DerenderChunk(OpenModel):
    model: str | None = None
    stream: Literal[True]
    generate_chunk: GeneratedChunk
    stream_state: StreamState | None = None
    prompt_tokens: Count | None = None
    prompt_token_ids: TokenIds | None = None


class DerenderChatChunkRequest(_DerenderChunk):
    """POST /v1/chat/completions/derender with `stream`."""

    chat_request: ChatRequest | None = None


class DerenderCompletionChunkRequest(_DerenderChunk):
    """POST /v1/completions/derender with `stream`."""

    completion_request: CompletionRequest | None = None
