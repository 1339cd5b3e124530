"""One offline prompt or chat: it is opened and run as the routes of the API open and run theirs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.call import ApiCall, open_call
from ember.front.api.chat_prompt import adds_generation_prompt, asked_variables, chat_prompt, render_chat
from ember.front.api.completion_prompts import completion_prompts
from ember.front.api.exchange import Request
from ember.front.api.logprobs import alternatives
from ember.front.api.output_reader import requested_reader
from ember.front.api.samples import Piece
from ember.front.api.schemas import ChatRequest, CompletionRequest
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.api.tools import requested_tools
from ember.front.api.unsupported import refuse_template_overrides
from ember.front.offline.outputs import (
    BeamSearchOutput,
    BeamSearchSequence,
    CompletionOutput,
    Logprob,
    Position,
    RequestOutput,
)
from ember.front.offline.prompts import GivenPrompt
from ember.wire import TokenLogprobs


async def complete(
    services: Services, request_id: str, prompt: GivenPrompt, fields: dict[str, Any]
) -> tuple[ApiCall, str | None]:
    """The call of a prompt, and its text. `fields` are those of a body for /v1/completions. Raises ApiError."""
    body = {**fields, **prompt.fields, "prompt": prompt.content, "request_id": request_id}
    request = await parse_body(CompletionRequest, body)
    info = await services.ready()

    def opened() -> ApiCall:
        prompts = completion_prompts(request, services, info)
        return open_call(Request("POST", ""), request, services, info, prompts, "")

    call = await in_thread(request, opened)
    return call, call.specs[0].prompt.text if prompt.text is None else prompt.text


async def converse(
    services: Services, request_id: str, messages: Any, fields: dict[str, Any]
) -> tuple[ApiCall, str | None]:
    """Open the call of a conversation with the fields of a body for /v1/chat/completions. Returns the call and its
    prompt as text.

    The output is text as the model wrote it, reasoning and tool calls included. The reasoning is told from the answer
    only for a grammar, which holds behind it, and for its budget.
    """
    request = await parse_body(ChatRequest, {**fields, "messages": messages, "request_id": request_id})
    refuse_template_overrides(request)
    tools = requested_tools(request, services, to_run=False)
    adds_generation_prompt(request)
    info = await services.ready()

    def opened() -> ApiCall:
        reader = requested_reader(
            request, services, dataclasses.replace(tools, callable=()), asked_variables(request, services)
        )
        prompt, unread = chat_prompt(request, services, info, tools.shown)
        call = open_call(Request("POST", ""), request, services, info, [prompt], "", unread, reader)
        for spec in call.specs:
            spec.text = dataclasses.replace(spec.text, reader=None)
        return call

    call = await in_thread(request, opened)
    return call, call.specs[0].prompt.text


async def rendered(services: Services, messages: Any, fields: dict[str, Any]) -> str:
    """The text of a conversation. Raises ApiError."""
    request = await parse_body(ChatRequest, {**fields, "messages": messages})
    refuse_template_overrides(request)
    adds_generation_prompt(request)
    tools = requested_tools(request, services, to_run=False).shown
    text, _, _ = await in_thread(request, render_chat, request, services, tools)
    return text


async def request_output(
    call: ApiCall, text: str | None, num_logprobs: int | None, num_prompt_logprobs: int | None, with_text: bool
) -> RequestOutput:
    """Run the call to its end. Raises ApiError."""
    async with call.runs() as runs:
        choices = await runs.collect()
    run = runs.runs[0]
    prompt_logprobs = None
    if num_prompt_logprobs is not None and run.prompt_logprobs is not None:
        prompt_logprobs = [
            None if entry is None else position(entry, num_prompt_logprobs, call.services, with_text)
            for entry in run.prompt_logprobs
        ]
    return RequestOutput(
        request_id=call.id,
        prompt=text,
        prompt_token_ids=run.spec.prompt.token_ids,
        prompt_logprobs=prompt_logprobs,
        outputs=[_output(choice, num_logprobs, with_text, call.services) for choice in choices],
        metrics=call.metrics(runs),
        num_cached_tokens=run.num_cached_tokens,
    )


def _output(choice: Piece, num_logprobs: int | None, with_text: bool, services: Services) -> CompletionOutput:
    is_asked = num_logprobs is not None
    return CompletionOutput(
        index=choice.choice,
        text=choice.text if with_text else "",
        token_ids=choice.token_ids,
        cumulative_logprob=math.fsum(entry.logprob for entry in choice.logprobs) if is_asked else None,
        logprobs=[position(entry, num_logprobs or 0, services, with_text) for entry in choice.logprobs]
        if is_asked
        else None,
        finish_reason=choice.finish_reason,
        stop_reason=choice.stop_reason,
    )


async def beam_output(call: ApiCall) -> BeamSearchOutput:
    """Run a beam search. Raises ApiError."""
    async with call.runs() as runs:
        choices = await runs.collect()
    prompt_ids = runs.runs[0].spec.prompt.token_ids
    decode = call.services.tokenizer.decode
    return BeamSearchOutput(
        [
            BeamSearchSequence(
                tokens=[*prompt_ids, *choice.token_ids],
                logprobs=[position(entry, 0, call.services) for entry in choice.logprobs],
                cum_logprob=math.fsum(entry.logprob for entry in choice.logprobs),
                text=decode([*prompt_ids, *choice.token_ids]),
                finish_reason=choice.finish_reason,
                stop_reason=choice.stop_reason,
            )
            for choice in choices
        ]
    )


def position(entry: TokenLogprobs, num_top: int, services: Services, with_text: bool = True) -> Position:
    """The log probabilities at one position, by token id: the token itself and the `num_top` likeliest (-1: all)."""
    ranks = {token_id: rank for rank, token_id in enumerate(entry.top_ids, start=1)}
    name = services.tokenizer.token_text
    return {
        token_id: Logprob(
            logprob,
            entry.rank if token_id == entry.token_id else ranks.get(token_id),
            name(token_id) if with_text else None,
        )
        for token_id, logprob in alternatives(entry, num_top)
    }
