"""Which chat template renders a request: the deployment's, one of the model's named ones, or the client's own."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, Literal

from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.errors import bad_request
from ember.front.text.template import ChatTemplate
from ember.front.text.template_error import TemplateError
from ember.front.text.tokenizer import Tokenizer
from ember.front.text.untrusted import UntrustedTemplate

log = logging.getLogger(__name__)

Template = ChatTemplate | UntrustedTemplate

NO_TEMPLATE = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one."
)
_UNTRUSTED = (
    "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with "
    "untrusted chat template. (Ember's setting is TRUST_REQUEST_CHAT_TEMPLATE; CUSTOM_CHAT_TEMPLATE sets one for all "
    "requests.)"
)


def chosen_template(
    request: ChatRequest, services: Services, tools: list[dict[str, Any]] | None
) -> AbstractContextManager[Template]:
    """The template, for use inside `with`. Raises ApiError 400, and TemplateError when the model's own is broken.

    A request may name one of the model's templates ("tool_use", "rag") in `chat_template`; one it brings itself must be
    allowed by the operator. Without that, the model's "tool_use" and "rag" are taken for tools and documents.
    """
    settings, tokenizer = services.settings, services.tokenizer
    own = tokenizer.chat_template
    if request.chat_template is not None:
        if isinstance(own, dict) and request.chat_template in own:
            return nullcontext(_template(own[request.chat_template], tokenizer))
        if not settings.trust_request_chat_template:
            raise bad_request(_UNTRUSTED, "chat_template")
        timeout = settings.chat_template_render_timeout
        return UntrustedTemplate(request.chat_template, tokenizer.special_tokens, timeout)
    template = services.template
    if isinstance(own, dict) and settings.custom_chat_template is None:
        for name, is_wanted in (("tool_use", tools), ("rag", request.documents)):
            if is_wanted and name in own:
                return nullcontext(_template(own[name], tokenizer))
    if template is None:
        raise bad_request(NO_TEMPLATE)
    return nullcontext(template)


def describe_history(services: Services) -> None:
    """Detect how the deployment's template takes tool calls of earlier turns, and log it."""
    own, template = services.tokenizer.chat_template, services.template
    if isinstance(own, dict) and services.settings.custom_chat_template is None and "tool_use" in own:
        template = _template(own["tool_use"], services.tokenizer)
    if template is None or "tool_calls" not in template.source:
        return
    try:
        form = template.history_form
    except TemplateError:
        return  # each chat request is refused with the template's error
    log.log(logging.INFO if form.problem is None else logging.WARNING, "tool calls of earlier turns: %s", form)


def content_format(template: Template, services: Services) -> Literal["string", "openai"]:
    """The form in which the template takes the content of messages. Raises TemplateError."""
    wanted = services.settings.chat_template_content_format
    return template.content_format if wanted == "auto" else wanted


def _template(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    return _parsed_once(source, tuple(tokenizer.special_tokens.items()))


@lru_cache(maxsize=8)
def _parsed_once(source: str, special_tokens: tuple[tuple[str, str], ...]) -> ChatTemplate:
    return ChatTemplate(source, dict(special_tokens))
