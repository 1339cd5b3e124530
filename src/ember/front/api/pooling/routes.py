"""The routes of pooling models. Their modules are imported at the first request, so that no other boot waits for
them."""

from __future__ import annotations

from typing import Any

from ember.front.api.openai_forms import openai_error
from ember.front.api.route import Description, ErrorForm, Handler, Route, loaded_later
from ember.front.errors import ApiError
from ember.wire import PoolingTask


def cohere_error(error: ApiError) -> dict[str, Any]:
    """Cohere's `message`, and `error` for clients of vLLM, whose routes of these names answer in OpenAI's form."""
    return {"message": error.message, **openai_error(error)}


COHERE_ERRORS = ErrorForm(cohere_error, "CohereError")


_ROOM = "ember.front.api.pooling"
_embeddings = loaded_later(f"{_ROOM}.embeddings", "create_embeddings")
_pooling = loaded_later(f"{_ROOM}.embeddings", "create_pooling")
_classify = loaded_later(f"{_ROOM}.classify", "create_classification")
_score = loaded_later(f"{_ROOM}.score", "create_score")
_rerank = loaded_later(f"{_ROOM}.score", "create_rerank")
_cohere_rerank = loaded_later(f"{_ROOM}.score", "create_cohere_rerank")
_cohere_embed = loaded_later(f"{_ROOM}.cohere", "create_cohere_embeddings")
_first_cohere_embed = loaded_later(f"{_ROOM}.cohere", "create_first_cohere_embeddings")


SIDES = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))
_INPUT = (("input",), ("messages",))  # what tells a body of texts
_INPUT_AND_TASK = (("input", "task"), ("messages", "task"))


SCORING: tuple[PoolingTask, ...] = ("score", "embed", "token_embed")
"""The tasks of which scores are made: the first one that the model does."""


def _scoring(path: str, answer: Handler, **fields: Any) -> Route:
    is_rerank = path.endswith("rerank")
    about = Description(
        summary="Sort documents by a query" if is_rerank else "Score pairs of texts",
        body=("RerankRequest",) if is_rerank else ("ScoreRequest",),
        answer=("Rerank",) if is_rerank else ("Scores",),
    )
    return Route(path=path, methods=("POST",), answer=answer, tasks=SCORING, about=about, **fields)


POOLING_ROUTES = (
    Route(
        path="/v1/embeddings",
        methods=("POST",),
        answer=_embeddings,
        tasks=("embed",),
        identifying_fields=(*_INPUT_AND_TASK, *_INPUT),
        about=Description(summary="Embed texts", body=("EmbeddingRequest",), answer=("Embeddings",)),
    ),
    Route(
        path="/v2/embed",
        methods=("POST",),
        answer=_cohere_embed,
        tasks=("embed",),
        identifying_fields=(("texts",), ("inputs",)),
        errors=COHERE_ERRORS,
        about=Description(
            summary="Embed texts, in Cohere's form", body=("CohereEmbedRequest",), answer=("CohereEmbeddings",)
        ),
    ),
    Route(
        path="/v1/embed",
        methods=("POST",),
        answer=_first_cohere_embed,
        tasks=("embed",),
        errors=COHERE_ERRORS,
        about=Description(
            summary="Embed texts, in the form of Cohere's first API",
            body=("CohereEmbedRequest",),
            answer=("CohereFloats", "CohereEmbeddings"),
        ),
    ),
    Route(
        path="/classify",
        methods=("POST",),
        answer=_classify,
        tasks=("classify",),
        identifying_fields=_INPUT,
        about=Description(summary="Classify texts", body=("ClassifyRequest",), answer=("Classification",)),
    ),
    Route(
        path="/pooling",
        methods=("POST",),
        answer=_pooling,
        tasks=("embed", "token_embed", "classify", "token_classify", "score"),
        identifying_fields=(*_INPUT_AND_TASK, *_INPUT),
        about=Description(summary="Vectors of texts or of their tokens", body=("PoolRequest",), answer=("PooledList",)),
    ),
    _scoring("/score", _score, identifying_fields=SIDES),
    _scoring("/v1/score", _score),
    _scoring("/rerank", _rerank, job_field="query", identifying_fields=(("query", "documents"),)),
    _scoring("/v1/rerank", _rerank),
    _scoring("/v2/rerank", _cohere_rerank, errors=COHERE_ERRORS),
)
