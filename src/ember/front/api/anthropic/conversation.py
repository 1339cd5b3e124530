"""From Anthropic's messages to those of a chat.

Blocks of a message become its text, its reasoning, its calls, or messages of their own (the results of tools). Messages
of a user that follow each other become one, as Anthropic has it, because many templates demand that roles take turns.

Clients such as Claude Code add instructions in the middle of a conversation. Their text is put into the message beside
them and not into the system prompt: a new system prompt would change the beginning of the prompt, and no turn could
use the prefix cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ember.front.api.body import shown
from ember.front.api.chat_translation import filled_string, required_string
from ember.front.errors import ApiError, bad_request

INSTRUCTING = ("system", "developer", "ctx", "msg")  # roles of instructions, under the names of several clients
BILLING_HEADER = "x-anthropic-billing-header"  # begins a system block of Claude Code's that differs at every request
_MEDIA = ("image", "video", "audio")

Part = dict[str, Any]


def chat_messages(
    messages: Sequence[Mapping[str, Any]], system: str | Sequence[Mapping[str, Any]] | None, model_name: str
) -> list[dict[str, Any]]:
    """The messages of a chat. Raises ApiError 400 that names the block at fault."""
    reader = _Reader(model_name)
    instructions = reader.texts(system or [], "system")
    leading = 0
    while leading < len(messages) and messages[leading]["role"] in INSTRUCTING:
        instructions += reader.texts(messages[leading]["content"], f"messages.{leading}.content")
        leading += 1
    for index in range(leading, len(messages)):
        reader.read(messages[index], f"messages.{index}")
    turns = reader.finish()
    if not turns:
        raise bad_request("`messages` must have a message of the role 'user' or 'assistant'.", "messages")
    head = [{"role": "system", "content": instructions}] if instructions else []
    return [*head, *turns]


class _Reader:
    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._turns: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}  # of functions, by the id of their call
        self._held: list[Part] = []  # instructions for the next message of a user

    def read(self, message: Mapping[str, Any], place: str) -> None:
        role, content = message["role"], message["content"]
        if role in INSTRUCTING:
            self._instruct(self.texts(content, f"{place}.content"))
        elif role == "user":
            self._read_user(content, f"{place}.content")
        elif role == "assistant":
            self._read_assistant(content, f"{place}.content")
        else:
            allowed = ", ".join(repr(name) for name in ("user", "assistant", *INSTRUCTING))
            raise bad_request(f"`{place}.role` must be one of {allowed}, got {role[:64]!r}.", f"{place}.role")

    def finish(self) -> list[dict[str, Any]]:
        if self._held:
            self._add_user(self._held)
        return self._turns

    def texts(self, content: str | Sequence[Mapping[str, Any]], place: str) -> list[Part]:
        """The text parts of instructions, without the header that would make every prompt a new one."""
        parts = self._parts(content, place)
        return [part for part in parts if not part["text"].startswith(BILLING_HEADER)]

    def _instruct(self, parts: list[Part]) -> None:
        """Instructions in the middle belong to the message of a user, or to the results of tools, before them."""
        last = self._turns[-1] if self._turns else None
        if last is not None and last["role"] in ("user", "tool"):
            last["content"] = [*last["content"], *parts]
        else:
            self._held += parts

    def _read_user(self, content: str | Sequence[Mapping[str, Any]], place: str) -> None:
        results, others = [], []
        for index, block in enumerate(_blocks(content)):
            if block.get("type") == "tool_result":
                results.append(self._result(block, f"{place}.{index}"))
            else:
                others += self._block_parts(block, f"{place}.{index}")
        self._turns += results  # directly behind the calls, whatever their place in the message
        if others or self._held or not results:
            held, self._held = self._held, []
            self._add_user([*held, *others])

    def _add_user(self, parts: list[Part]) -> None:
        if self._turns and self._turns[-1]["role"] == "user":
            self._turns[-1]["content"] += parts
        else:
            self._turns.append({"role": "user", "content": parts})

    def _read_assistant(self, content: str | Sequence[Mapping[str, Any]], place: str) -> None:
        if self._held:
            held, self._held = self._held, []
            self._add_user(held)
        parts: list[Part] = []
        reasoning: list[str] = []
        calls: list[dict[str, Any]] = []
        for index, block in enumerate(_blocks(content)):
            where = f"{place}.{index}"
            kind = block.get("type")
            if kind == "thinking":
                reasoning.append(required_string(block, "thinking", where))
            elif kind == "tool_use":
                calls.append(self._call(block, where))
            elif kind == "redacted_thinking":  # which only its maker can read
                filled_string(block, "data", where)
            else:
                parts += self._block_parts(block, where)
        turn: dict[str, Any] = {"role": "assistant", "content": parts}
        if reasoning:
            turn["reasoning"] = "".join(reasoning)
        if calls:
            turn["tool_calls"] = calls
        self._turns.append(turn)

    def _call(self, block: Mapping[str, Any], place: str) -> dict[str, Any]:
        call_id, name = filled_string(block, "id", place), filled_string(block, "name", place)
        given = block.get("input")
        if not isinstance(given, dict):
            found = f"got {shown(given)}" if "input" in block else "it is missing"
            raise bad_request(f"`{place}.input` must be an object, {found}.", f"{place}.input")
        self._names[call_id] = name
        function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
        return {"id": call_id, "type": "function", "function": function}

    def _result(self, block: Mapping[str, Any], place: str) -> dict[str, Any]:
        call_id = required_string(block, "tool_use_id", place)
        content = block.get("content")
        if call_id not in self._names:
            message = f"{place}: unexpected `tool_use_id` found in `tool_result` blocks: {call_id[:100]}. "
            message += "Each `tool_result` block must have a corresponding `tool_use` block before it."
            raise bad_request(message, f"{place}.tool_use_id")
        parts = self._parts(content or [], f"{place}.content")
        return {"role": "tool", "tool_call_id": call_id, "content": parts, "name": self._names[call_id]}

    def _parts(self, content: Any, place: str) -> list[Part]:
        if not isinstance(content, str | list):
            raise bad_request(f"`{place}` must be a string or a list of blocks, got {shown(content)}.", place)
        blocks = _blocks(content)
        return [part for index, block in enumerate(blocks) for part in self._block_parts(block, f"{place}.{index}")]

    def _block_parts(self, block: Any, place: str) -> list[Part]:
        """The text parts of one block. An empty text gives none."""
        if not isinstance(block, dict):
            raise bad_request(f"`{place}` must be an object, a block, got {shown(block)}.", place)
        kind = block.get("type")
        if kind == "text":
            return _part(required_string(block, "text", place))
        if kind == "document":
            return self._document(block, place)
        if kind == "search_result":
            title = [text for text in (block.get("title"), block.get("source")) if isinstance(text, str)]
            return [*_part("\n".join(title)), *self._parts(block.get("content") or [], f"{place}.content")]
        if kind == "tool_reference":
            return _part(required_string(block, "tool_name", place))
        if kind in _MEDIA:
            raise self._no_media(f"{place}: a block of type {kind!r}", place)
        message = f"`{place}.type`: a block of type {shown(kind)} cannot be used here; allowed are text, document "
        message += "(of text), search_result, in a message of a user tool_result, in one of an assistant thinking, "
        raise bad_request(f"{message}redacted_thinking and tool_use.", f"{place}.type")

    def _document(self, block: Mapping[str, Any], place: str) -> list[Part]:
        source = block.get("source")
        kind = source.get("type") if isinstance(source, dict) else None
        title = block.get("title")
        head = _part(title) if isinstance(title, str) else []
        if isinstance(block.get("context"), str):
            head += _part(block["context"])
        if kind == "text":
            return [*head, *_part(required_string(source, "data", f"{place}.source"))]  # type: ignore[arg-type]
        if kind == "content":
            return [*head, *self._parts(source.get("content") or [], f"{place}.source.content")]  # type: ignore[union-attr]
        raise self._no_media(f"{place}: a document with a source of type {shown(kind)}", place)

    def _no_media(self, what: str, place: str) -> ApiError:
        return bad_request(f"{self._model_name} is not a multimodal model; {what} cannot be used.", place)


def _blocks(content: str | Sequence[Any]) -> Sequence[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _part(text: str) -> list[Part]:
    return [{"type": "text", "text": text}] if text else []
