"""The models of answers for /openapi.json. Routes do not build their answers from these models; tests compare the two.

A field whose type is null alone exists in vLLM, so clients may read it. Only fields with a default may be absent.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "abort", "repetition", "tool_calls", "function_call"]


class AnswerModel(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


# ------------------------------------------------------------------------------------------------------------ errors


class ErrorDetail(AnswerModel):
    message: str
    type: str
    param: str | None
    code: int | str


class Error(AnswerModel):
    error: ErrorDetail


class Unauthorized(AnswerModel):
    error: Literal["Unauthorized"]


# ------------------------------------------------------------------------------------------------------- generation


class PromptTokensDetails(AnswerModel):
    cached_tokens: int
    created_cache_tokens: None = None
    multimodal_tokens: None = None


class CompletionTokensDetails(AnswerModel):
    reasoning_tokens: int


class Usage(AnswerModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class RequestTimes(AnswerModel):
    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None
    queue_time_ms: float | None = None
    mean_itl_ms: float | None = None
    tokens_per_second: float | None = None


class PromptLogprob(AnswerModel):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class TokenLogprob(AnswerModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(AnswerModel):
    content: list[ChatLogprob]


class FunctionCall(AnswerModel):
    name: str
    arguments: str


class ToolCall(AnswerModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(AnswerModel):
    role: str
    content: str | None
    refusal: None
    annotations: None
    audio: None
    function_call: FunctionCall | None
    reasoning: str | None
    reasoning_content: str | None
    tool_calls: list[ToolCall] = []


class ChatChoice(AnswerModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] | None
    routed_experts: None
    weight_versions: None


class _Whole(AnswerModel):
    id: str
    created: int
    model: str
    service_tier: None
    system_fingerprint: str
    usage: Usage
    kv_transfer_params: None
    ec_transfer_params: None


class ChatCompletion(_Whole):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None
    prompt_text: str | None
    metrics: RequestTimes | None


class ConversationChoice(ChatChoice):
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None
    metrics: RequestTimes | None = None


class ChatBatch(_Whole):
    object: Literal["chat.completion"]
    choices: list[ConversationChoice]


class CompletionLogprobs(AnswerModel):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(AnswerModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    token_ids: list[int] | None
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None
    routed_experts: None
    weight_versions: None


class Completion(_Whole):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    metrics: RequestTimes | None


# ----------------------------------------------------------------------------------------------------------- streams


class FunctionCallDelta(AnswerModel):
    name: str = ""
    arguments: str


class ToolCallDelta(AnswerModel):
    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCallDelta


class ChatDelta(AnswerModel):
    role: str = ""
    content: str = ""
    reasoning: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCallDelta] = []
    function_call: FunctionCallDelta | None = None


class ChatChunkChoice(AnswerModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    token_ids: list[int] = []


class _Chunk(AnswerModel):
    id: str
    created: int
    model: str
    system_fingerprint: str = ""
    usage: Usage | None = None
    metrics: RequestTimes | None = None


class ChatCompletionChunk(_Chunk):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None


class CompletionChunkChoice(AnswerModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: list[int] = []
    prompt_token_ids: list[int] = []


class CompletionChunk(_Chunk):
    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]


# ------------------------------------------------------------------------------------------------- tokens and models


class Tokens(AnswerModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str | None] | None


class Text(AnswerModel):
    prompt: str


class TokenizerInfo(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    tokenizer_class: str
    model_max_length: int
    added_tokens_decoder: dict[str, dict[str, bool | str]]
    chat_template: str = ""


class ModelPermission(AnswerModel):
    id: str
    object: Literal["model_permission"]
    created: int
    allow_create_engine: bool
    allow_sampling: bool
    allow_logprobs: bool
    allow_search_indices: bool
    allow_view: bool
    allow_fine_tuning: bool
    organization: str
    group: str | None
    is_blocking: bool


class Model(AnswerModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    tasks: list[str] | None
    max_model_len: int | None
    permission: list[ModelPermission]


class Models(AnswerModel):
    object: Literal["list"]
    data: list[Model]


# --------------------------------------------------------------------------------------------------------- operation


class ServerLoad(AnswerModel):
    server_load: int


class Version(AnswerModel):
    version: str


class BootReport(BaseModel):
    """The boot timeline; `ember boot-report` draws it."""

    model_config = ConfigDict(extra="allow")

    phases: list[dict[str, Any]]
    marks: dict[str, float]
