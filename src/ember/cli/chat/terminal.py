"""`ember chat`: the loop that reads messages in the terminal and has them answered by a server of the OpenAI API."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
from collections.abc import Callable
from typing import Any

from ember.cli.api_client import ApiClient, ServerError, connect
from ember.cli.chat.commands import NOT_TO_SET, Commands, Leave
from ember.cli.chat.conversation import Conversation, Screen, answer, clean, pending_call


class ChatError(Exception):
    """The conversation cannot begin. The message is for the person who started it."""


def run(
    url: str,
    model: str | None,
    key: str | None,
    system: str | None,
    fields: dict[str, Any],
    end: Callable[[], str | None] = lambda: None,
) -> int:
    """Talk until the person leaves. Where the input is no terminal, all of it is one message. `end` says why a server
    of the command's own has ended. Returns the exit status. Raises ChatError."""
    for name in fields:
        if name in NOT_TO_SET:
            raise ChatError(f"--body: {name} cannot be set here: {NOT_TO_SET[name]}")
    if sys.stdin is None:
        raise ChatError("there is no standard input")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    screen = Screen.of_stdout()
    with asyncio.Runner() as runner:
        return runner.run(_talk(url, model, key, Conversation("", system, fields=fields), screen, end))


async def _talk(
    url: str,
    model: str | None,
    key: str | None,
    conversation: Conversation,
    screen: Screen,
    end: Callable[[], str | None],
) -> int:
    async with connect(url, key) as client:
        try:
            conversation.model = await client.model(model)
        except ServerError as error:
            raise ChatError(str(error)) from None
        if not sys.stdin.isatty():
            text = sys.stdin.read()
            if not text.strip():
                raise ChatError("the message on standard input is empty")
            conversation.messages.append({"role": "user", "content": text})
            try:
                await answer(client, conversation, screen)
            except ServerError as error:
                raise ChatError(str(error)) from None
            return 0
        screen.aside(f"{conversation.model} at {client.url}; /help lists the commands\n")
        commands = Commands(client, conversation, screen)
        _keep_history()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's would not end a line that is being typed
        while True:
            try:
                text = read_message(_prompt_of(conversation))
                if not text.strip() or await reply_to(text, client, commands, conversation, screen):
                    continue
                if (reason := end()) is not None:
                    raise ChatError(f"the server has ended: {reason}")
            except (EOFError, Leave):
                screen.text("\n")
                return 0


async def reply_to(
    text: str, client: ApiClient, commands: Commands, conversation: Conversation, screen: Screen
) -> bool:
    """Obey a command, or have a message or a tool's result answered. A refused request leaves the conversation as it
    was. Returns False where the server did not answer to the end. Raises Leave."""
    before = conversation.messages[:]
    try:
        if text.startswith("/"):
            if not await commands.run(text.strip()):
                return True
        elif pending := pending_call(conversation):
            conversation.messages.append({"role": "tool", "tool_call_id": pending["id"], "content": text})
        else:
            conversation.messages.append({"role": "user", "content": text})
        if pending_call(conversation) is None:
            await _stoppable(answer(client, conversation, screen), screen)
    except ServerError as error:
        conversation.messages[:] = before
        screen.style("31", f"{error}\n")
        return error.status not in (None, 200)
    return True


async def _stoppable(work: Any, screen: Screen) -> None:
    """Wait for an answer, which Ctrl-C stops."""
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


def _prompt_of(conversation: Conversation) -> str:
    call = pending_call(conversation)
    return "> " if call is None else clean(f"result of {call['function']['name']}> ")


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
