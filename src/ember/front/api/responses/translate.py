"""From the body of a request to /v1/responses to that of a chat."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ember.front.api.body import WITHOUT_EFFECT, extra_fields, reported, shown
from ember.front.api.chat_translation import CHAT_OPTIONS, chat_options
from ember.front.api.field_names import FieldNames
from ember.front.api.responses.items import chat_messages, full_name
from ember.front.api.responses.schemas import InputTokensRequest, ResponsesRequest
from ember.front.api.services import Services
from ember.front.errors import bad_request

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
FIELD_NAMES = FieldNames(
    {
        "max_completion_tokens": "max_output_tokens",
        "max_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
        "response_format.json_schema": "text.format",
        "response_format": "text.format",
    },
    functions={},
)
_INCLUDED = (LOGPROBS, ENCRYPTED)
# Parts that OpenAI's own tools would add: there are none, so nothing is left out without them.
_OF_OTHER_TOOLS = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)

_VERBOSITIES = ("low", "medium", "high")
_FORM_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

_PASSED = (*CHAT_OPTIONS, "stop", "thinking_token_budget", "top_k")


def chat_body(
    request: InputTokensRequest, history: Sequence[dict[str, Any]], items: Sequence[dict[str, Any]], services: Services
) -> tuple[dict[str, Any], list[str]]:
    """The body of the chat, and the names of what has no effect. `history` are the items of earlier responses, `items`
    those of this one. Raises ApiError 400."""
    for name in ("prompt", "conversation", "previous_input_messages"):
        if getattr(request, name) is not None:
            raise bad_request(f"`{name}` is not supported: send `input`, or `previous_response_id`.", name)
    messages = chat_messages(history, items, services.model_name)
    if not messages:
        raise bad_request("`input` must be a non-empty string or list of items.", "input")
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    body = chat_options(request, _PASSED)
    body |= {
        "model": request.model,
        "messages": messages,
        "chat_template": request.chat_template,
        "chat_template_kwargs": request.chat_template_kwargs,
        "parallel_tool_calls": request.parallel_tool_calls,
        "truncate_prompt_tokens": -1 if request.truncation == "auto" else None,
    }
    if items and _is_unfinished(items[-1]):
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    body |= _tools(request)
    body |= _form(request)
    if request.reasoning and request.reasoning.get("effort") is not None:
        body["reasoning_effort"] = request.reasoning["effort"]
    if isinstance(request, ResponsesRequest):
        body |= {
            "max_completion_tokens": request.max_output_tokens,
            "stream": request.stream,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "include_reasoning": request.include_reasoning,
        }
        included = checked_include(request.include)
        if LOGPROBS in included:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    return body, _ignored(request)


def _is_unfinished(item: dict[str, Any]) -> bool:
    """Whether the item is a message of the assistant that is to be continued."""
    is_message = item.get("type", "message") == "message" and item.get("role") == "assistant"
    return is_message and item.get("status") in ("in_progress", "incomplete")


def checked_include(names: Sequence[str] | None) -> set[str]:
    """Raises ApiError 400 for an unknown name."""
    given = set(names or ())
    for name in sorted(given.difference(_INCLUDED, _OF_OTHER_TOOLS)):
        allowed = ", ".join(map(repr, (*_INCLUDED, *_OF_OTHER_TOOLS)))
        raise bad_request(f"`include` must be of {allowed}, got {name[:64]!r}.", "include")
    return given


def _tools(request: InputTokensRequest) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if request.tools:
        made["tools"] = [made for index, tool in enumerate(request.tools) for made in _tool(tool, f"tools.{index}")]
    choice = request.tool_choice
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind == "function":
            choice = _named(choice)
            if not isinstance(choice["function"].get("name"), str):
                raise bad_request("`tool_choice.name` must be the name of a tool.", "tool_choice.name")
        elif kind == "allowed_tools":
            listed = choice.get("tools")
            choice = {**choice, "tools": [_named(tool) for tool in listed] if isinstance(listed, list) else listed}
        else:
            message = f"`tool_choice.type` must be 'function' or 'allowed_tools', got {shown(kind)}."
            raise bad_request(message, "tool_choice.type")
    if choice is not None and (request.tools or choice not in ("auto", "none")):
        made["tool_choice"] = choice
    return made


def _named(tool: Any) -> Any:
    """A tool of a choice, whose name stands beside its type here."""
    if not isinstance(tool, dict) or isinstance(tool.get("function"), dict):  # as in a chat
        return tool
    return {"type": "function", "function": {"name": full_name(tool.get("name"), tool.get("namespace"))}}


def _tool(tool: dict[str, Any], place: str, namespace: str | None = None) -> list[dict[str, Any]]:
    """The functions of a chat that a tool is: one, or those of a namespace."""
    kind = tool.get("type")
    if kind == "namespace" and namespace is None:
        name, inner = tool.get("name"), tool.get("tools")
        if not isinstance(name, str) or not name:
            raise bad_request(f"`{place}.name` must be a non-empty string.", f"{place}.name")
        if not isinstance(inner, list) or not all(isinstance(entry, dict) for entry in inner):
            raise bad_request(f"`{place}.tools` must be a list of functions.", f"{place}.tools")
        return [made for index, entry in enumerate(inner) for made in _tool(entry, f"{place}.tools.{index}", name)]
    if kind != "function":
        message = f"`{place}.type` must be 'function', got {shown(kind)}: this worker has no tools of its own, "
        raise bad_request(f"{message}and a model calls functions alone.", f"{place}.type")
    if isinstance(tool.get("function"), dict) and namespace is None:  # as in a chat
        return [tool]
    function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
    if namespace is not None:
        function["name"] = full_name(tool.get("name"), namespace)
    return [{"type": "function", "function": function}]


def namespaces(request: InputTokensRequest) -> dict[str, tuple[str, str]]:
    """From the names of functions as the model knows them to their namespace and their name in it."""
    found = {}
    for tool in request.tools or ():
        if tool.get("type") == "namespace":
            for entry in tool["tools"]:
                found[full_name(entry.get("name"), tool["name"])] = (tool["name"], entry["name"])
    return found


def _form(request: InputTokensRequest) -> dict[str, Any]:
    """`response_format`."""
    verbosity = (request.text or {}).get("verbosity")
    if verbosity not in (None, *_VERBOSITIES):
        message = f"`text.verbosity` must be {', '.join(map(repr, _VERBOSITIES))}, got {shown(verbosity)}."
        raise bad_request(message, "text.verbosity")
    form = (request.text or {}).get("format")
    if form is None:
        return {}
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if kind == "json_schema":
        if not isinstance(form.get("schema"), dict):
            raise bad_request("`text.format.schema` must be a JSON schema, an object.", "text.format.schema")
        name = form.get("name")
        if name is not None and not (isinstance(name, str) and _FORM_NAME.fullmatch(name)):
            message = f"`text.format.name` must be of at most 64 letters, digits, _ and -, got {shown(name)}."
            raise bad_request(message, "text.format.name")
        schema = {
            name: form[name] for name in ("name", "description", "schema", "strict") if form.get(name) is not None
        }
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", **schema}}}
    message = f"`text.format.type` must be 'text', 'json_object' or 'json_schema', got {shown(kind)}."
    raise bad_request(message, "text.format.type")


def _ignored(request: InputTokensRequest) -> list[str]:
    """The names of given fields that have no effect."""
    known = WITHOUT_EFFECT.union(_PASSED)
    names = [name for name in extra_fields(request) if name not in known]
    for field, read in (("reasoning", {"effort"}), ("text", {"format"}), ("stream_options", {"include_obfuscation"})):
        given = getattr(request, field, None) or {}
        names += [f"{field}.{name}" for name in sorted(given.keys() - read, key=str) if given[name] is not None]
    return reported(names, "the request field %s has no effect (logged once per name)")
