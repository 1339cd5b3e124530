"""The models of the pooling routes' answers for /openapi.json; see `api/answers.py`."""

from __future__ import annotations

from typing import Literal

from ember.front.api.answers import AnswerModel, ErrorDetail, Usage


class Embedding(AnswerModel):
    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class Embeddings(AnswerModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Embedding]
    usage: Usage


class PooledData(AnswerModel):
    index: int
    object: Literal["pooling"]
    data: list[list[float]] | list[float] | str


class PooledList(AnswerModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PooledData]
    usage: Usage


class Classified(AnswerModel):
    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class Classification(AnswerModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class Score(AnswerModel):
    index: int
    object: Literal["score"]
    score: float


class Scores(AnswerModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


class RankedDocument(AnswerModel):
    text: str
    multi_modal: None


class Ranked(AnswerModel):
    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankUsage(AnswerModel):
    prompt_tokens: int
    total_tokens: int


class ApiVersion(AnswerModel):
    version: Literal["1", "2"]


class CohereTokens(AnswerModel):
    input_tokens: int


class CohereMeta(AnswerModel):
    api_version: ApiVersion
    billed_units: CohereTokens
    tokens: CohereTokens


class Rerank(AnswerModel):
    id: str
    model: str
    usage: RerankUsage
    results: list[Ranked]
    meta: CohereMeta | None = None


Rows = list[list[float]]  # named here, as a field of the next class is called float


class CohereVectors(AnswerModel):
    float: Rows | None = None
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class CohereEmbeddings(AnswerModel):
    id: str
    embeddings: CohereVectors
    texts: list[str] | None = None
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"]


class CohereFloats(AnswerModel):
    id: str
    embeddings: Rows
    texts: list[str]
    meta: CohereMeta
    response_type: Literal["embeddings_floats"]


class CohereError(AnswerModel):
    message: str
    error: ErrorDetail | Literal["Unauthorized"]
