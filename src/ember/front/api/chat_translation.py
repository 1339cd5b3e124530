"""What routes share that translate their body to that of a chat: Anthropic's messages and OpenAI's Responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ember.front.api.body import IGNORED_FIELDS_HEADER, MAX_IGNORED, extra_fields, parse_body, shown
from ember.front.api.schemas import OpenModel, TokenizeChatRequest
from ember.front.api.services import Services
from ember.front.api.threads import in_thread
from ember.front.api.tokenize import chat_tokens
from ember.front.api.tools import requested_tools
from ember.front.errors import bad_request

# Options of chats that these routes take under the same names: those of vLLM's routes, and others that only sample.
CHAT_OPTIONS = (
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "kv_transfer_params",
    "logit_bias",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "priority",
    "repetition_detection",
    "repetition_penalty",
    "request_id",
    "seed",
    "skip_special_tokens",
    "stop_token_ids",
    "stream_interval",
    "structured_outputs",
)


def chat_options(request: OpenModel, names: Sequence[str]) -> dict[str, Any]:
    """The options of a chat among the fields of the body that the route itself does not know."""
    extra = request.model_extra or {}
    given = extra_fields(request)
    return {name: extra[name] for name in names if name in given}


async def count_chat_tokens(
    body: dict[str, Any], ignored: Sequence[str], services: Services
) -> tuple[int, dict[str, str]]:
    """The number of tokens of the prompt of a chat with this body, and the headers of the answer. `ignored` names
    fields of the original body that have no effect. Raises ApiError."""
    chat = await parse_body(TokenizeChatRequest, body)
    tools = requested_tools(chat, services, to_run=False).shown
    token_ids, unread = await in_thread(chat, chat_tokens, chat, services, tools)
    names = [*ignored, *unread][:MAX_IGNORED]
    return len(token_ids), {IGNORED_FIELDS_HEADER: ", ".join(names)} if names else {}


def required_string(item: Mapping[str, Any], name: str, place: str) -> str:
    """The string in a field of an object at a place of the body. Raises ApiError 400."""
    value = item.get(name)
    if not isinstance(value, str):
        given = f"got {shown(value)}" if name in item else "it is missing"
        raise bad_request(f"`{place}.{name}` must be a string, {given}.", f"{place}.{name}")
    return value


def filled_string(item: Mapping[str, Any], name: str, place: str) -> str:
    """The string in a field that must be there and may not be empty. Raises ApiError 400."""
    text = required_string(item, name, place)
    if not text:
        raise bad_request(f"`{place}.{name}` must be a non-empty string.", f"{place}.{name}")
    return text
