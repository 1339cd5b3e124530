"""From a chat to its prompt: which template renders it, with which variables. Runs in a thread."""

from __future__ import annotations

from typing import Any

from ember.front.api.body import reported
from ember.front.api.messages import USUAL_HISTORY, content_text, has_tool_calls, prepare_messages
from ember.front.api.prompt import Prompt, encode_text
from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.api.templates import Template, chosen_template, content_format
from ember.front.errors import bad_request
from ember.front.text.reasoning import SWITCHES
from ember.front.text.template_error import TemplateError
from ember.wire import Ready


def adds_generation_prompt(request: ChatRequest) -> bool:
    """Whether the prompt ends with the start of an answer. It does not when the last message is to be continued. Raises
    ApiError 400 when the request asks for both."""
    if request.continue_final_message:
        if request.add_generation_prompt:
            message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            raise bad_request(message, "continue_final_message")
        return False
    return request.add_generation_prompt is not False


def response_role(request: ChatRequest, services: Services) -> str:
    """The role of the answer. Without a generation prompt the answer continues the last message and has its role."""
    return services.settings.response_role if adds_generation_prompt(request) else request.messages[-1]["role"]


def chat_prompt(
    request: ChatRequest, services: Services, info: Ready, tools: list[dict[str, Any]] | None
) -> tuple[Prompt, list[str]]:
    """Render and tokenise a chat. Also returns what the request gives to the template and the template does not read.
    Raises ApiError 400."""
    text, messages, unread = render_chat(request, services, tools)
    prompt = encode_text(text, request, services, info, add_special_tokens=bool(request.add_special_tokens))
    last = messages[-1]
    if request.echo and last["role"] == response_role(request, services):
        prompt.echo = content_text(last["content"])
    return prompt, unread


def render_chat(
    request: ChatRequest, services: Services, tools: list[dict[str, Any]] | None
) -> tuple[str, list[dict[str, Any]], list[str]]:
    """Render a chat. Returns the text, the messages as the template got them, and the names of what it does not read.
    Raises ApiError 400."""
    try:
        with chosen_template(request, services, tools) as template:
            history = template.history_form if has_tool_calls(request.messages) else USUAL_HISTORY
            messages = prepare_messages(
                request.messages,
                content_format(template, services),
                knows_developer="developer" in template.source,
                model_name=services.model_name,
                history=history,
            )
            text = template.render(
                messages,
                tools=tools,
                add_generation_prompt=adds_generation_prompt(request),
                continue_final_message=bool(request.continue_final_message),
                documents=request.documents,
                keep_null_content=history.empty_content == "null",
                **_template_variables(request, services, template),
            )
            return text, messages, _unread(request, services, template, tools)
    except TemplateError as error:
        raise bad_request(str(error)) from None


def asked_variables(request: ChatRequest, services: Services) -> dict[str, Any]:
    """The variables of the template that the operator and the request give, whether the template reads them or not. The
    request's win."""
    own = dict(request.chat_template_kwargs or {})
    if request.enable_thinking is not None:  # a field says more than a variable, by either of its names
        own |= dict.fromkeys(SWITCHES, request.enable_thinking)
    if request.reasoning_effort is not None:
        own["reasoning_effort"] = request.reasoning_effort
        if not any(name in own for name in SWITCHES):
            own["enable_thinking"] = request.reasoning_effort != "none"
    return {**_both_switches(services.settings.default_chat_template_kwargs), **_both_switches(own)}


def _both_switches(given: dict[str, Any]) -> dict[str, Any]:
    """Set both names of the switch for reasoning. Templates know it under one or the other."""
    named = [given[name] for name in SWITCHES if name in given]
    return {**dict.fromkeys(SWITCHES, named[0]), **given} if named else given


def _template_variables(request: ChatRequest, services: Services, template: Template) -> dict[str, Any]:
    """The variables of `asked_variables` that the template reads."""
    read = _free_variables(services, template)
    return {name: value for name, value in asked_variables(request, services).items() if name in read}


def _free_variables(services: Services, template: Template) -> frozenset[str]:
    """The variables that the template reads and a request may set."""
    own = {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "keep_null_content",
        "self",
    }
    return template.variables - own - services.tokenizer.special_tokens.keys()


def _unread(
    request: ChatRequest, services: Services, template: Template, tools: list[dict[str, Any]] | None
) -> list[str]:
    """The parts of the request for the template that this template does not read."""
    read = _free_variables(services, template)
    if read.intersection(SWITCHES):
        read = read.union(SWITCHES)
    names = [f"chat_template_kwargs.{name}" for name in request.chat_template_kwargs or {} if name not in read]
    if request.reasoning_effort is not None and not read & {"reasoning_effort", *SWITCHES}:
        names.append("reasoning_effort")
    if request.enable_thinking is not None and not read.intersection(SWITCHES):
        names.append("enable_thinking")
    given = {"documents": request.documents, "tools": tools}
    names += [name for name, value in given.items() if value and name not in template.variables]
    return reported(names, "the chat template does not read %s, so it has no effect (logged once per name)")
