"""A conversation: what has been said, the next answer as it comes, and the screen on which it is written."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ember.cli.api_client import ApiClient, ServerError

MAX_CALLS = 1024  # of tools, in one answer
_PATH = "/v1/chat/completions"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # those of a terminal, but for tab and line feed


def clean(text: str) -> str:
    """The text without what would control a terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


@dataclass
class Screen:
    """Where answers are written. What a model says cannot control the terminal."""

    write: Callable[[str], Any]
    is_terminal: bool

    def text(self, text: str) -> None:
        self.write(clean(text))

    def aside(self, text: str) -> None:
        """What is no part of the answer, in faint letters where there are any."""
        self.style("2", text)

    def style(self, code: str, text: str) -> None:
        shown = clean(text)
        self.write(f"\x1b[{code}m{shown}\x1b[0m" if self.is_terminal else shown)

    @classmethod
    def of_stdout(cls) -> Screen:
        def write(text: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        return cls(write, sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


@dataclass
class Conversation:
    """What has been said, and what each request asks beside it."""

    model: str
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The body of a request for the next answer."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {
            "model": self.model,
            "messages": [*system, *self.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        }

    def undo(self) -> str | None:
        """Forget the last message of the user and all after it. Returns its text."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                text = self.messages[i].get("content")
                del self.messages[i:]
                return text if isinstance(text, str) else ""
        return None


@dataclass
class Answer:
    """An answer as far as it has come."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    def message(self) -> dict[str, Any]:
        """The answer as a message of the conversation. Calls of tools are in it once the answer is whole."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.calls and self.finish_reason is not None:
            message["tool_calls"] = self.calls
        return message

    def add_calls(self, deltas: list[dict[str, Any]]) -> None:
        for delta in deltas:
            index = delta.get("index") or 0
            while len(self.calls) <= index:
                self.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            call, function = self.calls[index], delta.get("function") or {}
            call["id"] = delta.get("id") or call["id"]
            call["function"]["name"] += function.get("name") or ""
            call["function"]["arguments"] += function.get("arguments") or ""


async def answer(client: ApiClient, conversation: Conversation, screen: Screen) -> Answer:
    """Ask for the next answer, write it as it comes, and add it to the conversation. What was said until it is
    cancelled is added too. Raises ServerError."""
    found = Answer()
    began, first = time.perf_counter(), None
    try:
        async for events in client.stream(_PATH, conversation.body()):
            for event in events:
                check_event(event)
                found.usage = event.get("usage") or found.usage
                for choice in (event.get("choices") or [])[:1]:
                    delta = choice.get("delta") or {}
                    found.finish_reason = choice.get("finish_reason") or found.finish_reason
                    first = first or (time.perf_counter() if any(delta.get(name) for name in _SAID) else None)
                    _write(delta, found, screen)
    finally:
        message = found.message()
        if message["content"] or "tool_calls" in message:
            conversation.messages.append(message)
        if found.content or found.reasoning:
            screen.text("\n")
    for call in found.calls:
        screen.style("36", f"{call['function']['name']}({call['function']['arguments']})\n")
    if screen.is_terminal:
        screen.aside(_costs(found, began, first))
    return found


def check_event(event: dict[str, Any]) -> None:
    """Raise ServerError for an event that is no chunk of a chat in OpenAI's form."""
    try:
        texts, places = [], []
        counts = [(event.get("usage") or {}).get("completion_tokens")]
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            texts += [delta.get(name) for name in ("content", "reasoning_content", "reasoning")]
            for call in delta.get("tool_calls") or []:
                function = call.get("function") or {}
                texts += [call.get("id"), function.get("name"), function.get("arguments")]
                places.append(call.get("index"))
        is_chunk = all(isinstance(text, str | None) for text in texts) and all(
            count is None or (isinstance(count, int) and 0 <= count < most)
            for counted, most in ((counts, math.inf), (places, MAX_CALLS))
            for count in counted
        )
    except (AttributeError, TypeError):
        is_chunk = False
    if not is_chunk:
        raise ServerError("an event of the stream has another form than OpenAI's")


_SAID = ("content", "reasoning_content", "reasoning", "tool_calls")


def _write(delta: dict[str, Any], found: Answer, screen: Screen) -> None:
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    if thought:
        found.reasoning += thought
        screen.aside(thought)
    if content := delta.get("content"):
        if found.reasoning and not found.content:
            screen.text("\n\n")
        found.content += content
        screen.text(content)
    found.add_calls(delta.get("tool_calls") or [])


def _costs(found: Answer, began: float, first: float | None) -> str:
    count = found.usage.get("completion_tokens")
    if first is None or not count:
        return ""
    seconds = max(time.perf_counter() - first, 1e-9)
    rate = f", {(count - 1) / seconds:,.0f} a second" if count > 1 and seconds > 0.01 else ""
    cut = ", cut at max_tokens" if found.finish_reason == "length" else ""
    return f"[{count} tokens{rate}, the first after {first - began:.2f} s{cut}]\n"


def pending_call(conversation: Conversation) -> dict[str, Any] | None:
    """The first call of a tool in the last answer that has no result yet."""
    answered = set()
    for message in reversed(conversation.messages):
        if message["role"] == "tool":
            answered.add(message.get("tool_call_id"))
            continue
        calls = message.get("tool_calls") or []
        return next((call for call in calls if call["id"] not in answered), None)
    return None
