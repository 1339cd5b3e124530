"""POST /inference/v1/generate: token ids in, token ids out.

The body is that of /render. Options are those of completions; a prompt without `max_tokens` is continued as far as the
context allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.call import ApiCall
from ember.front.api.completions import open_completion
from ember.front.api.exchange import Event, EventStream, Request, Response
from ember.front.api.logprobs import chat_logprobs, finite, prompt_logprobs
from ember.front.api.runs import Runs
from ember.front.api.samples import Piece
from ember.front.api.scale_out.schemas import TokensRequest
from ember.front.api.schemas import CompletionRequest
from ember.front.api.services import Services
from ember.front.api.streaming import event, start_stream
from ember.front.errors import ApiError, bad_request
from ember.wire import TokenLogprobs

_NOT_HERE = ("features", "content_parts", "kv_transfer_params", "ec_transfer_params")
_PLACE = "sampling_params."


async def generate_tokens(services: Services, raw_request: Request) -> Response | EventStream:
    """Raises ApiError for every failure before the first token."""
    request = await parse_body(TokensRequest, raw_request.body)
    services.check_model(request.model)
    for name in _NOT_HERE:
        if getattr(request, name) is not None:
            raise bad_request(f"`{name}` is not supported: prompts are token ids of text.", name)
    if request.sampling_params.get("detokenize") is False:
        _check_without_text(request)
    call, options = await _open(services, raw_request, request)
    if request.stream:
        return EventStream(await start_stream(call, _Chunks(call, request, options)), call.headers)
    async with call.runs() as runs:
        choices = await runs.collect()
    run = runs.runs[0]
    scored = options.prompt_logprobs
    body = {
        "request_id": call.id,
        "model": services.model_name,
        "created": call.created,
        "output_mode": request.output_mode or "tokens",
        "choices": [_choice(piece, call, request, options) for piece in choices],
        "usage": call.usage(runs, runs.completion_tokens()),
        "prompt_logprobs": None if scored is None else prompt_logprobs(run.prompt_logprobs, scored, call.names),
        "prompt_token_ids": run.spec.prompt.token_ids if request.return_token_ids else None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": call.metrics(runs),
    }
    return Response(200, body, call.headers)


async def _open(services: Services, raw_request: Request, request: TokensRequest) -> tuple[ApiCall, CompletionRequest]:
    """Raises ApiError, whose `param` is in `sampling_params` where the fault is there."""
    info = await services.ready()
    own = {
        "prompt": request.token_ids,
        "model": request.model,
        "stream": request.stream,
        "stream_options": None if request.stream_options is None else request.stream_options.model_dump(),
        "cache_salt": request.cache_salt,
        "priority": request.priority,
        "request_id": request.request_id,
    }
    given = {name: value for name, value in request.sampling_params.items() if name not in own}
    given.setdefault("max_tokens", max(1, info.max_model_len - len(request.token_ids)))
    try:
        options = await parse_body(CompletionRequest, {**given, **own})
        call = await open_completion(services, raw_request, options)
    except ApiError as error:
        name = (error.param or "").removeprefix("body.")
        if name == "prompt":
            error.param = "token_ids"
        elif name.partition(".")[0] in given:
            error.param = _PLACE + name
        raise
    if "max_tokens" in request.sampling_params and options.max_tokens is not None:
        most = info.max_model_len - len(request.token_ids)
        if options.max_tokens > most:
            message = f"max_tokens must be at most {most}, max_model_len={info.max_model_len} without the "
            message += f"{len(request.token_ids)} tokens of the prompt, got {options.max_tokens}."
            raise bad_request(message, f"{_PLACE}max_tokens")
    if request.request_id is not None:
        call.id = request.request_id  # as it came, which is also its name in the next step
    return call, options


def _check_without_text(request: TokensRequest) -> None:
    """Raises ApiError 400 for what needs the text of the output."""
    if request.sampling_params.get("stop"):
        message = "`sampling_params.stop` needs the text of the output: leave out `detokenize`, which is false."
        raise bad_request(message, f"{_PLACE}stop")
    if request.output_mode == "text":
        message = "`output_mode` 'text' needs the text of the output: leave out `detokenize`, which is false."
        raise bad_request(message, "output_mode")


def _choice(piece: Piece, call: ApiCall, request: TokensRequest, options: CompletionRequest) -> dict[str, Any]:
    as_text = request.output_mode == "text"
    logprobs = None
    if options.logprobs is not None:
        logprobs = chat_logprobs(piece.logprobs, options.logprobs, call.names) if as_text else _by_id(piece.logprobs)
    choice = {
        "index": piece.choice,
        "finish_reason": piece.finish_reason,
        "stop_reason": piece.stop_reason,
        "token_ids": piece.token_ids,
        "logprobs": logprobs,
        "routed_experts": None,
        "weight_versions": None,
    }
    return {**choice, "text": piece.text} if as_text else choice


def _by_id(entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    content = []
    for entry in entries:
        others = zip(entry.asked_ids or entry.top_ids, entry.asked_logprobs or entry.top_logprobs, strict=True)
        top = [(entry.token_id, entry.logprob), *(pair for pair in others if pair[0] != entry.token_id)]
        content.append(
            {
                "token_id": entry.token_id,
                "logprob": finite(entry.logprob),
                "rank": entry.rank,
                "top_logprobs": [{"token_id": token_id, "logprob": finite(value)} for token_id, value in top],
            }
        )
    return {"content": content}


class _Chunks:
    """Writes the chunks of one stream."""

    def __init__(self, call: ApiCall, request: TokensRequest, options: CompletionRequest) -> None:
        self._call = call
        self._request = request
        self._options = options
        self._head = {"request_id": call.id, "output_mode": request.output_mode or "tokens"}
        self._is_first = True

    def opening(self, runs: Runs) -> Sequence[Event]:
        return ()

    def deltas(self, piece: Piece, runs: Runs) -> Sequence[Event]:
        if not (piece.token_ids or piece.finish_reason):
            return ()
        chunk: dict[str, Any] = {**self._head, "choices": [_choice(piece, self._call, self._request, self._options)]}
        if self._is_first and self._request.return_token_ids:
            chunk["prompt_token_ids"] = runs.runs[0].spec.prompt.token_ids
        self._is_first = False
        if self._call.stream_usage.in_chunks:
            chunk["usage"] = self._call.final_usage(runs, runs.runs[0].samples[piece.choice].num_tokens)
        return (event(chunk),)

    def closing(self, runs: Runs) -> Sequence[Event]:
        if not self._call.stream_usage.at_end:
            return ()
        usage = self._call.final_usage(runs, runs.completion_tokens())
        return (event({**self._head, "choices": [], "usage": usage}),)
