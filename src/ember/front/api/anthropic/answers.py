"""The models of Anthropic's answers for /openapi.json, as `front/api/answers.py` has those of OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ember.front.api.answers import AnswerModel


class AnthropicErrorCode(AnswerModel):
    error_code: str
    unsupported: list[str]


class AnthropicErrorDetail(AnswerModel):
    type: str
    message: str
    details: AnthropicErrorCode | None = None


class AnthropicError(AnswerModel):
    type: Literal["error"]
    error: AnthropicErrorDetail


class AnthropicTokens(AnswerModel):
    input_tokens: int


class ThinkingBlock(AnswerModel):
    type: Literal["thinking"]
    thinking: str
    signature: str


class TextBlock(AnswerModel):
    type: Literal["text"]
    text: str


class ToolUseBlock(AnswerModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnthropicBlock = Annotated[ThinkingBlock | TextBlock | ToolUseBlock, Field(discriminator="type")]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class AnthropicUsage(AnswerModel):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnthropicAnswer(AnswerModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnthropicBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: AnthropicUsage


class MessageStart(AnswerModel):
    type: Literal["message_start"]
    message: AnthropicAnswer


class Ping(AnswerModel):
    type: Literal["ping"]


class BlockStartEvent(AnswerModel):
    type: Literal["content_block_start"]
    index: int
    content_block: AnthropicBlock


class TextDelta(AnswerModel):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(AnswerModel):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(AnswerModel):
    type: Literal["signature_delta"]
    signature: str


class InputDelta(AnswerModel):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDeltaEvent(AnswerModel):
    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[TextDelta | ThinkingDelta | SignatureDelta | InputDelta, Field(discriminator="type")]


class BlockStopEvent(AnswerModel):
    type: Literal["content_block_stop"]
    index: int


class StopDelta(AnswerModel):
    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(AnswerModel):
    type: Literal["message_delta"]
    delta: StopDelta
    usage: AnthropicUsage


class MessageStop(AnswerModel):
    type: Literal["message_stop"]
