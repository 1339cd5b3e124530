"""What a job puts on the queue: the api's events or JSON body come in, outputs leave, in the form that is wanted.

`StreamText`     a streamed job as the platform passes it on to the route's clients: text in the framing of the route
`ParsedChunks`   the same with RAW_OPENAI_OUTPUT=0: lists of the events' documents
`TokenLists`     native jobs with NATIVE_OUTPUT=tokens: `{"choices": [{"tokens": [...]}], "usage": {...}}`
`Whole`          any other: the JSON body, once

An error is an event in a stream and `{"error": <JSON text>}` elsewhere, which ends the job as FAILED; both are in the
form of the route. The latter is text, as the SDK puts `str()` of the value on the wire: an object would arrive as a
Python repr.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import orjson

from ember.front.api.exchange import Event, Response
from ember.front.api.route import NO_ROUTE, Route
from ember.front.errors import ApiError, encodable
from ember.front.worker.coalesce import cut, wire_bytes

RUN_BYTES = 10_000_000  # what the platform takes as a job's result
RUNSYNC_BYTES = 20_000_000
_SYNC_PREFIX = "sync-"  # of the ids of /runsync's jobs


class Form(Protocol):
    """The form of one job's outputs."""

    def encode(self, event: Event) -> str:
        """What is kept of an event until it is sent."""
        ...

    def end(self) -> str:
        """What is kept of the end of a stream; empty where there is nothing to say."""
        ...

    def pieces(self, encoded: list[str]) -> list[Any]:
        """What to send for some of what was kept."""
        ...

    def body(self, response: Response) -> Any:
        """What to send for a whole answer. Raises ApiError where it is an error, TypeError where it cannot be
        encoded: the SDK would drop it."""
        ...

    def failed(self, error: ApiError) -> list[Any]:
        """What to send for an error."""
        ...


class Whole:
    """A JSON body, the same as a client over HTTP would read. What streams all the same is text."""

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
    """Text in the route's framing, cut where a single event is beyond what one piece may hold."""

    def failed(self, error: ApiError) -> list[Any]:
        return self.pieces([self.encode(self._route.framing.error(error)), self.end()])


class ParsedChunks(Whole):
    """A list of the events' documents for each piece; nothing of their framing."""

    def encode(self, event: Event) -> str:
        return event.data

    def end(self) -> str:
        return ""

    def pieces(self, encoded: list[str]) -> list[Any]:
        return [[orjson.loads(encodable(data)) for data in encoded]]

    def failed(self, error: ApiError) -> list[Any]:
        return self.pieces([self._route.framing.error(error).data])


class TokenLists(Whole):
    """Lists of texts, one for each chunk of a choice, and how many tokens there were so far. It reads the chunks and
    bodies of the routes that native jobs ask for."""

    def __init__(self, route: Route) -> None:
        super().__init__(route)
        self._prompt_tokens = 0
        self._completion_tokens: dict[int, int] = {}  # so far, by choice

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
    """All text of a message, a delta, or a choice of a completion."""
    return (part.get("reasoning") or "") + (part.get("content") or part.get("text") or "")


def json_body(response: Response) -> Any:
    """A whole answer as JSON has it. Raises ApiError where it is an error, TypeError where it cannot be encoded."""
    if response.status >= 400:
        raise ApiError(response.status, str(response.body or response.status))
    if response.body is None:
        return {"status": "ok"}
    return orjson.loads(orjson.dumps(response.body, option=orjson.OPT_NON_STR_KEYS))


def error_output(error: ApiError, route: Route = NO_ROUTE) -> dict[str, str]:
    """What fails a job: the error object of the route's form as JSON text, or all of a form that has no such object."""
    body = route.errors.body(error)
    details = body.get("error", body) if isinstance(body, dict) else body
    return {"error": orjson.dumps(details).decode()}


def output_bytes(output: Any) -> int:
    """Bytes of one output in the JSON of a job's result, as either client writes it, with its separator."""
    if isinstance(output, str):
        return wire_bytes(output) + 4
    compact = len(orjson.dumps(output))
    return compact if compact < 4096 else len(json.dumps(output, ensure_ascii=False).encode()) + 2


def check_result_size(size: int, job_id: str) -> None:
    """Raises ApiError 413 where the platform would not take a result of so many bytes; it would drop it in silence."""
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
