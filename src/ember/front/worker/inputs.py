"""Reads a queue job: its input becomes one api request, or an ApiError.

An input has one of these shapes. The first that matches is used:

1. `openai_input` with content, `openai_route` (default: the route of `messages`)  -> POST
2. `openai_route` alone, or with an empty `openai_input`                           -> GET, or POST where there is no GET
3. `route`, `body`?, `method`?                                                     -> POST with a body, else GET
4. `messages` or `prompt`, with `sampling_params`? and `stream`?                   -> POST to the route of that field
5. `query` with `docs` or `documents`, or `input`                                  -> the same, for pooling models

The route of a field is the route whose record names that field (`Route.job_field`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import orjson

from ember.front.api.body import reported
from ember.front.api.exchange import Request
from ember.front.api.route import NO_ROUTE, Route
from ember.front.api.router import Router
from ember.front.errors import bad_request
from ember.front.worker.coalesce import BatchSizes

_ALLOWED = (
    "the job input must contain one of: `openai_route` with `openai_input` (an OpenAI request; without the input, a "
    "GET such as /v1/models), `route` with `body` and `method`, `messages` or `prompt` (with `sampling_params` and "
    "`stream`), `input` (to embed), `query` with `docs` or `documents` (to rerank)"
)
_METHODS = ("GET", "POST", "DELETE")
# Keys of the native shape that the worker reads itself. Every other key is a field of the request.
_BATCH_SIZES = frozenset({"max_batch_size", "min_batch_size", "batch_size_growth_factor"})
_CONTROL = _BATCH_SIZES | {"messages", "prompt", "sampling_params", "apply_chat_template", "use_openai_format"}
# Fields of a rerank in the native shape under their names in other workers.
_RERANK_NAMES = {"docs": "documents", "return_docs": "return_documents"}
# For each shape with a whole request, the keys that are read. Others have no effect.
_BESIDE = {
    "openai_input": _BATCH_SIZES | {"openai_input", "openai_route"},
    "openai_route": _BATCH_SIZES | {"openai_input", "openai_route"},
    "route": _BATCH_SIZES | {"route", "body", "method"},
}
# From a part of orjson's message for a value that it cannot encode to the message for the client.
_NOT_JSON = {
    "surrogates": "it holds half of a surrogate pair (such as \\ud800 alone), which is no text; send whole characters",
    "Integer": "it holds an integer of more than 64 bits",
    "key must be str": "the keys of its objects must be strings",
    "Recursion": "it is nested more than 254 levels deep",
}
_PLACE_DEPTH = 4  # the most keys in the place that an error names


@dataclass(frozen=True)
class QueueJob:
    """A queue job as it was read: its request, and the form of its outputs."""

    request: Request
    route: Route  # its error form and framing are used
    stream: bool
    native_tokens: bool = False  # the outputs are lists of tokens
    min_events: int | None = None  # the fewest in a streamed piece but the last (`min_batch_size`)
    growth: float | None = None  # of that minimum, from piece to piece (`batch_size_growth_factor`)
    max_events: int | None = None  # the most in a streamed piece (`max_batch_size`)

    def sizes(self, defaults: BatchSizes) -> BatchSizes:
        """The sizes of the job's pieces. `defaults` apply to what the job does not set."""
        return BatchSizes(
            least=self.min_events or defaults.least,
            growth=self.growth or defaults.growth,
            most=self.max_events or defaults.most,
        )


def parse_input(
    job_input: Any, router: Router, *, model: str, job_id: str | None = None, native_tokens: bool = False
) -> QueueJob:
    """Read `job_input`, the `input` of a queue job. A request that names no model gets `model`. Raises ApiError(400).

    With `native_tokens`, jobs of the native shape are answered with lists of tokens unless they set
    `use_openai_format`.
    """
    if not isinstance(job_input, dict):
        raise bad_request(f"the job input must be a JSON object, not {_kind(job_input)}; {_ALLOWED}", "input")
    _check_is_json(job_input)
    headers = {"content-type": "application/json"}
    if job_id:
        headers["x-request-id"] = job_id
    method, route, body = _request_of(job_input, router)
    path, query = _split_route(route)
    if method == "POST" and body is not None and body.get("model") in (None, ""):
        body = {**body, "model": model}
    stream = _is_true((body or {}).get("stream"))
    is_native = _is_native(job_input) and _native_field(job_input) in ("messages", "prompt")
    as_tokens = native_tokens and is_native and not _is_true(job_input.get("use_openai_format"))
    if as_tokens and body is not None:
        body = _for_tokens(body, stream)
    return QueueJob(
        Request(method=method, path=path, body=body, headers=headers, query=query, is_job=True),
        router.find(method, path).route,
        stream=stream,
        native_tokens=as_tokens,
        min_events=_count(job_input, "min_batch_size"),
        growth=_growth(job_input),
        max_events=_count(job_input, "max_batch_size"),
    )


def wants_stream(job_input: Any) -> bool:
    """Whether a job asks for a stream. This also holds for a job that cannot be read, whose error is then an event."""
    if not isinstance(job_input, dict):
        return False
    places = (job_input.get("openai_input"), job_input.get("body"), job_input, job_input.get("sampling_params"))
    return any(isinstance(place, dict) and _is_true(place.get("stream")) for place in places)


def asked_route(job_input: Any, router: Router) -> Route:
    """The route that a job asks for. This also holds for a job that cannot be read, whose error has the route's
    form."""
    if not isinstance(job_input, dict):
        return NO_ROUTE
    named = job_input.get("openai_route") or (None if job_input.get("openai_input") else job_input.get("route"))
    if isinstance(named, str):
        return router.find("POST", _split_route(named)[0]).route
    return router.for_job_field(_native_field(job_input) or "messages") or NO_ROUTE


def _check_is_json(job_input: dict[str, Any]) -> None:
    """Raises ApiError if the input holds a value that the api, the engine or the answer could not encode.

    The SDK reads jobs with the json module, which accepts lone surrogates and numbers of any size. The check takes
    about 1 ms for a megabyte, a small part of the SDK's own parsing. It does not run in a thread, since orjson holds
    the GIL.
    """
    reason = _reason_not_json(job_input)
    if reason is None:
        return
    place: list[str] = []
    value: Any = job_input
    while len(place) < _PLACE_DEPTH:
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        bad = next(((key, below) for key, below in entries if _reason_not_json(below)), None)
        if bad is None:
            break
        place.append(ascii(bad[0])[:40].strip("'"))
        value = bad[1]
    where = ".".join(place)
    raise bad_request(f"{where or 'the job input'} cannot be used: {reason}", where or "input")


def _reason_not_json(value: Any) -> str | None:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        return next((reason for known, reason in _NOT_JSON.items() if known in str(error)), str(error))
    return None


def _request_of(job_input: dict[str, Any], router: Router) -> tuple[str, str, dict[str, Any] | None]:
    """The method, the route and the body, by the first shape that matches."""
    openai_input = job_input.get("openai_input")
    openai_route = job_input.get("openai_route")
    _name_ignored(job_input)
    if openai_input:
        route = _text(openai_route or _path_for("messages", router), "openai_route")
        return "POST", route, _object(openai_input, "openai_input")
    if openai_route:
        route = _text(openai_route, "openai_route")
        found = router.find("GET", _split_route(route)[0])
        if "POST" in found.allowed and not found.is_allowed:  # the answer would be a 405 without a hint
            if not router.find("POST", _split_route(route)[0]).route.about.body:
                return "POST", route, {}
            raise bad_request(f"openai_input is missing: {route} needs a request body", "openai_input")
        return "GET", route, None
    if job_input.get("route"):
        return _generic(job_input)
    field = _native_field(job_input)
    if field in ("messages", "prompt"):
        return ("POST", *_native(job_input, router))
    if field is not None:
        return "POST", _path_for(field, router), _native_texts(job_input, field)
    raise bad_request(_ALLOWED, "input")


def _native_field(job_input: dict[str, Any]) -> str | None:
    """The field that tells the route of a job in the native shape."""
    return next((name for name in ("messages", "prompt", "query", "input") if job_input.get(name) is not None), None)


def _native_texts(job_input: dict[str, Any], field: str) -> dict[str, Any]:
    """The body of a request for a pooling model."""
    body = {key: value for key, value in job_input.items() if key not in _CONTROL}
    if field == "query":
        body = {_RERANK_NAMES.get(key, key): value for key, value in body.items()}
        if "return_docs" in job_input or "docs" in job_input:  # the worker with these names leaves documents out
            body.setdefault("return_documents", False)
    return body


def _name_ignored(job_input: dict[str, Any]) -> None:
    """Log the keys beside a whole request that have no effect, each name once."""
    shape = next((name for name in _BESIDE if job_input.get(name)), None)
    if shape is None:
        return  # in the native shape every key is a field of the request, whose reader reports it
    names = [f"input.{name}" for name, value in job_input.items() if value is not None and name not in _BESIDE[shape]]
    reported(names, f"the job's %s has no effect beside {shape} (logged once per name)")


def _is_native(job_input: dict[str, Any]) -> bool:
    return not any(job_input.get(name) for name in _BESIDE)


def _for_tokens(body: dict[str, Any], stream: bool) -> dict[str, Any]:
    """The body of a request whose outputs are lists of tokens. Its stream reports usage in every chunk."""
    if body.get("tools") or body.get("functions"):
        raise bad_request(
            "lists of tokens (NATIVE_OUTPUT=tokens) cannot hold tool calls; set use_openai_format in the job input",
            "tools",
        )
    if not stream:
        return body
    return {**body, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def _generic(job_input: dict[str, Any]) -> tuple[str, str, dict[str, Any] | None]:
    body = _object(job_input["body"], "body") if job_input.get("body") else None
    method = _text(job_input.get("method") or ("GET" if body is None else "POST"), "method").upper()
    if method not in _METHODS:
        raise bad_request(f"method must be one of {', '.join(_METHODS)}, not {method[:20]!r}", "method")
    if method == "POST" and body is None:
        body = {}
    return method, _text(job_input["route"], "route"), body


def _native(job_input: dict[str, Any], router: Router) -> tuple[str, dict[str, Any]]:
    """The route and the body of the native shape. The entries of `sampling_params` become fields of the body."""
    body = {key: value for key, value in job_input.items() if key not in _CONTROL}
    if job_input.get("sampling_params") is not None:
        body.update(_object(job_input["sampling_params"], "sampling_params"))
    if job_input.get("stream") is not None:
        body["stream"] = job_input["stream"]
    messages = job_input.get("messages")
    if messages is None and _is_true(job_input.get("apply_chat_template")):
        prompt = _text(job_input["prompt"], "prompt")
        messages = [{"role": "user", "content": prompt}]
    if messages is None:
        return _path_for("prompt", router), {**body, "prompt": job_input["prompt"]}
    count = body.get("logprobs")
    if type(count) is int:  # the sampling parameter is a count, the chat field a flag
        body["logprobs"] = True
        body.setdefault("top_logprobs", count)
    return _path_for("messages", router), {**body, "messages": messages}


def _path_for(field: str, router: Router) -> str:
    route = router.for_job_field(field)
    if route is None:
        raise bad_request(f"`{field}` alone does not say what to do here; name a route in `openai_route`", field)
    return route.path


def _split_route(route: str) -> tuple[str, dict[str, str]]:
    """The path, with a leading slash, and the query of a route such as `/openai/v1/models?a=b`.

    Line breaks are kept, so that such a path matches no route. `urlsplit` would drop them.
    """
    path, _, query = ("/" + route.strip().lstrip("/")).partition("#")[0].partition("?")
    if path.startswith("/openai/"):
        path = path.removeprefix("/openai")
    return path, dict(parse_qsl(query, keep_blank_values=True))


def _count(job_input: dict[str, Any], name: str) -> int | None:
    value = job_input.get(name)
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1:
        raise bad_request(f"{name} must be a positive integer, not {str(value)[:40]!r}", name)
    return number


def _growth(job_input: dict[str, Any]) -> float | None:
    name = "batch_size_growth_factor"
    value = job_input.get(name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = 0.0
    if not 1 <= number <= 1000:
        raise bad_request(f"{name} must be a number from 1 to 1000, not {str(value)[:40]!r}", name)
    return number


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise bad_request(f"{name} must be a string, not {_kind(value)}", name)
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"{name} must be a JSON object, not {_kind(value)}", name)
    return value


def _is_true(value: Any) -> bool:
    """Whether a flag is set. Clients send true, 1, "true", "yes", "on" or "1"."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "yes", "on", "t", "y")
    return value is True or (isinstance(value, (int, float)) and value == 1)


def _kind(value: Any) -> str:
    """The name of a value's type in JSON, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
