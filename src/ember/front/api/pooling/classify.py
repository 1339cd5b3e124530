"""POST /classify: the class of each text, with its probabilities."""

from __future__ import annotations

from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.exchange import Request, Response
from ember.front.api.pooling.call import activation_of, open_pooling_call, prompt_of, written
from ember.front.api.pooling.schemas import ClassifyRequest
from ember.front.api.pooling.texts import read_texts
from ember.front.api.pooling.vectors import values_of
from ember.front.api.services import Services
from ember.wire import Pooled


async def create_classification(services: Services, raw_request: Request) -> Response:
    """Classify the texts of `input`, or the conversation in `messages`. Raises ApiError."""
    info = await services.ready()
    request = await parse_body(ClassifyRequest, raw_request.body)
    call = open_pooling_call(raw_request, request, services, info, "classify")
    texts = await read_texts(request, services, info, prompt_of(request.prompt_name, services))
    pooled = await call.run(texts, "classify", use_activation=activation_of(request))
    labels = call.pooling.labels

    def write() -> Response:
        body = {
            "id": call.id,
            "object": "list",
            "created": call.created,
            "model": services.model_name,
            "data": [_entry(index, each, labels) for index, each in enumerate(pooled)],
            "usage": call.usage(),
        }
        return Response(200, body, call.headers)

    return await written(pooled, write)


def _entry(index: int, pooled: Pooled, labels: list[str]) -> dict[str, Any]:
    probabilities = values_of(pooled)
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {
        "index": index,
        "label": labels[best] if best < len(labels) else None,
        "probs": probabilities,
        "num_classes": len(probabilities),
    }
