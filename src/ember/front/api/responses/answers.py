"""The models of the answers of /v1/responses for /openapi.json, as `front/api/answers.py` has those of chats."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ember.front.api.answers import AnswerModel, ChatLogprob

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class ReasoningText(AnswerModel):
    type: Literal["reasoning_text"]
    text: str


class OutputText(AnswerModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChatLogprob]


class ReasoningItem(AnswerModel):
    id: str
    type: Literal["reasoning"]
    summary: list[Any]
    content: list[ReasoningText]
    encrypted_content: str | None
    status: Status


class MessageItem(AnswerModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class FunctionCallItem(AnswerModel):
    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str
    status: Status


OutputItem = Annotated[ReasoningItem | MessageItem | FunctionCallItem, Field(discriminator="type")]


class CachedTokens(AnswerModel):
    cached_tokens: int
    cache_write_tokens: int


class ReasoningTokens(AnswerModel):
    reasoning_tokens: int


class ResponseUsage(AnswerModel):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseFailure(AnswerModel):
    code: str
    message: str


class IncompleteDetails(AnswerModel):
    reason: Literal["max_output_tokens"]


class ReasoningOptions(AnswerModel):
    effort: str | None
    summary: str | None


class RawMessage(AnswerModel):
    type: Literal["raw_message_tokens"]
    message: str
    tokens: list[int]


class ResponseObject(AnswerModel):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt: None
    prompt_cache_key: str | None
    reasoning: ReasoningOptions
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None
    input_messages: list[RawMessage] | None = None
    output_messages: list[RawMessage] | None = None


class ResponseEvent(AnswerModel):
    """An event of a stream. Beside its type and number it has what the type says."""

    model_config = ConfigDict(extra="forbid")

    type: str
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: OutputItem | None = None
    part: Annotated[ReasoningText | OutputText, Field(discriminator="type")] | None = None
    delta: str | None = None
    text: str | None = None
    logprobs: list[ChatLogprob] | None = None
    name: str | None = None
    arguments: str | None = None


class InputTokens(AnswerModel):
    object: Literal["response.input_tokens"]
    input_tokens: int


class ResponseDeleted(AnswerModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(AnswerModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
