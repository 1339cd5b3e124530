"""The lines of `ember chat` that begin with a slash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ember.cli.api_client import ApiClient
from ember.cli.chat.conversation import Conversation, Screen
from ember.regular_file import MAX_JSON_BYTES, read_regular
from ember.untrusted_json import UntrustedJsonError, loads

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


NOT_TO_SET = {
    "messages": "a conversation is loaded with /load",
    "model": "another model is chosen with /model",
    "n": "a conversation goes on with one answer",
    "stream": "answers are written as they come",
    "stream_options": "the tokens of answers are counted",
}


class Leave(Exception):
    """The person wants to leave."""


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
            self._say(f"{error.filename or rest.strip()}: {error.strerror}")
        except (ValueError, RuntimeError) as error:  # RuntimeError: a home directory that there is not
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
        if name in NOT_TO_SET:
            raise ValueError(f"{name} cannot be set here: {NOT_TO_SET[name]}")
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
            if not isinstance(tools, list) or not all(isinstance(_function(tool).get("name"), str) for tool in tools):
                raise ValueError(f"{rest} is no JSON list of tools, each with a function that has a name")
            self._talk.fields["tools"] = tools
            if not tools:
                del self._talk.fields["tools"]
        elif rest:
            self._talk.fields.pop("tools", None)
        tools = self._talk.fields.get("tools") or []
        names = [str(_function(tool).get("name")) for tool in (tools if isinstance(tools, list) else [tools])]
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
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise ValueError(f"{name} has no conversation: a list of messages with roles and texts")
        if messages and messages[0]["role"] == "system":
            self._talk.system, messages = str(messages[0].get("content")), messages[1:]
        self._talk.messages[:] = messages
        if isinstance(document, dict):
            kept = {key: value for key, value in document.items() if key not in NOT_TO_SET}
            self._talk.fields.update(kept)
        self._say(f"{len(messages)} {'message' if len(messages) == 1 else 'messages'}")


def _read_json(name: str) -> Any:
    if not name:
        raise ValueError("name a file")
    try:
        return loads(read_regular(Path(name).expanduser(), MAX_JSON_BYTES))
    except UntrustedJsonError as error:
        raise ValueError(f"{name} is no JSON: {error}") from None


def _function(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function if isinstance(function, dict) else {}


def _is_message(value: Any) -> bool:
    """Whether a value is a message as this command saves them."""
    if not isinstance(value, dict) or value.get("role") not in ("system", "user", "assistant", "tool"):
        return False
    calls = value.get("tool_calls", [])
    return isinstance(value.get("content"), str) and isinstance(calls, list) and all(map(_is_call, calls))


def _is_call(value: Any) -> bool:
    texts = [_function(value).get("name"), _function(value).get("arguments")]
    return all(isinstance(text, str) for text in texts) and isinstance(value.get("id"), str)
