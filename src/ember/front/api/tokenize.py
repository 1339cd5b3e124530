"""POST /tokenize and /detokenize: what a prompt is in tokens, without running it. No length limit applies."""

from __future__ import annotations

import asyncio
from typing import Any

from ember.front.api.body import parse_body
from ember.front.api.exchange import Request, Response
from ember.front.api.prompt import adds_generation_prompt, check_token_ids, render_chat
from ember.front.api.schemas import ChatRequest, DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from ember.front.api.services import Services
from ember.front.api.templates import in_thread
from ember.front.api.unsupported import refuse_template_overrides
from ember.front.errors import encodable


async def tokenize(services: Services, request: Request) -> Response:
    """Of a prompt, or of `messages` as the chat template renders them. Raises ApiError."""
    if isinstance(request.body, dict) and request.body.get("messages") is not None:
        chat = await parse_body(TokenizeChatRequest, request.body)
        services.check_model(chat.model)
        refuse_template_overrides(chat)
        adds_generation_prompt(chat)
        token_ids = await in_thread(chat, _chat_tokens, chat, services)
        shows_strings = chat.return_token_strs
    else:
        fields = await parse_body(TokenizeRequest, request.body)
        services.check_model(fields.model)
        text, adds_special = encodable(fields.prompt), fields.add_special_tokens is not False
        token_ids = await asyncio.to_thread(services.tokenizer.encode, text, adds_special)
        shows_strings = fields.return_token_strs
    info = await services.ready()
    body: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": info.max_model_len,
        "tokens": token_ids,
        "token_strs": [services.tokenizer.vocab_entry(token_id) for token_id in token_ids] if shows_strings else None,
    }
    return Response(200, body)


async def detokenize(services: Services, request: Request) -> Response:
    """Special tokens included. Raises ApiError."""
    fields = await parse_body(DetokenizeRequest, request.body)
    services.check_model(fields.model)
    check_token_ids(fields.tokens, await services.ready(), "tokens")
    text = await asyncio.to_thread(services.tokenizer.decode, fields.tokens, skip_special_tokens=False)
    return Response(200, {"prompt": text})


def _chat_tokens(request: ChatRequest, services: Services) -> list[int]:
    text, _, _ = render_chat(request, services, request.tools)
    return services.tokenizer.encode(encodable(text), bool(request.add_special_tokens))
