"""`ember chat`: its commands, what is written of an answer, and a conversation in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ember.cli.api_client import ServerError
from ember.cli.chat.commands import Commands, Leave
from ember.cli.chat.conversation import Conversation, Screen, answer, pending_call
from ember.cli.chat.terminal import read_message, reply_to

CALL = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city":'}}


class Scripted:
    """A client whose server says the given deltas."""

    url = "http://server"

    def __init__(self, *deltas: dict[str, Any]) -> None:
        self.deltas, self.bodies = deltas, list[dict[str, Any]]()

    async def stream(self, _: str, body: dict[str, Any]) -> AsyncIterator[list[dict[str, Any]]]:
        self.bodies.append(json.loads(json.dumps(body)))
        for delta in self.deltas:
            if "error" in delta:
                raise ServerError(delta["error"])
            yield [{"choices": [{"delta": delta, "finish_reason": delta.get("finish")}]}]

    async def models(self) -> list[str]:
        return ["one", "two"]


def talk(client: Any, *, is_terminal: bool = False) -> tuple[Commands, Conversation, list[str], Screen]:
    written: list[str] = []
    screen, conversation = Screen(written.append, is_terminal), Conversation("one")
    return Commands(client, conversation, screen), conversation, written, screen


def test_an_answer_is_written_as_it_comes_and_cannot_control_the_terminal():
    client = Scripted(
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm.\x1b[2J"},
        {"content": "Red\x07 \t\n"},
        {"content": "sky"},
        {"tool_calls": [CALL]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ' "Bonn"}'}}]},
        {"finish": "tool_calls"},
    )
    _, conversation, written, screen = talk(client)
    conversation.messages.append({"role": "user", "content": "Hi"})
    asyncio.run(answer(client, conversation, screen))
    assert "".join(written) == 'Hm.\ufffd[2J\n\nRed\ufffd \t\nsky\nweather({"city": "Bonn"})\n'
    said = conversation.messages[-1]
    assert said["content"] == "Red\x07 \t\nsky" and said["tool_calls"][0]["function"]["name"] == "weather"
    assert pending_call(conversation) == said["tool_calls"][0]
    conversation.messages.append({"role": "tool", "tool_call_id": "c1", "content": "12"})
    assert pending_call(conversation) is None


def test_what_was_said_before_a_fault_is_kept():
    client = Scripted({"content": "Half"}, {"error": "the engine failed"})
    _, conversation, _, screen = talk(client)
    with pytest.raises(ServerError):
        asyncio.run(answer(client, conversation, screen))
    assert conversation.messages == [{"role": "assistant", "content": "Half"}]


def test_commands_change_what_is_asked(tmp_path: Path):
    client: Any = Scripted({"content": "Yes"})
    commands, conversation, _, screen = talk(client)
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": {"name": "weather"}}]))
    (tmp_path / "schema.json").write_text('{"type": "object"}')

    def run(*lines: str) -> list[bool]:
        return [asyncio.run(commands.run(line)) for line in lines]

    run("/system Be brief.", "/set temperature 0.5", "/set stop END", f"/tools {tmp_path}/tools.json", "/model two")
    run(f"/json {tmp_path}/schema.json")
    conversation.messages.append({"role": "user", "content": "Hi"})
    asyncio.run(answer(client, conversation, screen))
    body = client.bodies[0]
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (body["model"], body["temperature"], body["stop"]) == ("two", 0.5, "END")
    assert body["tools"][0]["function"]["name"] == "weather"
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    run(f"/save {tmp_path}/talk.json", "/set stop", "/json off", "/tools off")
    assert set(conversation.fields) == {"temperature"}
    assert run("/retry") == [True] and conversation.messages == [{"role": "user", "content": "Hi"}]
    run("/undo", f"/load {tmp_path}/talk.json")
    assert [message["content"] for message in conversation.messages] == ["Hi", "Yes"]
    assert conversation.fields["stop"] == "END" and conversation.system == "Be brief."
    run("/clear")
    assert conversation.messages == [] and conversation.system == "Be brief."
    with pytest.raises(Leave):
        run("/quit")


def test_a_refused_request_leaves_the_conversation_as_it_was():
    client: Any = Scripted({"content": "Half\x1b[2J"}, {"error": "it is \x1b]0;owned\x07 full"})
    commands, conversation, written, screen = talk(client)
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    conversation.messages[:] = said
    for text in ("/retry", "More"):
        asyncio.run(reply_to(text, client, commands, conversation, screen))
        assert conversation.messages == said
    assert "full" in written[-1] and "\x1b" not in "".join(written) and "\x07" not in "".join(written)


def test_a_call_that_is_cut_off_waits_for_no_result():
    _, conversation, _, screen = talk(client := Scripted({"content": "Hm."}, {"tool_calls": [CALL]}))
    asyncio.run(answer(client, conversation, screen))  # type: ignore[arg-type]
    assert conversation.messages == [{"role": "assistant", "content": "Hm."}] and pending_call(conversation) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing", "there is no /nothing"),
        ("/set", "needs the name of a field"),
        ("/tools /does/not/exist", "No such file"),
        ("/load", "name a file"),
        ("/save", "needs the name"),
        ("/model three", "no model 'three': it has one, two"),
        ("/retry", "no message to answer"),
        ("/load /dev/zero", "not a regular file"),
        ("/load ~nosuchuser/x", "home directory"),
        ("/save /dev/full", "/dev/full: No space left"),
        ("/set n 2", "n cannot be set here"),
        ("/help", "/system"),
    ],
)
def test_a_command_says_what_is_wrong(line: str, message: str):
    commands, conversation, written, _ = talk(Scripted())
    assert not asyncio.run(commands.run(line))
    assert message in "".join(written) and conversation.messages == []


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("/load", "[" * 100_000, "is no JSON"),
        ("/load", '[{"role": "user"}]', "has no conversation"),
        ("/load", '[{"role": "assistant", "content": "", "tool_calls": [{"x": 1}]}]', "has no conversation"),
        ("/load", '[{"role": "assistant", "content": "", "tool_calls": 5}]', "has no conversation"),
        ("/tools", '[{"function": 5}]', "no JSON list of tools"),
        ("/tools", "[]", "there are no tools"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, command: str, content: str, message: str):
    commands, conversation, written, _ = talk(Scripted())
    (tmp_path / "file").write_text(content)
    asyncio.run(commands.run(f"{command} {tmp_path}/file"))
    assert message in "".join(written) and conversation.messages == [] and conversation.fields == {}


@pytest.mark.parametrize(
    "delta",
    [
        *({"content": 5}, {"tool_calls": 5}, {"tool_calls": [{"index": -1}]}, {"tool_calls": [{"index": 10**9}]}),
        {"tool_calls": [{"function": {"name": 1}}]},
    ],
)
def test_an_event_of_another_form_is_an_error_of_the_server(delta: dict[str, Any]):
    client: Any = Scripted(delta)
    _, conversation, _, screen = talk(client)
    with pytest.raises(ServerError, match="another form"):
        asyncio.run(answer(client, conversation, screen))


def test_a_call_without_an_index_is_the_first():
    client: Any = Scripted(
        {"tool_calls": [{**CALL, "index": None}]}, {"tool_calls": [{"function": {"arguments": "1}"}}]}
    )
    _, conversation, _, screen = talk(client)
    (call,) = asyncio.run(answer(client, conversation, screen)).calls
    assert call["function"] == {"name": "weather", "arguments": '{"city":1}'}


def test_a_file_does_not_change_how_answers_come(tmp_path: Path):
    """Fields that a conversation cannot have are left out of one that another program saved."""
    document = {"messages": [{"role": "user", "content": "Hi"}], "stream": False, "n": 2, "temperature": 0.5}
    (tmp_path / "file").write_text(json.dumps(document))
    client: Any = Scripted()
    commands, conversation, _, _ = talk(client)
    asyncio.run(commands.run(f"/load {tmp_path}/file"))
    assert conversation.fields == {"temperature": 0.5} and len(conversation.messages) == 1


@pytest.mark.parametrize(
    ("options", "stdin", "message"),
    [
        (["--url", "foo"], b"Hi", "must begin with http"),
        (["--url", "http://127.0.0.1:1"], b"", "is empty"),
        (["--url", "http://127.0.0.1:1"], b"\xff\xfe", "Cannot connect"),
        (["/nonexist"], b"Hi", "/nonexist does not exist"),
        (["--url", "http://127.0.0.1:1", "--body", '{"stream": false}'], b"Hi", "--body: stream cannot be set here"),
        (["--url", "http://127.0.0.1:1", "--body", '{"messages": []}'], b"Hi", "--body: messages cannot be set here"),
    ],
)
def test_what_cannot_be_said_is_one_line(options: list[str], stdin: bytes, message: str):
    command = [sys.executable, "-P", "-m", "ember", "chat", *options]
    if "--url" in options and "foo" not in options:
        command += ["--model", "m"]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120)
    assert done.returncode and message in done.stderr.decode() and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""', "one", "", 'two"""'], "one\n\ntwo"),
        (['"""one"""'], "one"),
    ],
)
def test_messages_of_several_lines(lines: list[str], message: str):
    rest = iter(lines)
    assert read_message("> ", lambda _: next(rest)) == message
    assert not list(rest)


def test_a_conversation_in_a_terminal():
    """A message, a stopped answer, a refused request, and the end of the input; the server ends with the command."""
    own, other = pty.openpty()
    command = [sys.executable, "-P", "-m", "ember", "chat", "demo", "--system", "Answer briefly.", "--api-key", "k"]
    log = {"LOG_LEVEL": "error", "LOG_FORMAT": "json"}  # neither hides where the server listens
    process = subprocess.Popen(
        command, stdin=other, stdout=other, stderr=other, start_new_session=True, env={**os.environ, **log}
    )
    os.close(other)
    terminal = Terminal(own)
    try:
        terminal.wait("> ", 120)
        server = children(process.pid)
        terminal.say("/set temperature 0")
        terminal.wait("temperature = 0")
        terminal.say("What is the capital of France?")
        terminal.wait("Paris")
        terminal.wait("tokens")
        terminal.say("/set min_tokens 100000")
        terminal.wait("min_tokens = 100000")
        terminal.say("Hello")
        terminal.wait("min_tokens")  # the refusal names it
        terminal.say("/set min_tokens 1800")
        terminal.say("/set max_tokens 1800")
        terminal.wait("max_tokens = 1800")
        terminal.say("Go on and on")
        terminal.wait(r"\w")
        os.kill(process.pid, signal.SIGINT)
        terminal.wait("stopped")
        terminal.say("/quit")
        assert process.wait(60) == 0
        assert server and not any(Path(f"/proc/{pid}").exists() for pid in server)
    finally:
        process.kill()
        process.wait()
        os.close(own)


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


class Terminal:
    """The other end of a terminal. What was waited for is not found again."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._seen = descriptor, ""
        os.set_blocking(descriptor, False)

    def say(self, line: str) -> None:
        os.write(self._descriptor, line.encode() + b"\n")
        self.wait(re.escape(line))  # its echo

    def wait(self, pattern: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self._seen)):
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self._seen!r}"
            try:
                self._seen += os.read(self._descriptor, 65536).decode("utf-8", "replace")
            except BlockingIOError:
                time.sleep(0.02)
        self._seen = self._seen[match.end() :]
