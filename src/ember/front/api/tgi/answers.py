"""The models of answers of Text Generation Inference for /openapi.json."""

from __future__ import annotations

from typing import Literal

from pydantic import RootModel

from ember.front.api.answers import AnswerModel

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class TgiError(AnswerModel):
    error: str
    error_type: Literal["validation", "generation", "overloaded"]


class TgiPrefillToken(AnswerModel):
    id: int
    text: str
    logprob: float | None


class TgiToken(AnswerModel):
    id: int
    text: str
    logprob: float
    special: bool


class TgiDetails(AnswerModel):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[TgiPrefillToken]
    tokens: list[TgiToken]
    top_tokens: list[list[TgiToken]] | None = None


class TgiAnswer(AnswerModel):
    generated_text: str
    details: TgiDetails | None = None


class TgiAnswers(RootModel[list[TgiAnswer]]):
    """A list of one answer."""


class TgiStreamDetails(AnswerModel):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class TgiChunk(AnswerModel):
    index: int
    token: TgiToken
    top_tokens: list[TgiToken] | None = None
    generated_text: str | None
    details: TgiStreamDetails | None
