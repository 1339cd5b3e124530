"""What comes in a later version is refused by name, never ignored in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ember.front.api.schemas import ChatRequest, GenerationRequest, ResponseFormat
from ember.front.errors import ApiError, bad_request


def later(field: str, hint: str = "remove it from the request") -> ApiError:
    return bad_request(f"`{field}` is not supported by this version of Ember; {hint}.", param=field)


def _never(value: Any) -> bool:
    return False


def _empty(value: Any) -> bool:
    return value in ("", [], {})


# Undeclared fields (all stay in `model_extra`) -> whether a value asks for nothing and may pass.
_LATER: dict[str, Callable[[Any], bool]] = {
    "functions": _empty,
    "function_call": lambda value: value == "none",
    "structured_outputs": _never,
    "guided_json": _never,
    "guided_regex": _never,
    "guided_choice": _never,
    "guided_grammar": _never,
    "guided_json_object": lambda value: value is False,
    "structural_tag": _never,
    "logprob_token_ids": _empty,
    "logits_processors": _empty,
    "thinking_token_budget": lambda value: type(value) is int and value == -1,
    "repetition_detection": _never,
    "prompt_embeds": _never,
    "audio": _never,
    "modalities": lambda value: value in ([], ["text"]),
    "prediction": _never,
    "kv_transfer_params": _never,
    "ec_transfer_params": _never,
}
REFUSED = frozenset(_LATER)

_NO_TOOLS = (
    'This version of Ember has no tool calls; with `tool_choice` "none" the tools are shown to the model, and it '
    "answers with text."
)
# Clients know this sentence of vLLM's and act on it. No setting of this worker changes it.
_AUTO_TOOLS = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'


def refuse_unsupported(request: GenerationRequest) -> None:
    """Raises ApiError 400 for the first field that asks for what this version cannot do."""
    for name, value in (request.model_extra or {}).items():
        if value is not None and name in _LATER and not _LATER[name](value):
            raise later(name)
    if request.use_beam_search:
        raise later("use_beam_search")
    _refuse_best_of(request)
    if request.response_format is not None:
        _refuse_response_format(request.response_format)


def _refuse_best_of(request: GenerationRequest) -> None:
    n = 1 if request.n is None else request.n
    if request.best_of is None or request.best_of == n:
        return
    if request.best_of < n:
        raise bad_request(
            f"best_of must be greater than or equal to n, got n={n} and best_of={request.best_of}.", "best_of"
        )
    raise later("best_of", f"leave it out, or send best_of equal to n ({n})")


def _refuse_response_format(response_format: ResponseFormat) -> None:
    kind = response_format.type
    if kind == "text":
        return
    if kind == "json_schema" and response_format.json_schema is None:
        message = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
        raise bad_request(message, "response_format")
    if kind not in ("json_object", "json_schema", "structural_tag"):
        allowed = "text, json_object, json_schema, structural_tag"
        raise bad_request(f"response_format type must be one of {allowed}, got {kind[:64]!r}.", "response_format")
    raise later("response_format", 'only {"type": "text"} is understood')


def check_tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    """The tools that the template may show. Raises ApiError 400 for everything that would need tool calls."""
    tools, choice = request.tools, request.tool_choice
    if tools is not None and not tools:
        raise bad_request(
            "`tools` must not be an empty list. Either provide at least one tool or omit the field.", "tools"
        )
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        message = f'Invalid value for `tool_choice`: {choice[:64]!r}! Only named tools, "none", "auto" or "required"'
        raise bad_request(f"{message} are supported.", "tool_choice")
    if choice == "none":
        return tools
    if tools is None:
        if choice is not None:
            raise bad_request("When using `tool_choice`, `tools` must be set.", "tool_choice")
        return None
    if isinstance(choice, dict):
        _check_named(tools, choice)
        raise bad_request(f"A named `tool_choice` is not supported. {_NO_TOOLS}", "tool_choice")
    if choice == "required":
        raise bad_request(f'`tool_choice` "required" is not supported. {_NO_TOOLS}', "tool_choice")
    raise bad_request(f"{_AUTO_TOOLS}. {_NO_TOOLS}", "tools" if choice is None else "tool_choice")


def _check_named(tools: list[dict[str, Any]], choice: dict[str, Any]) -> None:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        form = '{"type": "function", "function": {"name": "..."}}'
        raise bad_request(
            f"Expected field `function` with a `name` in `tool_choice`. Correct usage: {form}", "tool_choice"
        )
    offered = [tool["function"].get("name") for tool in tools if isinstance(tool.get("function"), dict)]
    if name not in offered:
        message = "The tool specified in `tool_choice` does not match any of the specified `tools`"
        raise bad_request(message, "tool_choice")


def refuse_template_overrides(request: ChatRequest) -> None:
    """Raises ApiError 400 for a template, and options of it, that are the operator's to set."""
    extra = request.model_extra or {}
    if extra.get("chat_template") is not None:
        message = (
            "Refused request with untrusted chat template: a request cannot bring one, the operator sets it with "
            "CUSTOM_CHAT_TEMPLATE."
        )
        raise bad_request(message, "chat_template")
    for name in ("mm_processor_kwargs", "media_io_kwargs"):
        if extra.get(name):
            raise later(name)
    for name in ("chat_template", "tokenize"):
        if name in (request.chat_template_kwargs or {}):
            raise bad_request(f"`{name}` is not allowed in chat_template_kwargs.", "chat_template_kwargs")


def refuse_reasoning(request: ChatRequest) -> None:
    """Raises ApiError 400 for a request that wants the model to reason, or its reasoning told apart from its answer."""
    if request.include_reasoning is False:
        raise later("include_reasoning", "leave it out or send true")
    hint = 'reasoning comes in a later version; leave it out or send "none"'
    if request.reasoning_effort not in (None, "none"):
        raise later("reasoning_effort", hint)
    for name, value in (request.chat_template_kwargs or {}).items():
        if name in ("enable_thinking", "thinking") and value:
            raise later(
                f"chat_template_kwargs.{name}", "reasoning comes in a later version; leave it out or send false"
            )
        if name == "reasoning_effort" and value not in (None, "none"):
            raise later("chat_template_kwargs.reasoning_effort", hint)
