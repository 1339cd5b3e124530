"""POST /tokenize and /detokenize: the tokens of a prompt, without running it.

A prompt may be longer than the context, up to `MAX_CHARS` and `MAX_TOKENS`, as the streams of others share the process.
A conversation has the prompt of a chat with the same body. Sampling options are accepted and change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ember.front.api.body import IGNORED_FIELDS_HEADER, MAX_IGNORED, ignored_fields, parse_body
from ember.front.api.chat_prompt import adds_generation_prompt, render_chat
from ember.front.api.exchange import Request, Response
from ember.front.api.prompt import encode, truncated
from ember.front.api.schemas import ChatRequest, DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.api.tools import requested_tools
from ember.front.api.unsupported import refuse_template_overrides
from ember.front.api.vocabulary import check_token_ids
from ember.front.errors import bad_request, encodable
from ember.wire import Ready

MAX_CHARS = 2**21  # of a text
MAX_TOKENS = 2**19  # of what is to become a text


async def tokenize(services: Services, raw_request: Request) -> Response:
    """Tokenise a prompt, or `messages` as the chat template renders them. Raises ApiError."""
    info = await services.described()
    unread: list[str] = []
    request: TokenizeChatRequest | TokenizeRequest
    if isinstance(raw_request.body, dict) and raw_request.body.get("messages") is not None:
        if raw_request.body.get("prompt") is not None:
            raise bad_request("Give `prompt` or `messages`, not both.", "prompt")
        request = await parse_body(TokenizeChatRequest, raw_request.body)
        services.check_model(request.model)
        refuse_template_overrides(request)
        adds_generation_prompt(request)
        tools = requested_tools(request, services, to_run=False).shown
        token_ids, unread = await in_thread(request, chat_tokens, request, services, tools)
    else:
        request = await parse_body(TokenizeRequest, raw_request.body)
        services.check_model(request.model)
        adds_special = request.add_special_tokens is not False
        token_ids = await asyncio.to_thread(_tokens, request.prompt, services, adds_special)
    token_ids = truncated(token_ids, request, info)
    body: dict[str, Any] = {
        "count": len(token_ids),
        "max_model_len": info.max_model_len,
        "tokens": token_ids,
        "token_strs": [services.tokenizer.vocab_entry(token_id) for token_id in token_ids]
        if request.return_token_strs
        else None,
    }
    return Response(200, body, _headers([*ignored_fields(request), *unread]))


async def detokenize(services: Services, raw_request: Request) -> Response:
    """Decode token ids, special tokens included. Raises ApiError."""
    request = await parse_body(DetokenizeRequest, raw_request.body)
    services.check_model(request.model)
    if len(request.tokens) > MAX_TOKENS:
        raise bad_request(f"tokens must have at most {MAX_TOKENS} entries, got {len(request.tokens)}.", "tokens")
    text = await asyncio.to_thread(_text, request.tokens, services, await services.described())
    return Response(200, {"prompt": text}, _headers(ignored_fields(request)))


def chat_tokens(
    request: ChatRequest, services: Services, tools: list[dict[str, Any]] | None
) -> tuple[list[int], list[str]]:
    """The token ids of the chat, and the names of what the template does not read."""
    text, _, unread = render_chat(request, services, tools)
    return _tokens(text, services, bool(request.add_special_tokens)), unread


def _tokens(text: str, services: Services, adds_special: bool) -> list[int]:
    if len(text) > MAX_CHARS:
        raise bad_request(f"The text must have at most {MAX_CHARS} characters, it has {len(text)}.", "prompt")
    return encode(services.tokenizer, encodable(text), adds_special, "prompt")


def _text(token_ids: Sequence[int], services: Services, info: Ready) -> str:
    check_token_ids(token_ids, info, "tokens")
    return services.tokenizer.decode(token_ids, skip_special_tokens=False)


def _headers(ignored: Sequence[str]) -> dict[str, str]:
    return {IGNORED_FIELDS_HEADER: ", ".join(ignored[:MAX_IGNORED])} if ignored else {}
