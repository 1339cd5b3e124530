"""The models of these routes' answers for /openapi.json, as `front/api/answers.py` has those of OpenAI's."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import RootModel

from ember.front.api.answers import (
    AnswerModel,
    ChatCompletionChunk,
    ChatLogprobs,
    CompletionChunk,
    FinishReason,
    PromptLogprobs,
    RequestTimes,
    Usage,
)


class RenderedSampling(AnswerModel):
    n: int
    best_of: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop: list[str]
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    logprobs: int | None
    prompt_logprobs: int | None
    logprob_token_ids: list[int] | None
    logit_bias: dict[str, float] | None
    allowed_token_ids: list[int] | None
    bad_words: list[str]
    repetition_detection: dict[str, Any] | None
    structured_outputs: dict[str, Any] | None


class Rendered(AnswerModel):
    request_id: str
    token_ids: list[int]
    token_offsets: list[tuple[int, int]] | None
    features: None
    sampling_params: RenderedSampling
    model: str | None
    stream: bool
    stream_options: dict[str, Any] | None
    cache_salt: str | None
    priority: int
    kv_transfer_params: None
    ec_transfer_params: None


class RenderedList(RootModel[list[Rendered]]):
    """One for each prompt."""


class IdLogprobAnswer(AnswerModel):
    token_id: int
    logprob: float
    rank: int | None = None


class PositionAnswer(IdLogprobAnswer):
    top_logprobs: list[IdLogprobAnswer]


class PositionsAnswer(AnswerModel):
    content: list[PositionAnswer]


class TokensChoice(AnswerModel):
    index: int
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: list[int]
    logprobs: PositionsAnswer | ChatLogprobs | None
    routed_experts: None
    weight_versions: None
    text: str = ""


class TokensAnswer(AnswerModel):
    request_id: str
    model: str
    created: int
    output_mode: Literal["tokens", "text"]
    choices: list[TokensChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None
    kv_transfer_params: None
    ec_transfer_params: None
    metrics: RequestTimes | None


class TokensChunk(AnswerModel):
    request_id: str
    output_mode: Literal["tokens", "text"]
    choices: list[TokensChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None


class DerenderState(AnswerModel):
    request_id: str | None
    has_begun: bool
    output_token_ids: list[int]
    tool_call_ids: list[str]


class DerenderedChatChunk(AnswerModel):
    chunk: ChatCompletionChunk
    stream_state: DerenderState


class DerenderedCompletionChunk(AnswerModel):
    chunk: CompletionChunk
    stream_state: DerenderState


class LabelScore(AnswerModel):
    index: int
    object: Literal["score"]
    score: float


class LabelScores(AnswerModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[LabelScore]
    usage: Usage
