"""GET /openapi.json: the routes with the schemas of their requests and answers, as OpenAPI 3.1.

The page is made of the table of routes (`routes.py`) and the pydantic models of requests (`schemas.py`) and answers
(`answers.py`). This module is imported at the first request for the page, so that it does not delay a boot.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ember import __version__
from ember.front import api
from ember.front.api import generative_scoring
from ember.front.api.exchange import REQUEST_ID_HEADER, Response
from ember.front.api.load import FORMAT_HEADER, LOAD_HEADER
from ember.front.api.route import Model, Route
from ember.front.api.services import Services

_SCHEMAS = "#/components/schemas/"
# The modules of the models that records give by name: `schemas` and `answers` of every room of the api that has them.
_ROOMS = ("", *(f"{module.name}." for module in iter_modules(api.__path__) if module.ispkg))
_PLACES = (f"{api.__name__}.{room}{part}" for room in _ROOMS for part in ("schemas", "answers"))
_MODULES = (*(import_module(place) for place in _PLACES if find_spec(place)), generative_scoring)
_OF_EVERY_ROUTE = (400, 401, 500, 503)
_OF_BODIES = (404, 408, 413)


# The ranges of options (`sampling_ranges.py` and others) that no setting changes.
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


async def openapi_page(services: Services, routes: Sequence[Route]) -> Response:
    """The page with the routes that this deployment has."""
    settings = services.settings
    shown = tuple(route for route in routes if route.enabled_by is None or getattr(settings, route.enabled_by))
    page = await asyncio.to_thread(_page, shown, settings.root_path or "/", bool(settings.api_key))
    return Response(200, page)


@lru_cache(maxsize=4)
def _page(routes: tuple[Route, ...], server: str, has_keys: bool) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for route in routes:
        operations = {method.lower(): _operation(route, method) for method in route.methods}
        paths.setdefault(route.path, {}).update(operations)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ember", "version": __version__, "description": "An OpenAI-compatible worker."},
        "servers": [{"url": server}],
        "security": [{"bearer": []}] if has_keys else [],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(routes),
        },
    }


def _operation(route: Route, method: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": route.about.summary,
        "operationId": f"{method.lower()}{route.path.translate(_IN_NAMES)}",
        "responses": _responses(route, has_body=method != "HEAD"),
    }
    parameters = [_HEADERS[name] for name in (REQUEST_ID_HEADER, FORMAT_HEADER) if route.tasks or route.streams]
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    if parameters:
        described["parameters"] = parameters
    if route.about.body:
        described["requestBody"] = {"required": True, "content": _json(route.about.body)}
    if route.upload_directory is not None:
        properties = {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}}
        form = {"type": "object", "properties": properties, "required": [*properties]}
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    if route.is_health_check:
        described["security"] = []
    return described


def _responses(route: Route, *, has_body: bool) -> dict[str, Any]:
    about = route.about
    success: dict[str, Any] = {"description": "OK"}
    if isinstance(about.answer, tuple) and has_body:
        success["content"] = _json(about.answer)
    elif isinstance(about.answer, str) and has_body:
        schema = {"type": "string"} if about.answer == "text/plain" else {"type": "object"}
        success["content"] = {about.answer: {"schema": schema}}
    if route.streams:
        documents = [_reference(model) for model in (*about.chunk, route.errors.model)]
        success["description"] = f"OK. With `stream` the answer is {route.framing.description}."
        success["content"][route.framing.media_type.partition(";")[0]] = {"itemSchema": route.framing.schema(documents)}
    if route.tasks or route.streams:
        load = {"schema": {"type": "string"}, "description": "Present if the request asks for it."}
        success["headers"] = {LOAD_HEADER: load}
    responses = {"200": success}
    for status in about.empty:
        responses[str(status)] = {"description": HTTPStatus(status).phrase}
    if not route.is_health_check:
        for status in sorted({*_OF_EVERY_ROUTE, *(_OF_BODIES if about.body else ()), *about.errors}):
            error = _json((route.errors.models.get(status, route.errors.model),))
            described = {"description": HTTPStatus(status).phrase}
            responses[str(status)] = {**described, "content": error} if has_body else described
    return responses


def _json(models: Sequence[Model]) -> dict[str, Any]:
    references = [_reference(model) for model in models]
    return {"application/json": {"schema": references[0] if len(references) == 1 else {"anyOf": references}}}


def _reference(model: Model) -> dict[str, Any]:
    return {"$ref": _SCHEMAS + _model(model).__name__}


def _model(model: Model) -> type[BaseModel]:
    """The class of a model, which a route's record may give by name."""
    if not isinstance(model, str):
        return model
    found: type[BaseModel] = next(getattr(module, model) for module in _MODULES if hasattr(module, model))
    return found


def _schemas(routes: Sequence[Route]) -> dict[str, Any]:
    models: dict[type[BaseModel], None] = {}
    for route in routes:
        answer = route.about.answer if isinstance(route.about.answer, tuple) else ()
        named = (route.errors.model, *route.errors.models.values(), *route.about.body, *answer, *route.about.chunk)
        models |= dict.fromkeys(_model(model) for model in named)
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
        "description": "The last part of the answer's id.",
    },
    FORMAT_HEADER: {
        "name": FORMAT_HEADER,
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "The format of the load header in the answer: TEXT or JSON. Other values are ignored.",
    },
}
