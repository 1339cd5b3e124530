"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.call import Call, open_call
from ember.front.api.exchange import EventStream, Request, Response
from ember.front.api.logprobs import CompletionLogprobs, prompt_logprobs
from ember.front.api.prompt import completion_prompts
from ember.front.api.runs import Run, Runs
from ember.front.api.samples import Piece
from ember.front.api.schemas import CompletionRequest
from ember.front.api.services import Services
from ember.front.api.streaming import event, json_text, start_stream
from ember.front.api.unsupported import refuse_unsupported
from ember.wire import Ready, TokenLogprobs


async def create_completion(services: Services, request: Request) -> Response | EventStream:
    """Raises ApiError for every failure before the first token."""
    fields = await parse_body(CompletionRequest, request.body)
    services.check_model(fields.model)
    refuse_unsupported(fields)
    info = await services.ready()
    call = await asyncio.to_thread(_open, request, fields, services, info)
    if fields.stream:
        return EventStream(await start_stream(call, _Chunks(call, fields)), call.headers)
    return await _answer(call, fields)


def _open(request: Request, fields: CompletionRequest, services: Services, info: Ready) -> Call:
    prompts = completion_prompts(fields, services, info)
    return open_call(request, fields, services, info, prompts, "cmpl")


class _Choice:
    """What a choice shows of its pieces: the echo comes before the first one, columns of logprobs run on."""

    def __init__(self, index: int, call: Call, fields: CompletionRequest) -> None:
        self._job = call.jobs[index // call.n]
        self._echo_is_due = bool(fields.echo)
        self._columns = None if fields.logprobs is None else CompletionLogprobs(fields.logprobs, call.names)

    def show(self, piece: Piece, run: Run) -> tuple[str, list[int], dict[str, Any] | None]:
        """Text, token ids and logprobs of this piece, with those of the prompt where they are due."""
        text, token_ids = piece.text, piece.token_ids
        entries: list[TokenLogprobs | None] = list(piece.logprobs)
        if self._echo_is_due:
            self._echo_is_due = False
            prompt = self._job.prompt
            text = prompt.echo + text
            token_ids = prompt.token_ids + token_ids
            entries = list(run.prompt_logprobs or [None] * len(prompt.token_ids)) + entries
        columns = None
        if self._columns is not None and len(entries) == len(token_ids):
            columns = self._columns.take(token_ids, entries)
        return text, token_ids, columns


# ------------------------------------------------------------------------------------------------------ whole answer


async def _answer(call: Call, fields: CompletionRequest) -> Response:
    async with call.runs() as runs:
        choices = await runs.collect()
    body = {
        "id": call.id,
        "object": "text_completion",
        "created": call.created,
        "model": call.services.model_name,
        "choices": [_choice_body(piece, runs.runs[piece.choice // call.n], call, fields) for piece in choices],
        "service_tier": None,
        "system_fingerprint": call.fingerprint,
        "usage": call.usage(runs, runs.completion_tokens()),
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }
    return Response(200, body, call.headers)


def _choice_body(piece: Piece, run: Run, call: Call, fields: CompletionRequest) -> dict[str, Any]:
    text, token_ids, columns = _Choice(piece.choice, call, fields).show(piece, run)
    scores = None
    if fields.prompt_logprobs is not None:
        scores = prompt_logprobs(run.prompt_logprobs, fields.prompt_logprobs, call.names)
    return {
        "index": piece.choice,
        "text": text,
        "logprobs": columns,
        "finish_reason": piece.finish_reason,
        "stop_reason": piece.stop_reason,
        "token_ids": token_ids if fields.return_token_ids else None,
        "prompt_logprobs": scores,
        "prompt_token_ids": run.job.prompt.token_ids if fields.return_token_ids else None,
        "routed_experts": None,
        "weight_versions": None,
    }


# ------------------------------------------------------------------------------------------------------------ stream


class _Chunks:
    """Writes the chunks of one stream. Everything that never changes is encoded once."""

    def __init__(self, call: Call, fields: CompletionRequest) -> None:
        self._call = call
        self._fields = fields
        self._choices = [_Choice(index, call, fields) for index in range(call.num_choices)]
        self._has_begun = [False] * call.num_choices
        self._head = {
            "id": call.id,
            "object": "text_completion",
            "created": call.created,
            "model": call.services.model_name,
        }
        self._prefix = f'data: {json_text(self._head)[:-1]},"choices":[{{"index":'
        self._is_plain = not (
            fields.echo or fields.logprobs is not None or fields.return_token_ids or call.stream_usage.in_chunks
        )

    def opening(self, runs: Runs) -> list[str]:
        """There is no role to tell."""
        return []

    def delta(self, piece: Piece, runs: Runs) -> str | None:
        """The chunk of one piece; None when there is nothing to tell."""
        if piece.finish_reason is None and self._is_plain:
            if not piece.text:
                return None
            text = json_text(piece.text)
            end = '"logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n'
            return f'{self._prefix}{piece.choice},"text":{text},{end}'
        run = runs.runs[piece.choice // self._call.n]
        shown = self._choices[piece.choice]
        text, token_ids, columns = shown.show(piece, run)
        tells_tokens = token_ids and (columns is not None or self._fields.return_token_ids)
        if not (text or tells_tokens or piece.finish_reason):
            return None
        choice: dict[str, Any] = {
            "index": piece.choice,
            "text": text,
            "logprobs": columns if columns is None or columns["tokens"] else None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._fields.return_token_ids:
            if not self._has_begun[piece.choice]:
                choice["prompt_token_ids"] = run.job.prompt.token_ids
            choice["token_ids"] = token_ids
        self._has_begun[piece.choice] = True
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if piece.finish_reason is not None and not self._call.stream_usage.at_end:
            chunk["system_fingerprint"] = self._call.fingerprint
        if self._call.stream_usage.in_chunks:
            chunk["usage"] = self._call.final_usage(runs, run.samples[piece.choice % self._call.n].num_tokens)
        return event(chunk)

    def usage(self, runs: Runs) -> str:
        usage = self._call.final_usage(runs, runs.completion_tokens())
        return event({**self._head, "choices": [], "usage": usage, "system_fingerprint": self._call.fingerprint})
