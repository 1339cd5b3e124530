"""From the body of an Anthropic request to that of a chat."""

from __future__ import annotations

from typing import Any

from ember.front.api.anthropic.conversation import chat_messages
from ember.front.api.anthropic.forms import ThreadUnsupported
from ember.front.api.anthropic.schemas import CountTokensRequest, MessagesRequest
from ember.front.api.body import WITHOUT_EFFECT, extra_fields, reported, shown
from ember.front.api.chat_translation import CHAT_OPTIONS, chat_options
from ember.front.api.field_names import FieldNames
from ember.front.api.prompt import PromptTooLong
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request

FIELD_NAMES = FieldNames(
    {
        "reasoning_effort": "output_config.effort",
        "response_format.json_schema": "output_config.format",
        "response_format": "output_config.format",
        "stop": "stop_sequences",
        "thinking_token_budget": "thinking.budget_tokens",
    },
    functions={"parameters": "input_schema"},
)
MIN_BUDGET = 1024  # tokens of thinking, as Anthropic has it

_PASSED = (*CHAT_OPTIONS, "truncate_prompt_tokens")
# Fields of Anthropic's that cannot change the answer, beside those of `body.WITHOUT_EFFECT`.
_WITHOUT_EFFECT = frozenset({"inference_geo", "anthropic_version", "anthropic_beta"})
_TOOL_FIELDS = {"type", "name", "description", "input_schema", "strict", "cache_control"}
_THINKING_FIELDS = {"type", "budget_tokens"}
_OUTPUT_FIELDS = {"effort", "format"}


def chat_body(request: CountTokensRequest, services: Services) -> tuple[dict[str, Any], list[str]]:
    """The body of the chat, and the names of what has no effect. Raises ApiError 400."""
    if request.thread:
        raise ThreadUnsupported
    body = chat_options(request, _PASSED)
    body |= {
        "model": request.model,
        "messages": chat_messages(request.messages, request.system, services.model_name),
        "chat_template": request.chat_template,
        "chat_template_kwargs": request.chat_template_kwargs,
    }
    if request.mcp_servers:
        raise bad_request("`mcp_servers` must be empty: this worker calls no servers.", "mcp_servers")
    last = body["messages"][-1]
    if last["role"] == "assistant" and last["content"] and "tool_calls" not in last:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    body |= _tools(request)
    body |= _thinking(request, services)
    body |= _output(request)
    if isinstance(request, MessagesRequest):
        body |= {
            "max_tokens": request.max_tokens,
            "stop": request.stop_sequences or None,
            "stream": request.stream,
            "temperature": request.temperature,
            "top_k": request.top_k,
            "top_p": request.top_p,
        }
    return body, _ignored(request)


def _tools(request: CountTokensRequest) -> dict[str, Any]:
    """`tools`, `tool_choice` and `parallel_tool_calls`. An empty list of tools is none."""
    made: dict[str, Any] = {}
    if request.tools:
        made["tools"] = [_tool(tool, f"tools.{index}") for index, tool in enumerate(request.tools)]
    choice = request.tool_choice
    if choice is None:
        return made
    kind = choice.get("type")
    if kind == "tool":
        name = choice.get("name")
        if not isinstance(name, str) or not name:
            raise bad_request("`tool_choice.name` must be the name of a tool.", "tool_choice.name")
        made["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif isinstance(kind, str) and (mode := {"auto": "auto", "any": "required", "none": "none"}.get(kind)):
        if request.tools or mode == "required":
            made["tool_choice"] = mode
    else:
        message = f"`tool_choice.type` must be 'auto', 'any', 'tool' or 'none', got {shown(kind)}."
        raise bad_request(message, "tool_choice.type")
    if choice.get("disable_parallel_tool_use"):
        made["parallel_tool_calls"] = False
    return made


def _tool(tool: dict[str, Any], place: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        message = f"`{place}.type` must be 'custom', got {shown(kind)}: this worker has no tools of its own, "
        raise bad_request(f"{message}and a tool that the client runs needs an `input_schema`.", f"{place}.type")
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise bad_request(f"`{place}.input_schema` must be a JSON schema, an object.", f"{place}.input_schema")
    function = {"name": tool.get("name"), "parameters": {"type": "object", **schema}}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _thinking(request: CountTokensRequest, services: Services) -> dict[str, Any]:
    thinking = request.thinking
    if thinking is None:
        return {}
    kind = thinking.get("type")
    if kind == "disabled":
        return {"enable_thinking": False}
    if kind == "adaptive":
        return {"enable_thinking": True}
    if kind != "enabled":
        message = f"`thinking.type` must be 'enabled', 'disabled' or 'adaptive', got {shown(kind)}."
        raise bad_request(message, "thinking.type")
    budget = thinking.get("budget_tokens")
    if type(budget) is not int or budget < MIN_BUDGET:
        message = f"`thinking.budget_tokens` must be a whole number of at least {MIN_BUDGET}, got {shown(budget)}."
        raise bad_request(message, "thinking.budget_tokens")
    if isinstance(request, MessagesRequest) and budget >= request.max_tokens:
        message = f"`max_tokens` must be greater than `thinking.budget_tokens`={budget}, got {request.max_tokens}."
        raise bad_request(message, "max_tokens")
    made: dict[str, Any] = {"enable_thinking": True}
    if services.reasoning_format is not None and isinstance(request, MessagesRequest):
        made["thinking_token_budget"] = budget
    return made


def _output(request: CountTokensRequest) -> dict[str, Any]:
    """`reasoning_effort` and `response_format`."""
    config = request.output_config or {}
    made: dict[str, Any] = {}
    if config.get("effort") is not None:
        made["reasoning_effort"] = config["effort"]
    place = "output_config.format" if config.get("format") is not None else "output_format"
    form = config.get("format") or request.output_format
    if form is None:
        return made
    kind = form.get("type") if isinstance(form, dict) else None
    if kind != "json_schema" or not isinstance(form.get("schema"), dict):
        form_text = '{"type": "json_schema", "schema": {...}}'
        raise bad_request(f"`{place}` must be {form_text}.", place)
    made["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form["schema"]}}
    return made


def _ignored(request: CountTokensRequest) -> list[str]:
    """The names of given fields that have no effect."""
    known = WITHOUT_EFFECT.union(_PASSED, _WITHOUT_EFFECT)
    names = [name for name in extra_fields(request) if name not in known]
    inner = {f"tools.{name}" for tool in request.tools or () for name in tool.keys() - _TOOL_FIELDS}
    for field, read in (("thinking", _THINKING_FIELDS), ("output_config", _OUTPUT_FIELDS)):
        inner |= {f"{field}.{name}" for name in (getattr(request, field) or {}).keys() - read}
    return reported([*names, *sorted(inner)], "the request field %s has no effect (logged once per name)")


def own_error(error: ApiError) -> ApiError:
    """The error in Anthropic's words where clients read them: Claude Code makes its conversation shorter then."""
    if not isinstance(error, PromptTooLong):
        return error
    if error.num_tokens is None:
        message = f"prompt is too long: {error.message}"
    else:
        message = f"prompt is too long: {error.num_tokens} tokens > {error.max_model_len} maximum"
    return ApiError(400, message, param=error.param)
