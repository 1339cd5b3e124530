"""From the items of a response's input to the messages of a chat.

Items of the assistant that follow each other (reasoning, text, calls) are one message of the chat, as the model wrote
them in one go.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from ember.front.api.body import shown
from ember.front.api.chat_translation import filled_string, required_string
from ember.front.errors import bad_request

SEALED = "ember:"  # begins `encrypted_content` of this worker's own reasoning
ROLES = ("user", "assistant", "system", "developer")
_KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}

Item = Mapping[str, Any]


def as_items(given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """The input as a list of items. A text is a message of the user."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return [dict(item) for item in given]


def seal(text: str) -> str:
    """`encrypted_content` for a text. It is not encrypted, as the client has the text beside it."""
    return SEALED + base64.b64encode(text.encode("utf-8", "replace")).decode()


def full_name(name: Any, namespace: Any) -> Any:
    """The name of a function as the model knows it. One in a namespace begins with the namespace's name."""
    return f"{namespace}__{name}" if isinstance(namespace, str) and isinstance(name, str) else name


def chat_messages(history: Sequence[Item], items: Sequence[Item], model_name: str) -> list[dict[str, Any]]:
    """The messages of a chat. `history` are the items of earlier responses. References must have been resolved before.
    Raises ApiError 400 that names the item at fault."""
    names: dict[str, str] = {}
    messages = []
    for place, given in (("previous_response_id.input", history), ("input", items)):
        reader = _Reader(model_name, names)
        for index, item in enumerate(given):
            reader.read(item, f"{place}.{index}")
        messages += reader.messages
    return messages


class _Reader:
    def __init__(self, model_name: str, names: dict[str, str]) -> None:
        """`names`: of functions, by the id of their call."""
        self._model_name = model_name
        self.messages: list[dict[str, Any]] = []
        self._names = names

    def read(self, item: Item, place: str) -> None:
        kind = item.get("type")
        if kind is None and "role" in item:
            kind = "message"
        if kind == "message":
            self._read_message(item, place)
        elif kind == "reasoning":
            self._read_reasoning(item, place)
        elif kind == "function_call":
            self._read_call(item, place)
        elif kind == "function_call_output":
            call_id = required_string(item, "call_id", place)
            parts = self._parts(item.get("output"), f"{place}.output")
            if call_id not in self._names:
                message = f"No tool call found for function call output with call_id {call_id[:100]} (`{place}`)."
                raise bad_request(message, f"{place}.call_id")
            name = self._names[call_id]
            self.messages.append({"role": "tool", "tool_call_id": call_id, "content": parts, "name": name})
        else:
            message = f"`{place}.type` must be one of {', '.join(map(repr, _KINDS))}, got {shown(kind)}."
            raise bad_request(message, f"{place}.type")

    def _read_message(self, item: Item, place: str) -> None:
        role = item.get("role")
        if role not in ROLES:
            message = f"`{place}.role` must be one of {', '.join(map(repr, ROLES))}, got {shown(role)}."
            raise bad_request(message, f"{place}.role")
        parts = self._parts(item.get("content"), f"{place}.content")
        if role == "assistant":
            self._assistant(has_calls=False)["content"] += parts
        else:
            self.messages.append({"role": role, "content": parts})

    def _read_reasoning(self, item: Item, place: str) -> None:
        texts = [*_texts(item.get("content"), "reasoning_text", f"{place}.content")]
        if not texts and isinstance(sealed := item.get("encrypted_content"), str) and sealed.startswith(SEALED):
            texts = [_opened(sealed, place)]
        if not texts:
            texts = _texts(item.get("summary"), "summary_text", f"{place}.summary")
        if texts:
            message = self._assistant(has_calls=False, has_content=False)
            message["reasoning"] = message.get("reasoning", "") + "".join(texts)

    def _read_call(self, item: Item, place: str) -> None:
        call_id, name = (
            filled_string(item, "call_id", place),
            full_name(filled_string(item, "name", place), item.get("namespace")),
        )
        self._names[call_id] = name
        function = {"name": name, "arguments": required_string(item, "arguments", place)}
        calls = self._assistant().setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def _assistant(self, *, has_calls: bool = True, has_content: bool = True) -> dict[str, Any]:
        """The assistant's message that the next item belongs to: the last one, unless it has what cannot come before
        the item."""
        last = self.messages[-1] if self.messages else None
        fits = last is not None and last["role"] == "assistant"
        if (
            last is not None
            and fits
            and (has_calls or "tool_calls" not in last)
            and (has_content or not last["content"])
        ):
            return last
        self.messages.append({"role": "assistant", "content": []})
        return self.messages[-1]

    def _parts(self, content: Any, place: str) -> list[dict[str, Any]]:
        """Content as text parts of a chat."""
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise bad_request(f"`{place}` must be a string or a list of parts, got {shown(content)}.", place)
        parts = []
        for index, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str) or kind not in _TEXT_PARTS:
                what = "a part without a type" if kind is None else f"a part of type {shown(kind)}"
                message = f"{self._model_name} is not a multimodal model; {place}.{index}: {what} cannot be used, "
                raise bad_request(f"{message}only {', '.join(_TEXT_PARTS)}.", f"{place}.{index}")
            parts.append({"type": "text", "text": required_string(part, _TEXT_PARTS[kind], f"{place}.{index}")})
        return parts


def _texts(given: Any, kind: str, place: str) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise bad_request(f"`{place}` must be a list of parts of type {kind!r}, got {shown(given)}.", place)
    return [
        required_string(part if isinstance(part, dict) else {}, "text", f"{place}.{index}")
        for index, part in enumerate(given)
    ]


def _opened(sealed: str, place: str) -> str:
    try:
        return base64.b64decode(sealed.removeprefix(SEALED), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        name = f"{place}.encrypted_content"
        raise bad_request(f"`{name}` is not what this worker gave out.", name) from None
