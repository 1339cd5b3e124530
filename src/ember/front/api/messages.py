"""Converts chat messages for the template: to roles it knows, content in its format, and arguments as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ember.front.errors import bad_request
from ember.front.text.call_history import HistoryForm, with_ids
from ember.untrusted_json import loads_strict

ContentFormat = Literal["string", "openai"]
USUAL_HISTORY = HistoryForm()

# Content parts that are text -> the key that holds it.
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_MEDIA_PARTS = frozenset(
    {
        "image_url",
        "input_image",
        "image_embeds",
        "image_pil",
        "input_audio",
        "audio_url",
        "audio_embeds",
        "video_url",
        "video_embeds",
        "prompt_embeds",
        "file",
        "input_file",
    }
)


def prepare_messages(
    messages: Sequence[Mapping[str, Any]],
    content_format: ContentFormat,
    *,
    knows_developer: bool,
    model_name: str,
    history: HistoryForm = USUAL_HISTORY,
) -> list[dict[str, Any]]:
    """The messages to render, as copies. `history` is the form in which the template takes tool calls.

    Raises ApiError 400 for content that is no text, and TemplateError where there are more calls than ids.
    """
    prepared = [
        _prepare(_with_tools_of_2023(message), content_format, model_name, history, f"messages.{index}")
        for index, message in enumerate(messages)
    ]
    if history.ids is not None:
        prepared = with_ids(prepared, history.ids)
    if not knows_developer and any(message["role"] == "developer" for message in prepared):
        prepared = _with_developer_as_system(prepared, content_format)
    return prepared


def has_tool_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an earlier message of the conversation has tool calls."""
    return any(message.get(name) for message in messages for name in ("tool_calls", "function_call", "tool_call_id"))


def content_text(content: Any) -> str:
    """Prepared content as one string."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


def _with_tools_of_2023(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert the form of 2023: `function_call` becomes an entry of `tool_calls`, and a message of the role
    "function" a tool's result. They have no ids, so the function's name is used as one."""
    if message["role"] == "function":
        return {**message, "role": "tool", "tool_call_id": message.get("name") or "function"}
    call = message.get("function_call")
    if not call or message.get("tool_calls"):
        return {key: value for key, value in message.items() if key != "function_call"} if call else message
    without = {key: value for key, value in message.items() if key != "function_call"}
    return {**without, "tool_calls": [{"id": str(call.get("name")), "type": "function", "function": call}]}


def _prepare(
    message: Mapping[str, Any], content_format: ContentFormat, model_name: str, history: HistoryForm, place: str
) -> dict[str, Any]:
    prepared = {key: value for key, value in message.items() if value is not None}
    role = message["role"]
    texts = _texts(message.get("content"), model_name)
    if content_format == "openai" and role != "tool":
        prepared["content"] = [{"type": "text", "text": text} for text in texts]
    else:
        prepared["content"] = "\n".join(texts)
    if role == "assistant":
        reasoning = prepared.get("reasoning", prepared.get("reasoning_content"))
        if reasoning is not None:
            prepared["reasoning"] = prepared["reasoning_content"] = reasoning
    tool_calls = prepared.pop("tool_calls", None)
    if tool_calls:
        prepared["tool_calls"] = [
            _with_arguments(call, history, f"{place}.tool_calls.{index}.function")
            for index, call in enumerate(tool_calls)
        ]
        if history.empty_content == "null" and not any(texts):
            prepared["content"] = None
    return prepared


def _texts(content: Any, model_name: str) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    return [part if isinstance(part, str) else _part_text(part, model_name) for part in content]


def _part_text(part: Mapping[str, Any], model_name: str) -> str:
    kind = part.get("type")
    if kind is None:  # the short form: the key says what it is
        kind = next((key for key in part if key in _TEXT_PARTS or key in _MEDIA_PARTS), None)
    if not isinstance(kind, str):
        raise bad_request("A content part must have a `type`, such as {'type': 'text', 'text': '...'}.", "messages")
    if kind in _MEDIA_PARTS:
        message = f"{model_name} is not a multimodal model; content part {kind!r} cannot be used."
        raise bad_request(message, "messages")
    if kind not in _TEXT_PARTS:
        supported = ", ".join(_TEXT_PARTS)
        message = f"Unsupported chat content part type: {kind[:64]!r}. Supported types: {supported}"
        raise bad_request(message, "messages")
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise bad_request(f"A content part of type {kind!r} must have a string `{_TEXT_PARTS[kind]}`.", "messages")
    return text


def _with_arguments(call: Mapping[str, Any], history: HistoryForm, place: str) -> dict[str, Any]:
    """The call with its arguments in the template's form. When that is an object, anything but a JSON object becomes an
    empty one, as a model may have written it. When it is text, text stays as it is. Raises ApiError 400 for a call
    without a function and its name."""
    function = call.get("function")
    if not isinstance(function, dict):
        raise bad_request(f"`{place}` must be an object with a `name` and `arguments`.", place)
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise bad_request(f"`{place}.name` must be a non-empty string.", f"{place}.name")
    arguments = function.get("arguments")
    if history.arguments == "text":
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        return {"type": "function", **call, "function": {**function, "arguments": text.strip() or "{}"}}
    if isinstance(arguments, str):
        try:
            arguments = loads_strict(arguments)
        except ValueError:
            arguments = {}
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}


def _with_developer_as_system(messages: list[dict[str, Any]], content_format: ContentFormat) -> list[dict[str, Any]]:
    """Merge all developer and system messages into one system message at the front."""
    instructions = [message for message in messages if message["role"] in ("developer", "system")]
    others = [message for message in messages if message["role"] not in ("developer", "system")]
    content: Any
    if content_format == "openai":
        content = [part for message in instructions for part in message["content"]]
    else:
        content = "\n".join(message["content"] for message in instructions)
    return [{**instructions[0], "role": "system", "content": content}, *others]
