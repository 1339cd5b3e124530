"""The bodies of POST /v1/messages and /v1/messages/count_tokens.

Blocks are checked where they are read (`conversation.py`), because the messages of errors name the block. Fields that
vLLM's Messages API has beside Anthropic's keep their names from chats.
"""

from __future__ import annotations

from typing import Annotated, Any, Required

from pydantic import BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from ember.front.api.schemas import MAX_ITEMS, Int64, Items, Objects, OpenModel, few_keys


class AnthropicMessage(TypedDict, total=False):
    """One message: a text, or a list of blocks."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    role: Required[str]
    content: Required[str | Items[dict[str, Any]]]


AnthropicMessages = Annotated[
    list[Annotated[AnthropicMessage, BeforeValidator(few_keys)]],
    Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True),
]


class CountTokensRequest(OpenModel):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: AnthropicMessages
    system: str | Items[dict[str, Any]] | None = None
    tools: Objects | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None  # of `output_config`, under its name in a beta
    mcp_servers: Items[Any] | None = None
    thread: Any = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: Int64
    stop_sequences: Items[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: Int64 | None = None
    top_p: float | None = None
