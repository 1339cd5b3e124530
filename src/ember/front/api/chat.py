"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.call import ApiCall, open_call
from ember.front.api.chat_message import delta_fields, message_fields
from ember.front.api.chat_prompt import adds_generation_prompt, asked_variables, chat_prompt, response_role
from ember.front.api.exchange import Event, EventStream, Request, Response
from ember.front.api.logprobs import chat_logprobs, prompt_logprobs
from ember.front.api.output_reader import requested_reader
from ember.front.api.runs import Runs
from ember.front.api.samples import Piece
from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.api.streaming import event, json_text, start_stream
from ember.front.api.threads import in_thread
from ember.front.api.tools import ToolUse, requested_tools
from ember.front.api.unsupported import refuse_template_overrides, refuse_unsupported
from ember.front.text.output import Content
from ember.wire import Ready


async def create_chat_completion(services: Services, raw_request: Request) -> Response | EventStream:
    """Raises ApiError for every failure before the first token."""
    request = await parse_body(ChatRequest, raw_request.body)
    services.check_model(request.model)
    call = await open_chat(services, raw_request, request, "chatcmpl-")
    if request.stream:
        return EventStream(await start_stream(call, _Chunks(call, request)), call.headers)
    return await _answer(call, request)


async def open_chat(
    services: Services,
    raw_request: Request,
    request: ChatRequest,
    id_prefix: str,
    ignored: Sequence[str] = (),
    *,
    waits: bool = True,
) -> ApiCall:
    """The call of a chat, for every route that answers conversations. `ignored` names further parts of the body that
    have no effect. Without `waits` a pause or a sleep is waited for when the call is run. Raises ApiError."""
    refuse_unsupported(request)
    refuse_template_overrides(request)
    tools = requested_tools(request, services)
    adds_generation_prompt(request)
    info = await (services.ready() if waits else services.described())
    return await in_thread(request, _open, raw_request, request, services, info, tools, id_prefix, ignored)


def _open(
    raw_request: Request,
    request: ChatRequest,
    services: Services,
    info: Ready,
    tools: ToolUse,
    id_prefix: str,
    ignored: Sequence[str],
) -> ApiCall:
    reader = requested_reader(request, services, tools, asked_variables(request, services))
    prompt, unread = chat_prompt(request, services, info, tools.shown)
    return open_call(raw_request, request, services, info, [prompt], id_prefix, [*unread, *ignored], reader)


def _is_legacy(request: ChatRequest) -> bool:
    """Whether calls are told under their names of 2023."""
    return bool(request.functions)


# ------------------------------------------------------------------------------------------------------ whole answer


async def _answer(call: ApiCall, request: ChatRequest) -> Response:
    async with call.runs() as runs:
        choices = await runs.collect()
    run = runs.runs[0]
    prompt = run.spec.prompt
    role = response_role(request, call.services)
    body = {
        "id": call.id,
        "object": "chat.completion",
        "created": call.created,
        "model": call.services.model_name,
        "service_tier": None,
        "system_fingerprint": call.fingerprint,
        "choices": [_choice_body(choice, role, call, request) for choice in choices],
        "usage": call.usage(runs, runs.completion_tokens()),
        "prompt_logprobs": prompt_logprobs(run.prompt_logprobs, request.prompt_logprobs or 0, call.names),
        "prompt_token_ids": prompt.token_ids if request.return_token_ids else None,
        "prompt_text": prompt.text if request.return_prompt_text else None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": call.metrics(runs),
    }
    return Response(200, body, call.headers)


def _choice_body(choice: Piece, role: str, call: ApiCall, request: ChatRequest) -> dict[str, Any]:
    logprobs = chat_logprobs(choice.logprobs, request.top_logprobs or 0, call.names) if request.logprobs else None
    message = {"role": role, **message_fields(choice, _is_legacy(request))}
    if echo := call.specs[0].prompt.echo:
        message["content"] = echo + (message["content"] or "")
    return {
        "index": choice.choice,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": choice.token_ids if request.return_token_ids else None,
        "routed_experts": None,
        "weight_versions": None,
    }


# ------------------------------------------------------------------------------------------------------------ stream


class _Chunks:
    """Writes the chunks of one stream. Everything that never changes is encoded once."""

    def __init__(self, call: ApiCall, request: ChatRequest) -> None:
        self._call = call
        self._request = request
        self._is_legacy = _is_legacy(request)
        self._head = {
            "id": call.id,
            "object": "chat.completion.chunk",
            "created": call.created,
            "model": call.services.model_name,
        }
        self._prefix = f'{json_text(self._head)[:-1]},"choices":[{{"index":'
        self._is_plain = not (request.logprobs or request.return_token_ids or call.stream_usage.in_chunks)

    def opening(self, runs: Runs) -> list[Event]:
        """The role, and the echo, of every choice."""
        prompt = self._call.specs[0].prompt
        role = response_role(self._request, self._call.services)
        extra: dict[str, Any] = {"prompt_token_ids": prompt.token_ids if self._request.return_token_ids else None}
        if self._request.return_prompt_text:
            extra["prompt_text"] = prompt.text
        chunks = [
            self._event(runs, {"index": index, "delta": {"role": role, "content": ""}, **_OPEN}, 0, extra)
            for index in range(self._call.num_choices)
        ]
        if prompt.echo:
            chunks += [
                self._event(runs, {"index": index, "delta": {"content": prompt.echo}, **_OPEN}, 0)
                for index in range(self._call.num_choices)
            ]
        return chunks

    def deltas(self, piece: Piece, runs: Runs) -> Sequence[Event]:
        """The chunk of one piece, if there is anything to tell."""
        if piece.finish_reason is None and self._is_plain:
            text = piece.text
            if len(piece.deltas) == 1 and type(delta := piece.deltas[0]) is Content:
                text = delta.text
            elif piece.deltas:
                return (self._plain_event(piece.choice, json_text(delta_fields(piece, self._is_legacy))),)
            return (self._plain_event(piece.choice, f'{{"content":{json_text(text)}}}'),) if text else ()
        request = self._request
        choice: dict[str, Any] = {
            "index": piece.choice,
            "delta": delta_fields(piece, self._is_legacy),
            "logprobs": None,
            "finish_reason": piece.finish_reason,
        }
        if request.logprobs and piece.logprobs:
            choice["logprobs"] = chat_logprobs(piece.logprobs, request.top_logprobs or 0, self._call.names)
        if request.return_token_ids:
            choice["token_ids"] = piece.token_ids
        extra = {}
        if piece.finish_reason is not None:
            choice["stop_reason"] = piece.stop_reason
            if not self._call.stream_usage.at_end:
                extra["system_fingerprint"] = self._call.fingerprint
        elif not (choice["delta"] or choice["logprobs"] or choice.get("token_ids")):
            return ()
        num_tokens = runs.runs[0].samples[piece.choice].num_tokens
        return (self._event(runs, choice, num_tokens, extra),)

    def closing(self, runs: Runs) -> Sequence[Event]:
        """The usage, where it is asked for."""
        return (event({**self._head, **self._call.final_chunk(runs)}),) if self._call.stream_usage.at_end else ()

    def _plain_event(self, choice: int, delta: str) -> Event:
        return Event(f'{self._prefix}{choice},"delta":{delta},"logprobs":null,"finish_reason":null}}]}}')

    def _event(self, runs: Runs, choice: dict[str, Any], num_tokens: int, extra: dict[str, Any] | None = None) -> Event:
        chunk = {**self._head, "choices": [choice], **(extra or {})}
        if self._call.stream_usage.in_chunks:
            chunk["usage"] = self._call.final_usage(runs, num_tokens)
        return event(chunk)


_OPEN: dict[str, Any] = {"logprobs": None, "finish_reason": None}
