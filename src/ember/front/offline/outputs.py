"""The results of offline requests, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar


@dataclass(slots=True)
class Logprob:
    """The log probability of one token at one position."""

    logprob: float
    rank: int | None = None  # 1 = most likely
    decoded_token: str | None = None


Position = dict[int, Logprob]  # by token id: the token itself and the likeliest ones


@dataclass(slots=True)
class CompletionOutput:
    """One output of a prompt."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None  # None where no log probabilities were asked for
    logprobs: list[Position] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A prompt with its outputs."""

    request_id: str
    prompt: str | None  # None for a prompt that was given as token ids
    prompt_token_ids: list[int]
    prompt_logprobs: list[Position | None] | None
    outputs: list[CompletionOutput]
    finished: bool = True
    metrics: dict[str, float | None] | None = None
    lora_request: None = None
    num_cached_tokens: int = 0


@dataclass(slots=True)
class BeamSearchSequence:
    """One hypothesis, prompt included."""

    tokens: list[int]
    logprobs: list[Position]  # of the tokens behind the prompt
    cum_logprob: float
    text: str
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The best hypotheses of a prompt, the best one first."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)


@dataclass(slots=True)
class PoolingOutput:
    """A list of numbers, or for a task of every token one list for each."""

    data: list[Any]


@dataclass(slots=True)
class EmbeddingOutput:
    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    score: float


Output = TypeVar("Output")


@dataclass(slots=True)
class PoolingRequestOutput(Generic[Output]):
    """A text, or a pair of texts, with what the model made of it."""

    request_id: str
    outputs: Output
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """A text with its embedding."""


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """A text with the probabilities of its classes."""


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """A pair of texts with its score."""
