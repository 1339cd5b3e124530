"""Fields that this version does not support are refused by name, and never silently ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ember.front.api.schemas import ChatRequest, GenerationRequest
from ember.front.errors import ApiError, bad_request


def later(field: str, hint: str = "remove it from the request") -> ApiError:
    return bad_request(f"`{field}` is not supported by this version of Ember; {hint}.", param=field)


def _never(value: Any) -> bool:
    return False


def _empty(value: Any) -> bool:
    return value in ("", [], {})


# From undeclared fields, which stay in `model_extra`, to whether a value asks for nothing and may pass.
_LATER: dict[str, Callable[[Any], bool]] = {
    "functions": _empty,
    "function_call": lambda value: value == "none",
    "logits_processors": _empty,
    "thinking_token_budget": lambda value: type(value) is int and value == -1,
    "prompt_embeds": _empty,
    "audio": _never,
    "modalities": lambda value: value in ([], ["text"]),
    "prediction": _never,
    "kv_transfer_params": _never,
    "ec_transfer_params": _never,
}
REFUSED = frozenset(_LATER)


def refuse_unsupported(request: GenerationRequest) -> None:
    """Raises ApiError 400 for the first field that asks for something unsupported."""
    for name, value in (request.model_extra or {}).items():
        if value is not None and name in _LATER and not _LATER[name](value):
            raise later(name)


def refuse_template_overrides(request: ChatRequest) -> None:
    """Raises ApiError 400 for options of the template that are the operator's to set."""
    extra = request.model_extra or {}
    for name in ("mm_processor_kwargs", "media_io_kwargs"):
        if extra.get(name):
            raise later(name)
    for name in ("chat_template", "tokenize"):
        if name in (request.chat_template_kwargs or {}):
            raise bad_request(f"`{name}` is not allowed in chat_template_kwargs.", "chat_template_kwargs")
