"""The body of POST /v1/responses.

Items of the input are checked where they are read (`items.py`), because the messages of errors name the item. Fields
that vLLM has beside OpenAI's keep their names from chats.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ember.front.api.schemas import Int64, Items, Objects, OpenModel, few_keys

Item = Annotated[dict[str, Any], BeforeValidator(few_keys)]


class InputTokensRequest(OpenModel):
    """POST /v1/responses/input_tokens, and what a response's body has of the prompt."""

    model: str | None = None
    input: str | Items[Item] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Objects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    truncation: Annotated[str, Field(pattern="^(auto|disabled)$")] | None = None
    conversation: Any = None
    previous_input_messages: Any = None
    prompt: Any = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ResponsesRequest(InputTokensRequest):
    """POST /v1/responses."""

    background: bool | None = None
    enable_response_messages: bool | None = None
    include: Items[str] | None = None
    include_reasoning: bool | None = None
    max_output_tokens: Int64 | None = None
    max_tool_calls: Annotated[Int64, Field(ge=1)] | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Annotated[str, Field(pattern="^(auto|default|flex|scale|priority)$")] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    temperature: float | None = None
    top_logprobs: Int64 | None = None
    top_p: float | None = None
    user: str | None = None
