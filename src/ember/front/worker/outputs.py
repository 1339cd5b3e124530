"""What a job puts on the queue: the api's SSE events or JSON body come in, outputs leave, in the form that is wanted.

`SseText`        a streamed job as the platform passes it on to OpenAI clients: SSE text
`ParsedChunks`   the same with RAW_OPENAI_OUTPUT=0: lists of chunks
`TokenLists`     native jobs with NATIVE_OUTPUT=tokens: `{"choices": [{"tokens": [...]}], "usage": {...}}`
`Whole`          any other: the JSON body, once

An error is an SSE event in a stream and `{"error": <JSON text>}` elsewhere, which ends the job as FAILED. It is text,
as the SDK puts `str()` of the value on the wire: an object would arrive as a Python repr.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import orjson

from ember.front.api.exchange import Response
from ember.front.errors import DONE, ApiError, encodable
from ember.front.worker.coalesce import cut, wire_bytes

RUN_BYTES = 10_000_000  # what the platform takes as a job's result
RUNSYNC_BYTES = 20_000_000
_SYNC_PREFIX = "sync-"  # of the ids of /runsync's jobs


class Form(Protocol):
    """The form of one job's outputs."""

    def pieces(self, events: list[str]) -> list[Any]:
        """What to send for some SSE events. Raises ApiError where an event is an error that ends the job."""
        ...

    def body(self, response: Response) -> Any:
        """What to send for a whole answer. Raises ApiError where it is an error, TypeError where it cannot be
        encoded: the SDK would drop it."""
        ...

    def failed(self, error: ApiError) -> list[Any]:
        """What to send for an error."""
        ...


class Whole:
    """A JSON body, the same as a client over HTTP would read."""

    def pieces(self, events: list[str]) -> list[Any]:
        return SseText().pieces(events)

    def body(self, response: Response) -> Any:
        return json_body(response)

    def failed(self, error: ApiError) -> list[Any]:
        return [error_output(error)]


class SseText(Whole):
    """SSE text, cut where a single event is beyond what one piece may hold."""

    def pieces(self, events: list[str]) -> list[Any]:
        return list(cut(encodable("".join(events))))

    def failed(self, error: ApiError) -> list[Any]:
        return [error.sse() + DONE]


class ParsedChunks(Whole):
    """A list of chunks for each piece, without `[DONE]`."""

    def pieces(self, events: list[str]) -> list[Any]:
        chunks = [chunk for event in events for chunk in chunks_of(event)]
        return [chunks] if chunks else []

    def failed(self, error: ApiError) -> list[Any]:
        return [[error.body()]]


class TokenLists(Whole):
    """Lists of texts, one for each chunk of a choice, and how many tokens there were so far."""

    def __init__(self) -> None:
        self._prompt_tokens = 0
        self._completion_tokens: dict[int, int] = {}  # so far, by choice

    def pieces(self, events: list[str]) -> list[Any]:
        tokens: dict[int, list[str]] = {}
        has_news = False
        for chunk in (chunk for event in events for chunk in chunks_of(event)):
            if "error" in chunk:
                raise api_error(chunk["error"])
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


def chunks_of(event: str) -> list[Any]:
    """The JSON documents of one SSE event, without `[DONE]` and comments."""
    lines = [line.removeprefix("data:").strip() for line in encodable(event).split("\n") if line.startswith("data:")]
    return [orjson.loads(line) for line in lines if line and line != "[DONE]"]


def json_body(response: Response) -> Any:
    """A whole answer as JSON has it. Raises ApiError where it is an error, TypeError where it cannot be encoded."""
    if response.status >= 400:
        error = response.body.get("error") if isinstance(response.body, dict) else None
        details = error if isinstance(error, dict) else {"message": str(response.body or response.status)}
        raise api_error(details, response.status)
    if response.body is None:
        return {"status": "ok"}
    return orjson.loads(orjson.dumps(response.body, option=orjson.OPT_NON_STR_KEYS))


def api_error(details: dict[str, Any], status: int | None = None) -> ApiError:
    """The ApiError of an error object. Its status is the code, where none is given."""
    code = details.get("code")
    return ApiError(
        status or (code if isinstance(code, int) else 500),
        str(details.get("message")),
        type=details.get("type"),
        param=details.get("param"),
        code=code,
    )


def error_output(error: ApiError) -> dict[str, str]:
    """What fails a job."""
    return {"error": orjson.dumps(error.body()["error"]).decode()}


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
