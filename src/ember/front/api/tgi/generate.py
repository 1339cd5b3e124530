"""POST /generate, /generate_stream and /: a text is continued, as Text Generation Inference does it.

A request samples where `do_sample`, `temperature`, `top_k` or `top_p` asks for it, and is greedy otherwise. A stream
has one event for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.call import ApiCall, open_call
from ember.front.api.completion_prompts import completion_prompts
from ember.front.api.exchange import Event, EventStream, Request, Response
from ember.front.api.field_names import FieldNames
from ember.front.api.logprobs import finite
from ember.front.api.runs import Runs
from ember.front.api.samples import Piece
from ember.front.api.schemas import CompletionRequest
from ember.front.api.services import Services
from ember.front.api.streaming import event, start_stream
from ember.front.api.tgi.schemas import TgiParameters, TgiRequest
from ember.front.api.threads import in_thread
from ember.front.errors import ApiError, aborted, bad_request
from ember.wire import Ready, TokenLogprobs

MAX_NEW_TOKENS = 100  # where a request does not say
_PASSED = ("frequency_penalty", "repetition_penalty", "seed", "top_k", "top_p", "temperature")
_FIELD_NAMES = FieldNames(
    {name: f"parameters.{name}" for name in _PASSED}
    | {
        "logprobs": "parameters.top_n_tokens",
        "max_tokens": "parameters.max_new_tokens",
        "n": "parameters.best_of",
        "stop": "parameters.stop",
        "structured_outputs.json": "parameters.grammar",
        "structured_outputs.regex": "parameters.grammar",
        "truncate_prompt_tokens": "parameters.truncate",
    }
)
_GRAMMARS = {"json": "json", "json_schema": "json", "regex": "regex"}


async def generate(services: Services, raw_request: Request) -> Response | EventStream:
    """The whole text. Raises ApiError."""
    return await _generate(services, raw_request, streams=False)


async def generate_stream(services: Services, raw_request: Request) -> Response | EventStream:
    """The text as events. Raises ApiError for every failure before the first token."""
    return await _generate(services, raw_request, streams=True)


async def generate_at_root(services: Services, raw_request: Request) -> Response | EventStream:
    """The route of `huggingface_hub`'s client: a stream if the body says so, otherwise a list of one answer. Raises
    ApiError."""
    answer = await _generate(services, raw_request, streams=None)
    if isinstance(answer, Response):
        answer.body = [answer.body]
    return answer


async def _generate(services: Services, raw_request: Request, *, streams: bool | None) -> Response | EventStream:
    """Raises ApiError, which is a 422 for what is wrong with the body, as clients of that server know it."""
    try:
        return await _continue(services, raw_request, streams)
    except ApiError as error:
        if error.status == 400:
            error.status = 422
        raise


async def _continue(services: Services, raw_request: Request, streams: bool | None) -> Response | EventStream:
    request = await parse_body(TgiRequest, raw_request.body)
    services.check_model(request.model)
    given = request.parameters or TgiParameters()
    body = _completion(request.inputs, given)
    streams = bool(request.stream) if streams is None else streams
    if streams and (given.best_of or 1) > 1:
        raise bad_request("`parameters.best_of` must be 1 in a stream.", "parameters.best_of")
    if streams and given.decoder_input_details:
        message = "`parameters.decoder_input_details` must be false in a stream."
        raise bad_request(message, "parameters.decoder_input_details")
    with _FIELD_NAMES.in_errors():
        completion = await parse_body(CompletionRequest, body)
        info = await services.ready()
        call = await in_thread(completion, _open, raw_request, completion, services, info)
    if streams:
        return EventStream(await start_stream(call, _Chunks(call, request.inputs, given)), call.headers)
    async with call.runs() as runs:
        pieces = await runs.collect()
    runs.check_not_aborted()
    piece = max(pieces, key=lambda choice: sum(entry.logprob for entry in choice.logprobs))
    head = request.inputs if given.return_full_text else ""
    answer: dict[str, Any] = {"generated_text": head + piece.text}
    if given.details or given.decoder_input_details:
        answer["details"] = {
            "finish_reason": _finish_reason(piece),
            "generated_tokens": len(piece.token_ids),
            "seed": given.seed,
            "prefill": _prefill(runs, call) if given.decoder_input_details else [],
            "tokens": [_token(entry.token_id, entry.logprob, call) for entry in piece.logprobs],
        }
        if given.top_n_tokens:
            answer["details"]["top_tokens"] = [_top(entry, call) for entry in piece.logprobs]
    return Response(200, answer, call.headers)


def _open(raw_request: Request, request: CompletionRequest, services: Services, info: Ready) -> ApiCall:
    prompts = completion_prompts(request, services, info)
    return open_call(raw_request, request, services, info, prompts, "tgi-")


def _completion(inputs: str, given: TgiParameters) -> dict[str, Any]:
    """The body of a completion. Raises ApiError 400."""
    for name in ("adapter_id", "watermark", "typical_p"):
        value = getattr(given, name)
        if value and not (name == "typical_p" and value == 1):
            raise bad_request(f"`parameters.{name}` is not supported.", f"parameters.{name}")
    if not inputs:
        raise bad_request("`inputs` must not be empty.", "inputs")
    if given.best_of is not None and given.best_of < 1:
        raise bad_request(f"`parameters.best_of` must be at least 1, got {given.best_of}.", "parameters.best_of")
    samples = bool(given.do_sample) or any(
        getattr(given, name) is not None for name in ("temperature", "top_k", "top_p")
    )
    if (given.best_of or 1) > 1 and not samples:
        raise bad_request("`parameters.best_of` above 1 needs `do_sample`.", "parameters.best_of")
    body: dict[str, Any] = {name: getattr(given, name) for name in _PASSED if getattr(given, name) is not None}
    if not samples:
        body["temperature"] = 0
    body |= {
        "prompt": inputs,
        "max_tokens": MAX_NEW_TOKENS if given.max_new_tokens is None else given.max_new_tokens,
        "stop": given.stop or None,
        "include_stop_str_in_output": bool(given.stop),
        "n": given.best_of,
        "logprobs": given.top_n_tokens or 0,
        "truncate_prompt_tokens": given.truncate,
        "prompt_logprobs": 0 if given.decoder_input_details else None,
        **_grammar(given.grammar),
    }
    return body | {f"parameters.{name}": value for name, value in (given.model_extra or {}).items()}


def _grammar(given: dict[str, Any] | None) -> dict[str, Any]:
    """`structured_outputs`. Raises ApiError 400."""
    if given is None:
        return {}
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in _GRAMMARS or given.get("value") is None:
        message = '`parameters.grammar` must be {"type": "json" or "regex", "value": ...}.'
        raise bad_request(message, "parameters.grammar")
    value = given["value"]
    if kind == "json_schema" and isinstance(value, dict) and "schema" in value:
        value = value["schema"]
    return {"structured_outputs": {_GRAMMARS[kind]: value}}


def _finish_reason(piece: Piece) -> str:
    if piece.finish_reason == "length":
        return "length"
    return "stop_sequence" if isinstance(piece.stop_reason, str) else "eos_token"


def _token(token_id: int, logprob: float, call: ApiCall) -> dict[str, Any]:
    special = token_id in call.services.tokenizer.special_token_ids
    return {"id": token_id, "text": call.names.name(token_id), "logprob": finite(logprob), "special": special}


def _top(entry: TokenLogprobs, call: ApiCall) -> list[dict[str, Any]]:
    return [
        _token(token_id, logprob, call) for token_id, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True)
    ]


def _prefill(runs: Runs, call: ApiCall) -> list[dict[str, Any]]:
    """The tokens of the prompt. The first has no log probability."""
    run = runs.runs[0]
    entries = run.prompt_logprobs or []
    names = call.names
    return [
        {
            "id": token_id,
            "text": names.name(token_id),
            "logprob": None if entry is None else finite(entry.logprob),
        }
        for token_id, entry in zip(run.spec.prompt.token_ids, entries, strict=True)
    ]


class _Chunks:
    """Writes the events of one stream: one for each token. The last has the whole text and the details."""

    def __init__(self, call: ApiCall, inputs: str, given: TgiParameters) -> None:
        self._call = call
        self._given = given
        self._index = 0
        self._texts = [inputs] if given.return_full_text else []
        self._held: TokenLogprobs | None = None  # the newest token: whether it is the last one is not known yet

    def opening(self, runs: Runs) -> Sequence[Event]:
        runs.check_not_aborted()
        return ()

    def deltas(self, piece: Piece, runs: Runs) -> Sequence[Event]:
        if piece.finish_reason == "abort":
            raise aborted()
        self._texts.append(piece.text)
        events = []
        for entry in piece.logprobs:
            if self._held is not None:
                events.append(self._event(self._held, None, None))
            self._held = entry
        if piece.finish_reason is not None and self._held is not None:
            details = {
                "finish_reason": _finish_reason(piece),
                "generated_tokens": runs.completion_tokens(),
                "seed": self._given.seed,
                "input_length": runs.prompt_tokens(),
            }
            events.append(self._event(self._held, "".join(self._texts), details if self._given.details else None))
        return events

    def closing(self, runs: Runs) -> Sequence[Event]:
        return ()

    def _event(self, entry: TokenLogprobs, text: str | None, details: dict[str, Any] | None) -> Event:
        self._index += 1
        chunk: dict[str, Any] = {"index": self._index, "token": _token(entry.token_id, entry.logprob, self._call)}
        if self._given.top_n_tokens:
            chunk["top_tokens"] = _top(entry, self._call)
        return event({**chunk, "generated_text": text, "details": details})
