"""GET /openapi.json: the routes with the schemas of their requests and answers, as OpenAPI 3.1.

In: the table of routes (`router.py`) and the pydantic models of requests (`schemas.py`) and answers (`answers.py`).
This module is imported at the first request for the page, so that a boot does not pay for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ember import __version__
from ember.front.api import answers, schemas
from ember.front.api.exchange import REQUEST_ID_HEADER, Response
from ember.front.api.load import FORMAT_HEADER, LOAD_HEADER
from ember.front.api.services import Services

Model = type[BaseModel]
Methods = Mapping[str, Sequence[str]]  # of each route, whose path may have a parameter in braces

_SCHEMAS = "#/components/schemas/"
_OF_EVERY_ROUTE = (400, 401, 500, 503)
_OF_BODIES = (404, 408, 413)


# What `sampling.py` allows, of the fields whose range is the same in every deployment.
RANGES: dict[str, dict[str, float]] = {
    "n": {"minimum": 1},
    "best_of": {"minimum": 1},
    "temperature": {"minimum": 0, "maximum": 2},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"minimum": -1},
    "min_p": {"minimum": 0, "maximum": 1},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "repetition_penalty": {"exclusiveMinimum": 0},
    "max_tokens": {"minimum": 0},
    "max_completion_tokens": {"minimum": 0},
    "min_tokens": {"minimum": 0},
    "logprobs": {"minimum": -1},
    "top_logprobs": {"minimum": -1},
    "prompt_logprobs": {"minimum": -1},
}


@dataclass(frozen=True)
class Operation:
    """A route as the page tells of it. Several models are alternatives. An `answer` that is text is the media type of a
    body without a model; None stands for an empty body."""

    summary: str
    answer: tuple[Model, ...] | str | None
    body: tuple[Model, ...] = ()
    chunk: tuple[Model, ...] = ()  # of the events of a stream
    errors: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()  # further statuses without a body
    generates: bool = False
    needs_key: bool = True


_CHAT, _COMPLETION = schemas.ChatRequest, schemas.CompletionRequest
_CHAT_CHUNK, _COMPLETION_CHUNK = answers.ChatCompletionChunk, answers.CompletionChunk
_OPERATIONS = {
    "/v1/chat/completions": Operation(
        "Answer a conversation", (answers.ChatCompletion,), (_CHAT,), (_CHAT_CHUNK,), generates=True
    ),
    "/v1/chat/completions/batch": Operation(
        "Answer many conversations", (answers.ChatBatch,), (schemas.BatchChatRequest,), generates=True
    ),
    "/v1/completions": Operation(
        "Continue a text", (answers.Completion,), (_COMPLETION,), (_COMPLETION_CHUNK,), generates=True
    ),
    "/invocations": Operation(
        "SageMaker's route: a chat or a completion, as the body is",
        (answers.ChatCompletion, answers.Completion),
        (_CHAT, _COMPLETION),
        (_CHAT_CHUNK, _COMPLETION_CHUNK),
        generates=True,
    ),
    "/tokenize": Operation(
        "Text or a conversation to token ids", (answers.Tokens,), (schemas.TokenizeRequest, schemas.TokenizeChatRequest)
    ),
    "/detokenize": Operation("Token ids to text", (answers.Text,), (schemas.DetokenizeRequest,)),
    "/tokenizer_info": Operation("The tokenizer's configuration", (answers.TokenizerInfo,)),
    "/v1/models": Operation("The names the model is served under", (answers.Models,)),
    "/v1/models/{model}": Operation("One of these names", (answers.Model,), errors=(404,)),
    "/load": Operation("Requests in flight", (answers.ServerLoad,)),
    "/boot": Operation("The boot timeline", (answers.BootReport,)),
    "/metrics": Operation("Prometheus metrics", "text/plain"),
    "/openapi.json": Operation("This page", "application/json"),
    "/version": Operation("The version", (answers.Version,)),
    "/health": Operation("Whether requests are answered", None, empty=(503,), needs_key=False),
    "/ping": Operation("Whether requests are answered, or will be", None, empty=(204, 503), needs_key=False),
}


async def openapi_page(services: Services, routes: Methods) -> Response:
    """The page, as this deployment has the routes."""
    settings = services.settings
    shown = {path: tuple(methods) for path, methods in routes.items()}
    if not settings.enable_tokenizer_info_endpoint:
        del shown["/tokenizer_info"]
    page = await asyncio.to_thread(_page, tuple(shown.items()), settings.root_path or "/", bool(settings.api_key))
    return Response(200, page)


@lru_cache(maxsize=4)
def _page(routes: tuple[tuple[str, tuple[str, ...]], ...], server: str, has_keys: bool) -> dict[str, Any]:
    paths = {
        path: {method.lower(): _operation(path, method, _OPERATIONS[path]) for method in methods}
        for path, methods in routes
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ember", "version": __version__, "description": "An OpenAI-compatible worker."},
        "servers": [{"url": server}],
        "security": [{"bearer": []}] if has_keys else [],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _operation(path: str, method: str, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{method.lower()}{path.translate(_IN_NAMES)}",
        "responses": _responses(operation, has_body=method != "HEAD"),
    }
    parameters = [_HEADERS[name] for name in (REQUEST_ID_HEADER, FORMAT_HEADER) if operation.generates]
    if "{" in path:
        parameters.append({"name": "model", "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    if not operation.needs_key:
        described["security"] = []
    return described


def _responses(operation: Operation, *, has_body: bool) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "OK"}
    if isinstance(operation.answer, tuple) and has_body:
        success["content"] = _json(operation.answer)
    elif isinstance(operation.answer, str) and has_body:
        schema = {"type": "string"} if operation.answer == "text/plain" else {"type": "object"}
        success["content"] = {operation.answer: {"schema": schema}}
    if operation.chunk:
        success["description"] = "OK. With `stream` the answer is events; the data of the last one is [DONE]."
        success["content"]["text/event-stream"] = {"itemSchema": _event((*operation.chunk, answers.Error))}
    if operation.generates:
        success["headers"] = {LOAD_HEADER: {"schema": {"type": "string"}, "description": "Where it is asked for."}}
    responses = {"200": success}
    for status in operation.empty:
        responses[str(status)] = {"description": HTTPStatus(status).phrase}
    if operation.needs_key:
        for status in sorted({*_OF_EVERY_ROUTE, *(_OF_BODIES if operation.body else ()), *operation.errors}):
            error = answers.Unauthorized if status == 401 else answers.Error
            described = {"description": HTTPStatus(status).phrase}
            responses[str(status)] = {**described, "content": _json((error,))} if has_body else described
    return responses


def _json(models: Sequence[Model]) -> dict[str, Any]:
    references = [{"$ref": _SCHEMAS + model.__name__} for model in models]
    return {"application/json": {"schema": references[0] if len(references) == 1 else {"anyOf": references}}}


def _event(models: Sequence[Model]) -> dict[str, Any]:
    """One event of a stream, whose data is one of the models as JSON text."""
    written = [
        {"contentMediaType": "application/json", "contentSchema": {"$ref": _SCHEMAS + model.__name__}}
        for model in models
    ]
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, *written]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _schemas() -> dict[str, Any]:
    models: dict[Model, None] = {answers.Error: None, answers.Unauthorized: None}
    for operation in _OPERATIONS.values():
        answer = operation.answer if isinstance(operation.answer, tuple) else ()
        models |= dict.fromkeys((*operation.body, *answer, *operation.chunk))
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=_SCHEMAS + "{model}")
    definitions: dict[str, Any] = found["$defs"]
    for definition in definitions.values():
        definition.pop("description", None)  # the docstring, which is for readers of the code
        for name, limits in RANGES.items():
            field = definition.get("properties", {}).get(name, {})
            for kind in field.get("anyOf", [field]):
                if kind.get("type") in ("number", "integer"):
                    kind.update(limits)
    return definitions


_IN_NAMES = str.maketrans({"/": "_", "{": "", "}": "", ".": "_"})
_HEADERS = {
    REQUEST_ID_HEADER: {
        "name": REQUEST_ID_HEADER,
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "The end of the answer's id.",
    },
    FORMAT_HEADER: {
        "name": FORMAT_HEADER,
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "TEXT or JSON: the form in which the answer tells the load. Any other is ignored.",
    },
}
