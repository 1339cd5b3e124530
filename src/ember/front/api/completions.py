"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.call import ApiCall, open_call
from ember.front.api.completion_prompts import completion_prompts
from ember.front.api.exchange import Event, EventStream, Request, Response
from ember.front.api.logprobs import CompletionLogprobs, prompt_logprobs
from ember.front.api.run import Run
from ember.front.api.runs import Runs
from ember.front.api.samples import Piece
from ember.front.api.schemas import CompletionRequest
from ember.front.api.services import Services
from ember.front.api.streaming import event, json_text, start_stream
from ember.front.api.threads import in_thread
from ember.front.api.unsupported import refuse_unsupported
from ember.wire import Ready


async def create_completion(services: Services, raw_request: Request) -> Response | EventStream:
    """Raises ApiError for every failure before the first token."""
    request = await parse_body(CompletionRequest, raw_request.body)
    services.check_model(request.model)
    call = await open_completion(services, raw_request, request)
    if request.stream:
        return EventStream(await start_stream(call, _Chunks(call, request)), call.headers)
    return await _answer(call, request)


async def open_completion(services: Services, raw_request: Request, request: CompletionRequest) -> ApiCall:
    """The call of a completion, for every route that answers them. Raises ApiError."""
    refuse_unsupported(request)
    info = await services.ready()
    return await in_thread(request, _open, raw_request, request, services, info)


def _open(raw_request: Request, request: CompletionRequest, services: Services, info: Ready) -> ApiCall:
    prompts = completion_prompts(request, services, info)
    return open_call(raw_request, request, services, info, prompts, "cmpl-")


class _Choice:
    """What a choice shows of its pieces: the echo comes before the first one, columns of logprobs run on."""

    def __init__(self, index: int, call: ApiCall, request: CompletionRequest) -> None:
        spec = call.specs[index // call.n]
        self._prompt = spec.prompt
        self._echo_is_due = bool(request.echo)
        self._columns: CompletionLogprobs | None = None
        if request.logprobs is not None:
            detokenizer = spec.text.detokenizer(call.services.tokenizer, spec.prompt.token_ids)
            self._columns = CompletionLogprobs(request.logprobs, call.names, detokenizer)

    def show(self, piece: Piece, run: Run) -> tuple[str, dict[str, list[Any]] | None]:
        """Text and logprobs of this piece, with those of the prompt where they are due."""
        text = piece.text
        columns: dict[str, list[Any]] | None = None
        if self._echo_is_due:
            self._echo_is_due = False
            text = self._prompt.echo + text
            if self._columns is not None:
                columns = self._echo(self._columns, run)
        if self._columns is not None and len(piece.logprobs) == len(piece.token_ids):
            new = self._columns.take(piece.token_ids, piece.logprobs)
            columns = new if columns is None else {name: columns[name] + new[name] for name in new}
        return text, columns

    def _echo(self, columns: CompletionLogprobs, run: Run) -> dict[str, list[Any]]:
        prompt = self._prompt
        entries = run.prompt_logprobs or [None] * len(prompt.token_ids)
        return columns.echo(prompt.token_ids, entries, prompt.echo_offsets or (), len(prompt.echo))


# ------------------------------------------------------------------------------------------------------ whole answer


async def _answer(call: ApiCall, request: CompletionRequest) -> Response:
    async with call.runs() as runs:
        choices = await runs.collect()
    body = {
        "id": call.id,
        "object": "text_completion",
        "created": call.created,
        "model": call.services.model_name,
        "choices": [_choice_body(piece, runs.runs[piece.choice // call.n], call, request) for piece in choices],
        "service_tier": None,
        "system_fingerprint": call.fingerprint,
        "usage": call.usage(runs, runs.completion_tokens()),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": call.metrics(runs),
    }
    return Response(200, body, call.headers)


def _choice_body(piece: Piece, run: Run, call: ApiCall, request: CompletionRequest) -> dict[str, Any]:
    text, columns = _Choice(piece.choice, call, request).show(piece, run)
    scores = None
    if request.prompt_logprobs is not None:
        scores = prompt_logprobs(run.prompt_logprobs, request.prompt_logprobs, call.names)
    return {
        "index": piece.choice,
        "text": text,
        "logprobs": columns,
        "finish_reason": piece.finish_reason,
        "stop_reason": piece.stop_reason,
        "token_ids": piece.token_ids if request.return_token_ids else None,
        "prompt_logprobs": scores,
        "prompt_token_ids": run.spec.prompt.token_ids if request.return_token_ids else None,
        "routed_experts": None,
        "weight_versions": None,
    }


# ------------------------------------------------------------------------------------------------------------ stream


class _Chunks:
    """Writes the chunks of one stream. Everything that never changes is encoded once."""

    def __init__(self, call: ApiCall, request: CompletionRequest) -> None:
        self._call = call
        self._request = request
        self._choices = [_Choice(index, call, request) for index in range(call.num_choices)]
        self._has_begun = [False] * call.num_choices
        self._head = {
            "id": call.id,
            "object": "text_completion",
            "created": call.created,
            "model": call.services.model_name,
        }
        self._prefix = f'{json_text(self._head)[:-1]},"choices":[{{"index":'
        self._is_plain = not (
            request.echo or request.logprobs is not None or request.return_token_ids or call.stream_usage.in_chunks
        )

    def opening(self, runs: Runs) -> list[Event]:
        """There is no role to tell."""
        return []

    def deltas(self, piece: Piece, runs: Runs) -> Sequence[Event]:
        """The chunk of one piece, if there is anything to tell."""
        if piece.finish_reason is None and self._is_plain:
            if not piece.text:
                return ()
            text = json_text(piece.text)
            end = '"logprobs":null,"finish_reason":null,"stop_reason":null}]}'
            return (Event(f'{self._prefix}{piece.choice},"text":{text},{end}'),)
        run = runs.runs[piece.choice // self._call.n]
        shown = self._choices[piece.choice]
        text, columns = shown.show(piece, run)
        tells_tokens = (columns and columns["tokens"]) or (piece.token_ids and self._request.return_token_ids)
        if not (text or tells_tokens or piece.finish_reason):
            return ()
        choice: dict[str, Any] = {
            "index": piece.choice,
            "text": text,
            "logprobs": columns if columns is None or columns["tokens"] else None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._request.return_token_ids:
            if not self._has_begun[piece.choice]:
                choice["prompt_token_ids"] = run.spec.prompt.token_ids
            choice["token_ids"] = piece.token_ids
        self._has_begun[piece.choice] = True
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if piece.finish_reason is not None and not self._call.stream_usage.at_end:
            chunk["system_fingerprint"] = self._call.fingerprint
        if self._call.stream_usage.in_chunks:
            chunk["usage"] = self._call.final_usage(runs, run.samples[piece.choice % self._call.n].num_tokens)
        return (event(chunk),)

    def closing(self, runs: Runs) -> Sequence[Event]:
        """The usage, where it is asked for."""
        return (event({**self._head, **self._call.final_chunk(runs)}),) if self._call.stream_usage.at_end else ()
