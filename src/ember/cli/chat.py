"""`ember chat`: a conversation in the terminal, with a model of its own server or of any server of the OpenAI API."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ember.cli.api_client import ApiClient, ServerError, connect

HELP = """\
/help                 this list
/system [TEXT]        the system prompt: set it, or show it
/set NAME [VALUE]     a field of requests, such as temperature or max_tokens; without a value it is removed
/fields               the fields of requests
/tools [FILE|off]     tools that the model may call: a JSON list in OpenAI's form
/json [FILE|off]      answers in JSON, or by the JSON schema in a file
/model [NAME]         the models of the server, or another one of them
/retry                answer the last message again
/undo                 forget the last message and its answer
/clear                forget the conversation, but not the system prompt
/save FILE            write the conversation as JSON
/load FILE            go on with a conversation that was saved
/quit                 leave, as Ctrl-D does
A message may have several lines: end a line with \\, or put three quotes (\"\"\") before and after it.
Ctrl-C stops an answer."""
_PATH = "/v1/chat/completions"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # those of a terminal, but for tab and line feed


class ChatError(Exception):
    """The conversation cannot begin. The message is for the person who started it."""


class Leave(Exception):
    """The person wants to leave."""


@dataclass
class Screen:
    """Where answers are written. What a model says cannot control the terminal."""

    write: Callable[[str], Any]
    is_terminal: bool

    def text(self, text: str) -> None:
        self.write(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text))

    def aside(self, text: str) -> None:
        """What is no part of the answer, in faint letters where there are any."""
        self.style("2", text)

    def style(self, code: str, text: str) -> None:
        clean = _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
        self.write(f"\x1b[{code}m{clean}\x1b[0m" if self.is_terminal else clean)

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
                text = self.messages[i]["content"]
                del self.messages[i:]
                return str(text)
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
        """It as a message of the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def add_calls(self, deltas: list[dict[str, Any]]) -> None:
        for delta in deltas:
            while len(self.calls) <= delta.get("index", 0):
                self.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            call, function = self.calls[delta.get("index", 0)], delta.get("function") or {}
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
                found.usage = event.get("usage") or found.usage
                for choice in (event.get("choices") or [])[:1]:
                    delta = choice.get("delta") or {}
                    found.finish_reason = choice.get("finish_reason") or found.finish_reason
                    first = first or (time.perf_counter() if any(delta.get(name) for name in _SAID) else None)
                    _write(delta, found, screen)
    finally:
        if found.content or found.calls:
            conversation.messages.append(found.message())
        if found.content or found.reasoning:
            screen.text("\n")
    for call in found.calls:
        screen.style("36", f"{call['function']['name']}({call['function']['arguments']})\n")
    if screen.is_terminal:
        screen.aside(_costs(found, began, first))
    return found


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
    rest = time.perf_counter() - first
    rate = f", {(count - 1) / rate_of(rest):,.0f} a second" if count > 1 else ""
    cut = ", cut at max_tokens" if found.finish_reason == "length" else ""
    return f"[{count} tokens{rate}, the first after {first - began:.2f} s{cut}]\n"


def rate_of(seconds: float) -> float:
    return max(seconds, 1e-9)


# ----------------------------------------------------------------------------------------------------------- commands


class Commands:
    """What lines that begin with a slash do."""

    def __init__(self, client: ApiClient, conversation: Conversation, screen: Screen) -> None:
        self._client = client
        self._talk = conversation
        self._screen = screen

    async def run(self, line: str) -> bool:
        """Obey a line. Returns whether the conversation now waits for an answer. Raises Leave, and ServerError."""
        name, _, rest = line[1:].partition(" ")
        method = getattr(self, f"_do_{name}", None)
        if method is None:
            self._say(f"there is no /{name}; /help lists what there is")
            return False
        try:
            return bool(await method(rest.strip()))
        except OSError as error:
            self._say(f"{error.filename}: {error.strerror}")
        except ValueError as error:
            self._say(str(error))
        return False

    def _say(self, text: str) -> None:
        self._screen.aside(text + "\n")

    async def _do_help(self, _: str) -> None:
        self._say(HELP)

    async def _do_quit(self, _: str) -> None:
        raise Leave

    _do_exit = _do_quit

    async def _do_system(self, text: str) -> None:
        if text:
            self._talk.system = text
        self._say(self._talk.system or "there is no system prompt")

    async def _do_set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if not name:
            raise ValueError("/set needs the name of a field and its value, such as /set temperature 0.2")
        if not value.strip():
            self._talk.fields.pop(name, None)
            self._say(f"{name} is the server's")
            return
        try:
            self._talk.fields[name] = json.loads(value)
        except ValueError:
            self._talk.fields[name] = value.strip()
        self._say(f"{name} = {json.dumps(self._talk.fields[name], ensure_ascii=False)}")

    async def _do_fields(self, _: str) -> None:
        self._say(json.dumps({"model": self._talk.model, **self._talk.fields}, ensure_ascii=False, indent=1))

    async def _do_tools(self, rest: str) -> None:
        if rest and rest != "off":
            tools = _read_json(rest)
            if not isinstance(tools, list):
                raise ValueError(f"{rest} is no JSON list of tools")
            self._talk.fields["tools"] = tools
        elif rest:
            self._talk.fields.pop("tools", None)
        tools = self._talk.fields.get("tools") or []
        names = [str((tool.get("function") or {}).get("name")) for tool in tools if isinstance(tool, dict)]
        self._say(", ".join(names) if names else "there are no tools")

    async def _do_json(self, rest: str) -> None:
        if rest == "off":
            self._talk.fields.pop("response_format", None)
        elif rest:
            schema = {"name": "answer", "schema": _read_json(rest)}
            self._talk.fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            self._talk.fields["response_format"] = {"type": "json_object"}
        kind = (self._talk.fields.get("response_format") or {"type": "text"})["type"]
        self._say(f"answers are {kind}")

    async def _do_model(self, name: str) -> None:
        names = await self._client.models()
        if name and name not in names:
            raise ValueError(f"the server has no model {name!r}: it has {', '.join(names)}")
        self._talk.model = name or self._talk.model
        self._say("\n".join(f"{'*' if other == self._talk.model else ' '} {other}" for other in names))

    async def _do_retry(self, _: str) -> bool:
        text = self._talk.undo()
        if text is None:
            raise ValueError("there is no message to answer")
        self._talk.messages.append({"role": "user", "content": text})
        return True

    async def _do_undo(self, _: str) -> None:
        text = self._talk.undo()
        self._say("there is no message" if text is None else f"forgotten: {text}")

    async def _do_clear(self, _: str) -> None:
        self._talk.messages.clear()
        self._say("the conversation is forgotten")

    async def _do_save(self, name: str) -> None:
        if not name:
            raise ValueError("/save needs the name of a file")
        body = self._talk.body()
        document = {key: body[key] for key in ("model", "messages")} | self._talk.fields
        Path(name).expanduser().write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
        self._say(f"written to {name}")

    async def _do_load(self, name: str) -> None:
        document = _read_json(name)
        messages = document.get("messages") if isinstance(document, dict) else document
        if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
            raise ValueError(f"{name} has no conversation: a list of messages with roles")
        if messages and messages[0]["role"] == "system":
            self._talk.system, messages = str(messages[0].get("content")), messages[1:]
        self._talk.messages[:] = messages
        if isinstance(document, dict):
            kept = {key: value for key, value in document.items() if key not in ("model", "messages")}
            self._talk.fields.update(kept)
        self._say(f"{len(messages)} messages")


def _read_json(name: str) -> Any:
    if not name:
        raise ValueError("name a file")
    path = Path(name).expanduser()
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from None


# ----------------------------------------------------------------------------------------------------------- the loop


def run(url: str, model: str | None, key: str | None, system: str | None, fields: dict[str, Any]) -> int:
    """Talk until the person leaves. Where the input is no terminal, all of it is one message. Returns the exit status.
    Raises ChatError."""
    screen = Screen.of_stdout()
    with asyncio.Runner() as runner:
        return runner.run(_talk(url, model, key, Conversation("", system, fields=fields), screen))


async def _talk(url: str, model: str | None, key: str | None, conversation: Conversation, screen: Screen) -> int:
    async with connect(url, key) as client:
        try:
            conversation.model = await client.model(model)
        except ServerError as error:
            raise ChatError(str(error)) from None
        if not sys.stdin.isatty():
            conversation.messages.append({"role": "user", "content": sys.stdin.read()})
            try:
                await answer(client, conversation, screen)
            except ServerError as error:
                raise ChatError(str(error)) from None
            return 0
        screen.aside(f"{conversation.model} at {client.url}; /help lists the commands\n")
        commands = Commands(client, conversation, screen)
        _keep_history()
        while True:
            try:
                if not await _turn(client, commands, conversation, screen):
                    continue
            except (EOFError, Leave):
                screen.text("\n")
                return 0


async def _turn(client: ApiClient, commands: Commands, conversation: Conversation, screen: Screen) -> bool:
    """Read a line, and answer it if it asks for an answer. Raises EOFError and Leave."""
    text = read_message(_prompt_of(conversation))
    if not text.strip():
        return False
    before = len(conversation.messages)
    try:
        if text.startswith("/"):
            if not await commands.run(text.strip()):
                return False
        elif pending := pending_call(conversation):
            conversation.messages.append({"role": "tool", "tool_call_id": pending["id"], "content": text})
        else:
            conversation.messages.append({"role": "user", "content": text})
        if pending_call(conversation) is None:
            await _stoppable(answer(client, conversation, screen), screen)
    except ServerError as error:
        del conversation.messages[before:]
        screen.style("31", f"{error}\n")
    return True


async def _stoppable(work: Any, screen: Screen) -> None:
    """Wait for an answer, which Ctrl-C stops."""
    import signal

    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await asyncio.wait((task,))
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if task.cancelled():
        screen.aside("[stopped]\n")
    elif (error := task.exception()) is not None:
        raise error


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


def _prompt_of(conversation: Conversation) -> str:
    call = pending_call(conversation)
    return "> " if call is None else f"result of {call['function']['name']}> "


def read_message(prompt: str, ask: Callable[[str], str] = input) -> str:
    """A message from the terminal: one line, lines that end with a backslash and the one after them, or what stands
    between two times three quotes. Ctrl-C gives an empty one. Raises EOFError."""
    try:
        line = ask(prompt)
        if line.lstrip().startswith('"""'):
            lines = [line.lstrip()[3:]]
            while '"""' not in lines[-1]:
                lines.append(ask(". "))
            lines[-1] = lines[-1].partition('"""')[0]
            return "\n".join(lines).strip("\n")
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(ask(". "))
        return "\n".join(lines)
    except KeyboardInterrupt:
        print()
        return ""


def _keep_history() -> None:
    """Let the arrow keys edit a line and bring back earlier ones."""
    try:
        import readline
    except ImportError:  # a Python without it
        return
    readline.set_history_length(1000)
