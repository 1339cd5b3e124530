"""Conversion of the api's responses and errors to aiohttp's responses."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from ember.front.api.exchange import Response
from ember.front.api.route import Route
from ember.front.errors import ApiError


def whole_answer(answer: Response, headers: dict[str, str]) -> web.Response:
    headers = {**headers, **answer.headers}
    if answer.body is None:
        return web.Response(status=answer.status, headers=headers)
    if isinstance(answer.body, str):
        headers.setdefault("Content-Type", "text/plain; charset=utf-8")
        return web.Response(status=answer.status, body=answer.body.encode(), headers=headers)
    if isinstance(answer.body, bytes):
        headers.setdefault("Content-Type", "application/octet-stream")
        return web.Response(status=answer.status, body=answer.body, headers=headers)
    return _json_answer(answer.status, answer.body, headers)


def error_answer(error: ApiError, route: Route, headers: dict[str, str]) -> web.Response:
    """An error in the form of the route's errors."""
    return _json_answer(error.status, route.errors.body(error), {**headers, **error.headers})


def _json_answer(status: int, body: Any, headers: dict[str, str]) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS),
        content_type="application/json",
        headers=headers,
    )
