"""What a queue job asks for: the job's input comes in, one api request (or an ApiError) goes out.

Shapes, in this order; the first that fits wins:

1. `openai_input` with content, `openai_route` (default: the route of `messages`)  -> POST
2. `openai_route` alone, or with an empty `openai_input`                           -> GET
3. `route`, `body`?, `method`?                                                     -> POST with a body, else GET
4. `messages` or `prompt`, with `sampling_params`? and `stream`?                   -> POST to the route of that field

The route of a field is the one whose record names it (`Route.job_field`).
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
    "`stream`)"
)
_METHODS = ("GET", "POST", "DELETE")
# Keys of the native shape that are for the worker; every other key is a field of the request.
_BATCH_SIZES = frozenset({"max_batch_size", "min_batch_size", "batch_size_growth_factor"})
_CONTROL = _BATCH_SIZES | {"messages", "prompt", "sampling_params", "apply_chat_template", "use_openai_format"}
# Of the shapes that hold a whole request: what else is read beside it.
_BESIDE = {
    "openai_input": _BATCH_SIZES | {"openai_input", "openai_route"},
    "openai_route": _BATCH_SIZES | {"openai_input", "openai_route"},
    "route": _BATCH_SIZES | {"route", "body", "method"},
}
# What orjson says of a value that it cannot encode, and what to say to the one who sent it.
_NOT_JSON = {
    "surrogates": "it holds half of a surrogate pair (such as \\ud800 alone), which is no text; send whole characters",
    "Integer": "it holds an integer of more than 64 bits",
    "key must be str": "the keys of its objects must be strings",
    "Recursion": "it is nested more than 254 levels deep",
}
_PLACE_DEPTH = 4  # of the place that an error names


@dataclass(frozen=True)
class QueueJob:
    """One job, understood: the request it stands for and the form its answer is wanted in."""

    request: Request
    route: Route  # whose forms the answer has
    stream: bool
    native_tokens: bool = False  # the answer is wanted as lists of tokens
    min_events: int | None = None  # fewest in one streamed piece (`min_batch_size`), as long as there are more
    growth: float | None = None  # from piece to piece (`batch_size_growth_factor`)
    max_events: int | None = None  # most (`max_batch_size`)

    def sizes(self, defaults: BatchSizes) -> BatchSizes:
        """Of its pieces; `defaults` are for what the job leaves open."""
        return BatchSizes(
            least=self.min_events or defaults.least,
            growth=self.growth or defaults.growth,
            most=self.max_events or defaults.most,
        )


def parse_input(
    job_input: Any, router: Router, *, model: str, job_id: str | None = None, native_tokens: bool = False
) -> QueueJob:
    """`job_input` is the `input` of a queue job, `model` fills a request that names none. Raises ApiError(400).

    `native_tokens`: jobs of the native shape are answered with lists of tokens, unless they set `use_openai_format`.
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
    as_tokens = native_tokens and _is_native(job_input) and not _is_true(job_input.get("use_openai_format"))
    if as_tokens and body is not None:
        body = _for_tokens(body, stream)
    return QueueJob(
        Request(method=method, path=path, body=body, headers=headers, query=query),
        router.find(method, path).route,
        stream=stream,
        native_tokens=as_tokens,
        min_events=_count(job_input, "min_batch_size"),
        growth=_growth(job_input),
        max_events=_count(job_input, "max_batch_size"),
    )


def wants_stream(job_input: Any) -> bool:
    """Whether a job, even one that cannot be parsed, asks for a stream: its error then is an SSE event."""
    if not isinstance(job_input, dict):
        return False
    places = (job_input.get("openai_input"), job_input.get("body"), job_input, job_input.get("sampling_params"))
    return any(isinstance(place, dict) and _is_true(place.get("stream")) for place in places)


def asked_route(job_input: Any, router: Router) -> Route:
    """The route that a job asks for, even one that cannot be parsed: its error then has that route's form."""
    if not isinstance(job_input, dict):
        return NO_ROUTE
    named = job_input.get("openai_route") or (None if job_input.get("openai_input") else job_input.get("route"))
    if isinstance(named, str):
        return router.find("POST", _split_route(named)[0]).route
    is_prompt = job_input.get("prompt") is not None and job_input.get("messages") is None
    return router.for_job_field("prompt" if is_prompt else "messages") or NO_ROUTE


def _check_is_json(job_input: dict[str, Any]) -> None:
    """Raises ApiError where the input holds what the api, the engine and the answer could not encode again.

    The SDK reads jobs with the json module, which lets lone surrogates and numbers of any size in. It costs about 1 ms
    a megabyte, a small part of the SDK's own reading; a thread would not hide it, as orjson keeps the GIL.
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
    """Method, route and body of the first shape that fits."""
    openai_input = job_input.get("openai_input")
    openai_route = job_input.get("openai_route")
    _name_ignored(job_input)
    if openai_input:
        route = _text(openai_route or _path_for("messages", router), "openai_route")
        return "POST", route, _object(openai_input, "openai_input")
    if openai_route:
        route = _text(openai_route, "openai_route")
        found = router.find("GET", _split_route(route)[0])
        if "POST" in found.allowed and not found.is_allowed:  # what would come back is a bare 405
            raise bad_request(f"openai_input is missing: {route} needs a request body", "openai_input")
        return "GET", route, None
    if job_input.get("route"):
        return _generic(job_input)
    if job_input.get("messages") is not None or job_input.get("prompt") is not None:
        return ("POST", *_native(job_input, router))
    raise bad_request(_ALLOWED, "input")


def _name_ignored(job_input: dict[str, Any]) -> None:
    """Log what lies beside a whole request and is not read; each name once."""
    shape = next((name for name in _BESIDE if job_input.get(name)), None)
    if shape is None:
        return  # of the native shape every field is one of the request, where it is reported
    names = [f"input.{name}" for name, value in job_input.items() if value is not None and name not in _BESIDE[shape]]
    reported(names, f"the job's %s has no effect beside {shape} (logged once per name)")


def _is_native(job_input: dict[str, Any]) -> bool:
    return not any(job_input.get(name) for name in _BESIDE)


def _for_tokens(body: dict[str, Any], stream: bool) -> dict[str, Any]:
    """The body of a request whose answer becomes lists of tokens, which are counted in every chunk."""
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
    """Route and body of the native shape; `sampling_params` are spread over the body."""
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
    """Path, with its leading slash, and query of a route such as `/openai/v1/models?a=b`.

    Line breaks stay in it (`urlsplit` would drop them), so that it is no route's path.
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
    """A flag as clients send it: true, 1, "true", "yes", "on", "1"."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "yes", "on", "t", "y")
    return value is True or (isinstance(value, (int, float)) and value == 1)


def _kind(value: Any) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
