"""The bodies of POST /v1/chat/completions and /v1/completions.

`null` means the same as leaving a field out, so every field is optional with the default None, and values are coerced
where that is harmless (`"1"` is 1). Unknown fields are kept in `model_extra`. Ranges are checked in `sampling.py`,
because the messages name what is allowed; what this version cannot do is refused in `unsupported.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Required

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenIds = Annotated[list[Int64], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]


class StreamOptions(BaseModel):
    """Which usage a stream reports."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(BaseModel):
    """Only `{"type": "text"}` is understood in this version."""

    model_config = ConfigDict(extra="allow")

    type: str
    json_schema: dict[str, Any] | None = None


class GenerationRequest(BaseModel):
    """The fields that chat and completions share."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None
    # sampling
    n: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int64 | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Int64 | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Texts | None = None
    # the end of the output
    max_tokens: Int64 | None = None
    min_tokens: Int64 | None = None
    stop: str | Texts | None = None
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    # what is returned
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    prompt_logprobs: Int64 | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    # the prompt
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[Int64, Field(ge=-1)] | None = None
    truncation_side: Annotated[str, Field(pattern="^(left|right)$")] | None = None
    # scheduling
    priority: Int64 | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    # understood, and refused where they ask for what this version cannot do
    response_format: ResponseFormat | None = None
    best_of: Int64 | None = None
    use_beam_search: bool | None = None


class Message(TypedDict, total=False):
    """One message of a chat. Further keys are kept and handed to the template."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    role: Required[str]
    content: str | list[str | dict[str, Any]] | None
    name: str | None
    tool_calls: list[dict[str, Any]] | None
    tool_call_id: str | None
    reasoning: str | None
    reasoning_content: str | None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Int64 | None = None
    logprobs: bool | None = None
    top_logprobs: Int64 | None = None
    # the template
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: Annotated[str, Field(pattern="^(none|minimal|low|medium|high|xhigh|max)$")] | None = None
    include_reasoning: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    return_prompt_text: bool | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions. Prompts are text or token ids, one or a list."""

    prompt: str | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)] | Texts | None = None
    logprobs: Int64 | None = None
    suffix: str | None = None
