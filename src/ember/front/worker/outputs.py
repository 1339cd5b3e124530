"""Converts the api's events or JSON body to the outputs of a queue job. Each class is one form of outputs:

`StreamText`     for a streamed job: text in the route's framing, which the platform passes on to its clients
`ParsedChunks`   for a streamed job with RAW_OPENAI_OUTPUT=0: lists of the events' documents
`TokenLists`     for a native job with NATIVE_OUTPUT=tokens: `{"choices": [{"tokens": [...]}], "usage": {...}}`
`Whole`          for any other job: the JSON body, as one output

An error is an event in a stream. Elsewhere it is `{"error": <JSON text>}`, which ends the job as FAILED. Both have the
form of the route's errors. The value is JSON text because the SDK sends `str()` of it, which would make a Python repr
of an object.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import orjson

from ember.front.api.exchange import Event, Response
from ember.front.api.route import NO_ROUTE, Route
from ember.front.errors import ApiError, encodable
from ember.front.worker.coalesce import cut, wire_bytes

RUN_BYTES = 10_000_000  # the largest result of a job that the platform accepts
RUNSYNC_BYTES = 20_000_000
_SYNC_PREFIX = "sync-"  # ids of jobs of /runsync begin with it


class Form(Protocol):
    """The form of one job's outputs."""

    def encode(self, event: Event) -> str:
        """Encode an event for the buffer, where it waits until it is sent."""
        ...

    def end(self) -> str:
        """Encode the end of a stream for the buffer. It is empty for a form without one."""
        ...

    def pieces(self, encoded: list[str]) -> list[Any]:
        """Make outputs of some encoded events."""
        ...

    def body(self, response: Response) -> Any:
        """Make an output of a whole answer. Raises ApiError if the answer is an error, and TypeError if it cannot be
        encoded, in which case the SDK would drop it."""
        ...

    def failed(self, error: ApiError) -> list[Any]:
        """Make outputs of an error."""
        ...


class Whole:
    """One JSON body, as a client over HTTP would read it. If the route streams nevertheless, the outputs are text."""

    def __init__(self, route: Route) -> None:
        self._route = route

    def encode(self, event: Event) -> str:
        return self._route.framing.encode(event)

    def end(self) -> str:
        return self._route.framing.end()

    def pieces(self, encoded: list[str]) -> list[Any]:
        return list(cut(encodable("".join(encoded))))

    def body(self, response: Response) -> Any:
        return json_body(response)

    def failed(self, error: ApiError) -> list[Any]:
        return [error_output(error, self._route)]


class StreamText(Whole):
    """Text in the route's framing. An event that is too large for one piece is divided."""

    def failed(self, error: ApiError) -> list[Any]:
        return self.pieces([self.encode(self._route.framing.error(error)), self.end()])


class ParsedChunks(Whole):
    """For each piece a list of the events' documents, without framing."""

    def encode(self, event: Event) -> str:
        return event.data

    def end(self) -> str:
        return ""

    def pieces(self, encoded: list[str]) -> list[Any]:
        return [[orjson.loads(encodable(data)) for data in encoded]]

    def failed(self, error: ApiError) -> list[Any]:
        return self.pieces([self._route.framing.error(error).data])


class TokenLists(Whole):
    """Lists of texts, one text for each chunk of a choice, with the number of tokens so far. This form reads the chunks
    and bodies of the routes that native jobs use."""

    def __init__(self, route: Route) -> None:
        super().__init__(route)
        self._prompt_tokens = 0
        self._completion_tokens: dict[int, int] = {}  # number so far, by choice

    def encode(self, event: Event) -> str:
        return event.data

    def end(self) -> str:
        return ""

    def pieces(self, encoded: list[str]) -> list[Any]:
        tokens: dict[int, list[str]] = {}
        has_news = False
        for data in encoded:
            chunk = orjson.loads(encodable(data))
            usage = chunk.get("usage") or {}
            self._prompt_tokens = usage.get("prompt_tokens", self._prompt_tokens)
            for choice in chunk.get("choices", ()):
                index = choice["index"]
                before = self._completion_tokens.get(index, 0)
                self._completion_tokens[index] = usage.get("completion_tokens", before)
                text = _said(choice.get("delta") or choice)
                has_news = has_news or bool(text) or self._completion_tokens[index] > before
                if text:
                    tokens.setdefault(index, []).append(text)
        if not has_news:
            return []
        choices = [{"tokens": tokens.get(index, [])} for index in range(max(self._completion_tokens) + 1)]
        usage = {"input": self._prompt_tokens, "output": sum(self._completion_tokens.values())}
        return [{"choices": choices, "usage": usage}]

    def body(self, response: Response) -> Any:
        body = json_body(response)
        usage = body.get("usage") or {}
        return {
            "choices": [{"tokens": [_said(choice.get("message") or choice)]} for choice in body["choices"]],
            "usage": {"input": usage.get("prompt_tokens", 0), "output": usage.get("completion_tokens", 0)},
        }


def _said(part: dict[str, Any]) -> str:
    """The text of a message, a delta, or a choice of a completion: its reasoning and its content."""
    return (part.get("reasoning") or "") + (part.get("content") or part.get("text") or "")


def json_body(response: Response) -> Any:
    """A whole answer as JSON values. Raises ApiError if it is an error, and TypeError if it cannot be encoded."""
    if response.status >= 400:
        raise ApiError(response.status, str(response.body or response.status))
    if response.body is None:
        return {"status": "ok"}
    if isinstance(response.body, bytes):
        message = "A queue carries no answer in bytes; ask for encoding_format 'base64' or 'float'."
        raise ApiError(400, message, param="encoding_format")
    return orjson.loads(orjson.dumps(response.body, option=orjson.OPT_NON_STR_KEYS))


def error_output(error: ApiError, route: Route = NO_ROUTE) -> dict[str, str]:
    """The output that ends a job as FAILED. It has the error object of the route's form as JSON text, or the whole body
    of a form without such an object."""
    body = route.errors.body(error)
    details = body.get("error", body) if isinstance(body, dict) else body
    return {"error": orjson.dumps(details).decode()}


def output_bytes(output: Any) -> int:
    """The bytes of one output in the JSON of a job's result, with its separator, as both queue clients write it."""
    if isinstance(output, str):
        return wire_bytes(output) + 4
    compact = len(orjson.dumps(output))
    return compact if compact < 4096 else len(json.dumps(output, ensure_ascii=False).encode()) + 2


def check_result_size(size: int, job_id: str) -> None:
    """Raises ApiError 413 for a result of more bytes than the platform accepts. It would drop the result silently."""
    is_sync = job_id.startswith(_SYNC_PREFIX)
    limit = RUNSYNC_BYTES if is_sync else RUN_BYTES
    if size > limit:
        raise ApiError(
            413,
            f"The job's output of {size / 1e6:.1f} MB is above the {limit / 1e6:.0f} MB that the platform takes for "
            f"{'/runsync' if is_sync else '/run (20 MB for /runsync)'}; what was streamed of it is complete. "
            "Ask for less: fewer choices, log probabilities or tokens.",
            type="PayloadTooLargeError",
        )
