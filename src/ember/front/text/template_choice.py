"""The chat template of a deployment: chosen once at start-up, and named by `ember inspect`."""

from __future__ import annotations

from collections.abc import Mapping

from ember.front.text.template import ChatTemplate
from ember.front.text.template_error import TemplateError

_ADVICE = "chat requests are refused unless CUSTOM_CHAT_TEMPLATE gives one"


def choose_template(
    own: str | dict[str, str] | None, special_tokens: Mapping[str, str], custom: str | None
) -> tuple[ChatTemplate | None, str]:
    """The template, and where it comes from; or None, and the reason. `own`: the model's template, or its named ones.

    Raises TemplateError, with one line for the operator, if `custom` (CUSTOM_CHAT_TEMPLATE) is no template. The model's
    own is not parsed: `fault_of` does that.
    """
    try:
        template = ChatTemplate.choose(own, special_tokens, custom)
        if template is not None and custom:
            _ = template.variables
    except TemplateError as error:
        if custom:
            raise TemplateError(f"CUSTOM_CHAT_TEMPLATE cannot be used: {error}") from None
        return None, f"{error}: {_ADVICE}"
    if template is None:
        return None, f"the model has no chat template: {_ADVICE}"
    return template, "CUSTOM_CHAT_TEMPLATE" if custom else "the model's own"


def fault_of(template: ChatTemplate) -> str | None:
    """What is wrong with the model's own template, with advice for the operator; None if it can be compiled."""
    fault = template.fault()
    return None if fault is None else f"{fault}: correct it, or give another one in CUSTOM_CHAT_TEMPLATE"
