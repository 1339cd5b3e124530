"""Answers of the api as aiohttp's responses."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from ember.front.api.exchange import Response
from ember.front.errors import ApiError


def whole_answer(answer: Response, headers: dict[str, str]) -> web.Response:
    headers = {**headers, **answer.headers}
    if answer.body is None:
        return web.Response(status=answer.status, headers=headers)
    if isinstance(answer.body, str):
        headers.setdefault("Content-Type", "text/plain; charset=utf-8")
        return web.Response(status=answer.status, body=answer.body.encode(), headers=headers)
    return json_answer(answer.status, answer.body, headers)


def error_answer(error: ApiError, headers: dict[str, str]) -> web.Response:
    return json_answer(error.status, error.body(), {**headers, **error.headers})


def json_answer(status: int, body: Any, headers: dict[str, str]) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS),
        content_type="application/json",
        headers=headers,
    )
