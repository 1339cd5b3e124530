"""The tools of a chat request: which ones the model sees, which it may call, and whether it must call one.

`functions` and `function_call`, the names of 2023, mean the same as `tools` and `tool_choice` with one call at most;
the answer then has `function_call` in place of `tool_calls`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ember.front.api.body import shown
from ember.front.api.schemas import ChatRequest
from ember.front.api.services import Services
from ember.front.errors import ApiError, bad_request

Mode = Literal["none", "auto", "required", "named"]
MAX_TOOLS = 1024

# Clients know these sentences of vLLM's and act on them.
_AUTO = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
_REQUIRED = 'tool_choice="required" requires --tool-call-parser to be set'
_NAMED = "A named tool_choice requires --tool-call-parser to be set"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request."""

    shown: list[dict[str, Any]] | None = None  # to the template
    callable: tuple[dict[str, Any], ...] = ()  # empty: the output is text
    mode: Mode = "none"
    parallel: bool = True  # more than one call in an answer
    is_legacy: bool = False  # asked with `functions`

    @property
    def is_strict(self) -> bool:
        """Whether calls must match their schemas although the model may decide not to call."""
        return any(tool["function"].get("strict") is True for tool in self.callable)


def requested_tools(request: ChatRequest, services: Services, *, to_run: bool = True) -> ToolUse:
    """The tools of the request. With `to_run` false only the prompt is needed, so calls need not be readable. Raises
    ApiError 400."""
    tools, choice, is_legacy = _given(request)
    field, choice_field = ("functions", "function_call") if is_legacy else ("tools", "tool_choice")
    if tools is not None and not tools:
        message = f"`{field}` must not be an empty list. Either provide at least one tool or omit the field."
        raise bad_request(message, field)
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        message = f'Invalid value for `{choice_field}`: {choice[:64]!r}! Only named tools, "none", "auto" or "required"'
        raise bad_request(f"{message} are supported.", choice_field)
    if tools is None:
        if choice is not None and choice != "none":
            raise bad_request(f"When using `{choice_field}`, `{field}` must be set.", choice_field)
        return ToolUse()
    for index, tool in enumerate(tools):
        _check_tool(tool, f"{field}.{index}", field)
    if len(tools) > MAX_TOOLS:
        raise bad_request(f"`{field}` must have at most {MAX_TOOLS} entries, got {len(tools)}.", field)
    if choice == "none":
        return ToolUse(None if services.settings.exclude_tools_when_tool_choice_none else tools)
    callable_tools, mode = tuple(tools), "auto"
    if isinstance(choice, dict) and not is_legacy and choice.get("type") == "allowed_tools":
        callable_tools, mode = _allowed(tools, choice)
        tools = list(callable_tools)  # a model that does not see the others cannot call them
    elif isinstance(choice, dict):
        callable_tools, mode = (_named(tools, choice, is_legacy),), "named"
    elif choice == "required":
        mode = "required"
    if to_run:
        _check_possible(mode, services, choice_field if choice is not None else field)
    parallel = not is_legacy and mode != "named" and request.parallel_tool_calls is not False
    return ToolUse(tools, callable_tools, mode, parallel, is_legacy)  # type: ignore[arg-type]


def _given(request: ChatRequest) -> tuple[list[dict[str, Any]] | None, Any, bool]:
    """The tools, the choice, and whether the request uses their old names."""
    if request.functions is None and request.function_call is None:
        return request.tools, request.tool_choice, False
    if request.tools is not None or request.tool_choice is not None:
        name = "functions" if request.functions is not None else "function_call"
        raise bad_request(f"`{name}` cannot be used beside `tools` and `tool_choice`.", name)
    tools = None
    if request.functions is not None:
        tools = [{"type": "function", "function": function} for function in request.functions]
    return tools, request.function_call, True


def _check_tool(tool: dict[str, Any], place: str, field: str) -> None:
    """Raises ApiError 400 for a tool that is not a function with a name, or whose parameters are not a schema."""
    kind = tool.get("type", "function")
    if kind != "function":
        raise bad_request(f"`{place}.type` must be 'function', got {shown(kind)}.", field)
    function = tool.get("function")
    if not isinstance(function, dict):
        raise bad_request(f"`{place}.function` must be an object.", field)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise bad_request(f"`{place}.function.name` must be a non-empty string.", field)
    if not isinstance(function.get("parameters"), dict | None):
        raise bad_request(f"`{place}.function.parameters` must be a JSON schema, an object.", field)
    if not isinstance(function.get("strict"), bool | None):
        raise bad_request(f"`{place}.function.strict` must be true or false.", field)


def _named(tools: list[dict[str, Any]], choice: dict[str, Any], is_legacy: bool) -> dict[str, Any]:
    """The tool of a named choice. Raises ApiError 400."""
    field = "function_call" if is_legacy else "tool_choice"
    kind = choice.get("type", "function")
    if kind != "function" and not is_legacy:
        message = f"`tool_choice.type` must be 'function' or 'allowed_tools', got {shown(kind)}."
        raise bad_request(message, field)
    function = choice if is_legacy else choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        form = '{"name": "..."}' if is_legacy else '{"type": "function", "function": {"name": "..."}}'
        message = f"Expected field `function` with a `name` in `{field}`. Correct usage: {form}"
        raise bad_request(message, field)
    for tool in tools:
        if tool["function"]["name"] == name:
            return tool
    message = f"The tool specified in `{field}` does not match any of the specified `tools`"
    raise bad_request(f"{message}: {_unmatched([name], tools)}", field)


def _allowed(tools: list[dict[str, Any]], choice: dict[str, Any]) -> tuple[tuple[dict[str, Any], ...], str]:
    """The tools of an `allowed_tools` choice, in the order of `tools`, and its mode. Raises ApiError 400."""
    field = "tool_choice"
    given = choice.get("allowed_tools", choice)  # the Responses API has the fields beside the type
    mode = given.get("mode", "auto") if isinstance(given, dict) else None
    listed = given.get("tools") if isinstance(given, dict) else None
    if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
        form = '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}'
        raise bad_request(f"`tool_choice` names no allowed tools. Correct usage: {form}", field)
    names = {_name_of(entry) for entry in listed}
    allowed = tuple(tool for tool in tools if tool["function"]["name"] in names)
    unknown = names.difference(tool["function"]["name"] for tool in allowed)
    if unknown:
        message = "A tool specified in `tool_choice` does not match any of the specified `tools`"
        raise bad_request(f"{message}: {_unmatched(sorted(unknown, key=str), tools)}", field)
    return allowed, mode


def _unmatched(given: Sequence[str | None], tools: Sequence[dict[str, Any]]) -> str:
    """Which names were given, and which are allowed. Both are shortened."""
    allowed = [shown(tool["function"]["name"]) for tool in tools[:20]]
    more = [f"and {len(tools) - 20} more"] if len(tools) > 20 else []
    return f"got {', '.join(map(shown, given[:5]))}, allowed are {', '.join([*allowed, *more])}."


def _name_of(entry: Any) -> str | None:
    """The name of a tool in an `allowed_tools` choice."""
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _check_possible(mode: str, services: Services, field: str) -> None:
    """Raises ApiError 400 when the deployment cannot call tools as the request asks."""
    if services.tool_format is None:
        sentence = {"auto": _AUTO, "required": _REQUIRED, "named": _NAMED}[mode]
        raise _refused(sentence, "the format of this model's tool calls is unknown; set TOOL_CALL_PARSER", field)
    if mode == "auto" and not services.settings.enable_auto_tool_choice:
        raise _refused(_AUTO, "ENABLE_AUTO_TOOL_CHOICE is false", field)


def _refused(sentence: str, reason: str, field: str) -> ApiError:
    hint = 'with `tool_choice` "none" the tools are shown to the model, and it answers with text'
    return bad_request(f"{sentence}. ({reason}; {hint}.)", field)
